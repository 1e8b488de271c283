// One vector of floats or doubles, as wide as the instruction set this file is compiled for.
// Everything lives in a namespace named after that instruction set and is always inlined: a function compiled
// for AVX-512 must never be the copy that the linker keeps for a machine without it.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Vectors never cross a call that is not inlined, so how they would be passed does not matter.
#pragma GCC diagnostic ignored "-Wpsabi"

#define MAMBA_AOT_INLINE inline __attribute__((always_inline))

namespace mamba_aot::cpu::MAMBA_AOT_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

typedef float VecF __attribute__((vector_size(kVectorBytes)));
typedef double VecD __attribute__((vector_size(kVectorBytes)));
typedef int32_t VecI __attribute__((vector_size(kVectorBytes)));
typedef int64_t VecL __attribute__((vector_size(kVectorBytes)));

// Lane type S -> its vector V, the integer vector I of equal width (also the type of masks) and its lane
// type.
template <class S>
struct Simd;
template <>
struct Simd<float> {
  using V = VecF;
  using I = VecI;
  using Int = int32_t;
  static constexpr int kLanes = kVectorBytes / 4;
};
template <>
struct Simd<double> {
  using V = VecD;
  using I = VecL;
  using Int = int64_t;
  static constexpr int kLanes = kVectorBytes / 8;
};
template <class S>
using Vec = typename Simd<S>::V;

// Calls f with a value of the lane type. Double precision is for checks, not for speed: the narrowest vectors
// alone have it, which is a third less to compile.
template <class F>
MAMBA_AOT_INLINE auto with_lane_type([[maybe_unused]] bool float64, F f) {
#if !defined(__AVX2__)
  if (float64) return f(double{});
#endif
  return f(float{});
}
template <class S>
using IntVec = typename Simd<S>::I;

// x - 0 rather than 0 + x: the latter would turn -0 into +0.
template <class S>
MAMBA_AOT_INLINE Vec<S> splat(S x) {
  return x - Vec<S>{};
}

template <class S>
MAMBA_AOT_INLINE Vec<S> load(const S* p) {
  Vec<S> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class S>
MAMBA_AOT_INLINE void store(S* p, Vec<S> v) {
  std::memcpy(p, &v, sizeof v);
}

// a * b + c, in one rounding where the machine has it.
MAMBA_AOT_INLINE VecF fma(VecF a, VecF b, VecF c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

MAMBA_AOT_INLINE VecD fma(VecD a, VecD b, VecD c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

// min and max let a NaN in the second argument through.
MAMBA_AOT_INLINE VecF min(VecF a, VecF b) {
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_min_ps(a, b);
#elif defined(__SSE2__)
  return _mm_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

MAMBA_AOT_INLINE VecD min(VecD a, VecD b) {
#if defined(__AVX512F__)
  return _mm512_min_pd(a, b);
#elif defined(__AVX2__)
  return _mm256_min_pd(a, b);
#elif defined(__SSE2__)
  return _mm_min_pd(a, b);
#else
  return a < b ? a : b;
#endif
}

MAMBA_AOT_INLINE VecF max(VecF a, VecF b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#elif defined(__SSE2__)
  return _mm_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

MAMBA_AOT_INLINE VecD max(VecD a, VecD b) {
#if defined(__AVX512F__)
  return _mm512_max_pd(a, b);
#elif defined(__AVX2__)
  return _mm256_max_pd(a, b);
#elif defined(__SSE2__)
  return _mm_max_pd(a, b);
#else
  return a > b ? a : b;
#endif
}

template <class S>
MAMBA_AOT_INLINE Vec<S> clamp(Vec<S> x, S low, S high) {
  return min(splat<S>(high), max(splat<S>(low), x));
}

template <class S>
MAMBA_AOT_INLINE bool any(IntVec<S> mask) {
#if defined(__AVX512F__)
  return _mm512_movepi8_mask((__m512i)mask) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_epi8((__m256i)mask) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_epi8((__m128i)mask) != 0;
#else
  typename Simd<S>::Int all = 0;
  for (int i = 0; i < Simd<S>::kLanes; ++i) all |= mask[i];
  return all != 0;
#endif
}

// One butterfly stage: lanes with bit `kStep` clear come from a and lanes with it set from b (or the
// reverse).
template <class S, int kStep, bool kUpper>
MAMBA_AOT_INLINE Vec<S> exchange(Vec<S> a, Vec<S> b) {
  constexpr int kLanes = Simd<S>::kLanes;
  IntVec<S> order{};
  for (int lane = 0; lane < kLanes; ++lane) {
    const bool from_b = (lane & kStep) != 0;
    order[lane] = kUpper ? (from_b ? kLanes + lane : lane + kStep) : (from_b ? kLanes + lane - kStep : lane);
  }
  return __builtin_shuffle(a, b, order);
}

template <class S, int kStep>
MAMBA_AOT_INLINE void transpose_stage(Vec<S>* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < Simd<S>::kLanes; ++i) {
    if (i & kStep) continue;
    const Vec<S> a = rows[i], b = rows[i + kStep];
    rows[i] = exchange<S, kStep, false>(a, b);
    rows[i + kStep] = exchange<S, kStep, true>(a, b);
  }
}

// Transposes a square of kLanes vectors in registers.
template <class S>
MAMBA_AOT_INLINE void transpose(Vec<S>* rows) {
  if constexpr (Simd<S>::kLanes >= 16) transpose_stage<S, 8>(rows);
  if constexpr (Simd<S>::kLanes >= 8) transpose_stage<S, 4>(rows);
  if constexpr (Simd<S>::kLanes >= 4) transpose_stage<S, 2>(rows);
  transpose_stage<S, 1>(rows);
}

// Halves of a and b added up: lanes with bit `kStep` clear are sums of a's, the others of b's.
template <class S, int kStep>
MAMBA_AOT_INLINE Vec<S> add_halves(Vec<S> a, Vec<S> b) {
  return exchange<S, kStep, false>(a, b) + exchange<S, kStep, true>(a, b);
}

// Lane i of the result is the sum of the lanes of rows[i], always added in the same order. A transposition
// that adds what it brings together: each stage has half the vectors of the one before.
template <class S, int kStep = Simd<S>::kLanes / 2>
MAMBA_AOT_INLINE Vec<S> sum_lanes(const Vec<S>* rows) {
  if constexpr (kStep == 0) {
    return rows[0];
  } else {
    Vec<S> sums[kStep];
#pragma GCC unroll 16
    for (int i = 0; i < kStep; ++i) sums[i] = add_halves<S, kStep>(rows[i], rows[i + kStep]);
    return sum_lanes<S, kStep / 2>(sums);
  }
}

// The sum of all lanes, halves at a time.
template <class S, int kStep = Simd<S>::kLanes / 2>
MAMBA_AOT_INLINE S sum_of_lanes(Vec<S> v) {
  if constexpr (kStep == 0) {
    return v[0];
  } else {
    return sum_of_lanes<S, kStep / 2>(v + exchange<S, kStep, true>(v, v));
  }
}

// A sum over steps (or states) in eight short chains of additions, which lose less than a long one.
template <class S>
struct StepSum {
  Vec<S> chain[8] = {};

  MAMBA_AOT_INLINE void add(int64_t step, Vec<S> x) { chain[step % 8] = chain[step % 8] + x; }
  MAMBA_AOT_INLINE Vec<S> total() const {
    return ((chain[0] + chain[1]) + (chain[2] + chain[3])) + ((chain[4] + chain[5]) + (chain[6] + chain[7]));
  }
};

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
