// Sixteen-bit numbers as they are stored, and how they become lanes.
#pragma once

#include "cpu/simd.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {

// Storage types. Half precision is stored as its bits.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

MAMBA_AOT_INLINE float bits_to_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

MAMBA_AOT_INLINE uint32_t float_to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

MAMBA_AOT_INLINE float widen(float x) { return x; }
MAMBA_AOT_INLINE double widen(double x) { return x; }
MAMBA_AOT_INLINE float widen(BFloat16 x) { return bits_to_float(static_cast<uint32_t>(x.bits) << 16); }

MAMBA_AOT_INLINE float widen(Half x) {
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  // Scaling by 2^112 moves the exponent and makes normal numbers out of subnormal ones.
  uint32_t bits = float_to_bits(bits_to_float(magnitude) * 5.192296858534828e33f);
  if (magnitude >= 0x0f800000u) bits |= 0x7f800000u;
  return bits_to_float(bits | static_cast<uint32_t>(x.bits & 0x8000) << 16);
}

template <class T>
struct Narrow;
template <>
struct Narrow<float> {
  static MAMBA_AOT_INLINE float from(double x) { return static_cast<float>(x); }
};
template <>
struct Narrow<double> {
  static MAMBA_AOT_INLINE double from(double x) { return x; }
};
template <>
struct Narrow<BFloat16> {
  static MAMBA_AOT_INLINE BFloat16 from(float x) {
    const uint32_t bits = float_to_bits(x);
    if (x != x) return {0x7fc0};
    return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
  }
};
template <>
struct Narrow<Half> {
  static MAMBA_AOT_INLINE Half from(float x) {
    const uint32_t bits = float_to_bits(x), magnitude = bits & 0x7fffffffu;
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
    uint32_t half;
    if (magnitude >= 0x47800000u) {
      half = magnitude > 0x7f800000u ? 0x7e00 : 0x7c00;
    } else if (magnitude < 0x38800000u) {
      // Adding 1/2 lets the adder round at the place of the last subnormal bit.
      half = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
    } else {
      half = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1)) >> 13;
    }
    return {static_cast<uint16_t>(half | sign)};
  }
};

// Consecutive elements to and from one vector.
template <class S, class T>
MAMBA_AOT_INLINE Vec<S> load_row(const T* p) {
  constexpr int kLanes = Simd<S>::kLanes;
  if constexpr (sizeof(T) == sizeof(S)) {
    return load<S>(reinterpret_cast<const S*>(p));
  } else {
    Vec<S> v{};
    for (int i = 0; i < kLanes; ++i) v[i] = static_cast<S>(widen(p[i]));
    return v;
  }
}

template <class S, class T>
MAMBA_AOT_INLINE void store_row(T* p, Vec<S> v) {
  if constexpr (sizeof(T) == sizeof(S)) {
    store<S>(reinterpret_cast<S*>(p), v);
  } else {
    for (int i = 0; i < Simd<S>::kLanes; ++i) p[i] = Narrow<T>::from(v[i]);
  }
}

typedef uint16_t Bits16 __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t Bits32 __attribute__((vector_size(kVectorBytes)));

// Thirty-two bits from sixteen each, in one instruction where compilers make up to five of a conversion.
MAMBA_AOT_INLINE Bits32 widen_bits(const void* p) {
#if defined(__AVX512F__)
  return (Bits32)_mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return (Bits32)_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
#else
  Bits16 half;
  std::memcpy(&half, p, sizeof half);
  return __builtin_convertvector(half, Bits32);
#endif
}

template <>
MAMBA_AOT_INLINE VecF load_row<float, BFloat16>(const BFloat16* p) {
  return (VecF)(widen_bits(p) << 16);
}

template <>
MAMBA_AOT_INLINE void store_row<float, BFloat16>(BFloat16* p, VecF v) {
  const Bits32 bits = (Bits32)v;
  const Bits32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Bits32 quiet_nan = Bits32{} + 0x7fc0;
  const Bits32 words = v != v ? quiet_nan : rounded;
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16((__m512i)words));
#else
  const Bits16 half = __builtin_convertvector(words, Bits16);
  std::memcpy(p, &half, sizeof half);
#endif
}

#if defined(__AVX512F__)
template <>
MAMBA_AOT_INLINE VecF load_row<float, Half>(const Half* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

template <>
MAMBA_AOT_INLINE void store_row<float, Half>(Half* p, VecF v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
template <>
MAMBA_AOT_INLINE VecF load_row<float, Half>(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

template <>
MAMBA_AOT_INLINE void store_row<float, Half>(Half* p, VecF v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
#endif

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
