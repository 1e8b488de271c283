// exp, expm1, sin/cos, softplus and silu on vectors, accurate to 1-2 units in the last place.
// Polynomials are Chebyshev fits on the reduced range; the constants of a type sit together in Constants<S>.
#pragma once

#include "cpu/simd.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {

template <class S>
struct Constants;

template <>
struct Constants<float> {
  // Adding this leaves the nearest integer in the low bits of the sum.
  static constexpr float kRound = 12582912.0f;
  static constexpr int kMantissaBits = 23, kExponentBias = 127;
  // The high part of ln2 and of pi/2 has few bits, so that a small integer times it is exact.
  static constexpr float kLn2[] = {0.69311523f, 3.1946183e-05f};
  static constexpr float kHalfPi[] = {1.5708008f, -4.454455e-06f, -1.6513996e-13f};
  // (expm1(r) - r) / r^2, highest power first.
  static constexpr float kExp[] = {0.0013926927f, 0.008363774f, 0.04166655f, 0.16666573f, 0.5f};
  // (2^r - 1) / r for r in [-1/2, 1/2].
  static constexpr float kExp2[] = {0.00015353362f, 0.0013398875f, 0.00961843692f,
                                    0.0555033237f,  0.240226477f,  0.693147182f};
  // (sin(r) - r) / r^3 and (cos(r) - 1 + r^2 / 2) / r^4 in r^2.
  static constexpr float kSin[] = {-0.0001958283f, 0.008332725f, -0.16666664f};
  static constexpr float kCos[] = {2.4542871e-05f, -0.0013888279f, 0.041666664f};
  // (2 atanh(s) / s - 2) / s^2 in s^2.
  static constexpr float kLog[] = {0.20787673f, 0.17464685f, 0.22264713f,
                                   0.28570306f, 0.4000001f,  0.6666667f};
  // Below this |A|, exp(dt A) is 1 and its integral over a step is dt, to the last bit.
  static constexpr float kTinyA = 1e-18f;
  // Derivative of expm1(w) / w: (j + 1) / (j + 2)! in w, enough terms where |w|^2 is below the limit.
  static constexpr float kSlope[] = {1.0f / 43545600, 1.0f / 3991680, 1.0f / 403200, 1.0f / 45360,
                                     1.0f / 5760,     1.0f / 840,     1.0f / 144,    1.0f / 30,
                                     1.0f / 8,        1.0f / 3,       0.5f};
  static constexpr float kSlopeLimit = 1.0f;
};

template <>
struct Constants<double> {
  static constexpr double kRound = 6755399441055744.0;
  static constexpr int kMantissaBits = 52, kExponentBias = 1023;
  static constexpr double kLn2[] = {0.6931471806019545, -4.2009150726810846e-11};
  static constexpr double kHalfPi[] = {1.5707963276654482, -8.705515692000731e-10, -3.50343439808993e-19};
  static constexpr double kExp[] = {2.510134692835034e-08,  2.7621338669142925e-07,
                                    2.75572664186123e-06,   2.4801581641395993e-05,
                                    0.00019841269864380513, 0.0013888888918939168,
                                    0.008333333333329793,   0.04166666666662064,
                                    0.16666666666666669,    0.5};
  static constexpr double kSin[] = {1.5915308955361589e-10,  -2.505109230449097e-08, 2.7557315910914203e-06,
                                    -0.00019841269836385367, 0.0083333333333307,     -0.16666666666666666};
  static constexpr double kCos[] = {-1.1380868029020694e-11, 2.0876121532143695e-09, -2.7557317151843354e-07,
                                    2.4801587298532216e-05,  -0.0013888888888887241, 0.041666666666666664};
  static constexpr double kLog[] = {0.1563065935164128,  0.07492096285811775, 0.10845190255279337,
                                    0.1173427740447827,  0.1333517877332365,  0.1538454395719128,
                                    0.1818181989822249,  0.22222222198231484, 0.2857142857160016,
                                    0.39999999999999525, 0.6666666666666666};
  static constexpr double kTinyA = 1e-100;
  static constexpr double kSlope[] = {
      1.0 / 6706022400, 1.0 / 518918400, 1.0 / 43545600, 1.0 / 3991680, 1.0 / 403200, 1.0 / 45360, 1.0 / 5760,
      1.0 / 840,        1.0 / 144,       1.0 / 30,       1.0 / 8,       1.0 / 3,      0.5};
  static constexpr double kSlopeLimit = 0.0625;
};

constexpr double kLog2E = 1.4426950408889634;
constexpr double kTwoOverPi = 0.6366197723675814;

template <class S, int kTerms>
MAMBA_AOT_INLINE Vec<S> polynomial(Vec<S> x, const S (&coefficients)[kTerms]) {
  Vec<S> sum = splat<S>(coefficients[0]);
#pragma GCC unroll 16
  for (int i = 1; i < kTerms; ++i) sum = fma(sum, x, splat<S>(coefficients[i]));
  return sum;
}

// 2^k for a vector of integers held as floats; saturates instead of wrapping around.
template <class S>
MAMBA_AOT_INLINE Vec<S> power_of_two(Vec<S> k) {
  using K = Constants<S>;
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4) return _mm512_scalef_ps(splat<S>(1), k);
  if constexpr (sizeof(S) == 8) return _mm512_scalef_pd(splat<S>(1), k);
#endif
  const Vec<S> limited = clamp<S>(k, -K::kExponentBias, K::kExponentBias);
  const IntVec<S> bits = (IntVec<S>)(limited + splat<S>(K::kRound));
  const typename Simd<S>::Int bias = K::kExponentBias;
  return (Vec<S>)((bits << K::kMantissaBits) + (bias << K::kMantissaBits));
}

// exp(x y) and expm1(x y), given x log2(e). The product is used unrounded where there is an fma.
template <class S>
struct ExpParts {
  Vec<S> scale, tail;

  MAMBA_AOT_INLINE ExpParts(Vec<S> x, Vec<S> y, Vec<S> x_log2e) {
    using K = Constants<S>;
    const Vec<S> k = fma(x_log2e, y, splat<S>(K::kRound)) - splat<S>(K::kRound);
    Vec<S> r = fma(x, y, -(k * splat<S>(K::kLn2[0])));
    r = fma(k, splat<S>(-K::kLn2[1]), r);
    // Only matters where k is beyond the exponent range: keeps 0 * inf out.
    r = clamp<S>(r, -1, 1);
    tail = fma(polynomial<S>(r, K::kExp) * r, r, r);
    scale = power_of_two<S>(k);
  }

  MAMBA_AOT_INLINE Vec<S> exp() const { return fma(scale, tail, scale); }
  MAMBA_AOT_INLINE Vec<S> expm1() const { return fma(scale, tail, scale - splat<S>(1)); }
};

template <class S>
MAMBA_AOT_INLINE Vec<S> exp(Vec<S> x) {
  return ExpParts<S>(x, splat<S>(1), x * splat<S>(kLog2E)).exp();
}

template <class S>
MAMBA_AOT_INLINE Vec<S> expm1(Vec<S> x) {
  return ExpParts<S>(x, splat<S>(1), x * splat<S>(kLog2E)).expm1();
}

// exp(x y), given x log2(e), in fewer instructions than ExpParts: the product is rounded, so the relative
// error grows with |x y|, as it does where PyTorch multiplies first. Below 2^-126 the result is 0.
MAMBA_AOT_INLINE VecF exp_of_product(VecF x_log2e, VecF y) {
  using K = Constants<float>;
#if defined(__AVX512DQ__)
  // The distance to the nearest integer, and a scaling that knows what overflows. Numbers below the normal
  // ones, on which some machines are slow, are kept out; a NaN is not.
  const VecF product = x_log2e * y;
  const VecF part = _mm512_reduce_ps(product, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const VecF power = fma(polynomial<float>(part, K::kExp2), part, splat<float>(1));
  const __mmask16 normal = _mm512_cmp_ps_mask(product, splat<float>(1 - K::kExponentBias), _CMP_NLT_UQ);
  return _mm512_maskz_scalef_ps(normal, power, product - part);
#else
  const VecF t = max(splat<float>(-K::kExponentBias), x_log2e * y);
  const VecF rounded = min(splat<float>(K::kRound + K::kExponentBias), t + splat<float>(K::kRound));
  const VecF f = t - (rounded - splat<float>(K::kRound));
  const VecF scale = (VecF)(((VecI)rounded + K::kExponentBias) << K::kMantissaBits);
  return fma(scale, polynomial<float>(f, K::kExp2) * f, scale);
#endif
}

// sin, cos and cos - 1 of x y, given x 2/pi. Cody-Waite reduction to a quarter turn; beyond about 1e6 (float)
// the result is as meaningless as the rounded product, but stays within [-1, 1].
template <class S>
struct SinCos {
  Vec<S> sin, cos, cosm1;

  MAMBA_AOT_INLINE SinCos(Vec<S> x, Vec<S> y, Vec<S> x_two_over_pi) {
    using K = Constants<S>;
    using I = IntVec<S>;
    const Vec<S> rounded = fma(x_two_over_pi, y, splat<S>(K::kRound));
    const Vec<S> n = rounded - splat<S>(K::kRound);
    Vec<S> r = fma(x, y, -(n * splat<S>(K::kHalfPi[0])));
    r = fma(n, splat<S>(-K::kHalfPi[1]), r);
    r = fma(n, splat<S>(-K::kHalfPi[2]), r);
    r = clamp<S>(r, -1, 1);
    const Vec<S> z = r * r;
    const Vec<S> s = fma(polynomial<S>(z, K::kSin) * z, r, r);
    const Vec<S> cm1 = z * fma(polynomial<S>(z, K::kCos), z, splat<S>(-0.5));
    const Vec<S> c = cm1 + splat<S>(1);
    const I quarter = (I)rounded;
    const I odd = (quarter & 1) != 0;
    constexpr int kSign = sizeof(S) * 8 - 2;
    sin = (Vec<S>)((I)(odd ? c : s) ^ ((quarter & 2) << kSign));
    cos = (Vec<S>)((I)(odd ? s : c) ^ (((quarter + 1) & 2) << kSign));
    cosm1 = (quarter & 3) == 0 ? cm1 : cos - splat<S>(1);
  }
};

// log(1 + x) for x in [0, 1], through atanh.
template <class S>
MAMBA_AOT_INLINE Vec<S> log1p_unit(Vec<S> x) {
  const Vec<S> s = x / (x + splat<S>(2));
  const Vec<S> z = s * s;
  return fma(polynomial<S>(z, Constants<S>::kLog) * z, s, s + s);
}

// log(1 + exp(x)); x itself above 20, as in PyTorch.
template <class S>
MAMBA_AOT_INLINE Vec<S> softplus(Vec<S> x) {
  const Vec<S> zero{};
  const Vec<S> soft = max(zero, x) + log1p_unit<S>(exp<S>(x < zero ? x : -x));
  return x > splat<S>(20) ? x : soft;
}

// The same in double, rounded once: for the step size dt of complex states, which turn its error into an
// error of the phase, |dt A| times as large.
template <class S>
MAMBA_AOT_INLINE Vec<S> softplus_exact(Vec<S> x) {
  if constexpr (sizeof(S) == 8) {
    return softplus<double>(x);
  } else {
    typedef float Narrow __attribute__((vector_size(kVectorBytes / 2)));
    Narrow half[2];
    std::memcpy(half, &x, sizeof x);
    for (Narrow& h : half)
      h = __builtin_convertvector(softplus<double>(__builtin_convertvector(h, VecD)), Narrow);
    std::memcpy(&x, half, sizeof x);
    return x;
  }
}

// d softplus(x) / dx = 1 - exp(-softplus(x)), from the softplus.
template <class S>
MAMBA_AOT_INLINE Vec<S> softplus_slope(Vec<S> soft) {
  return soft > splat<S>(20) ? splat<S>(1) : -expm1<S>(-soft);
}

// silu(z) = z sigmoid(z) and its slope, without overflow for large |z|.
template <class S>
struct Silu {
  Vec<S> value, slope;

  MAMBA_AOT_INLINE explicit Silu(Vec<S> z) {
    const Vec<S> one = splat<S>(1);
    const IntVec<S> negative = z < Vec<S>{};
    const Vec<S> small = exp<S>(negative ? z : -z);
    const Vec<S> inverse = one / (one + small);
    const Vec<S> rest = small * inverse;
    const Vec<S> sigmoid = negative ? rest : inverse, complement = negative ? inverse : rest;
    value = z * sigmoid;
    slope = fma(value, complement, sigmoid);
  }
};

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
