// From continuous to discrete time: the decay and the input weight of one state over one step.
#pragma once

#include "cpu/tile.h"
#include "cpu/vector_math.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {

// 1 / A for the zero-order hold; a state with A = 0 integrates to dt instead.
template <class S, bool kComplex>
struct Inverse {
  Vec<S> re, im, is_zero;

  MAMBA_AOT_INLINE void set(Vec<S> A_re, Vec<S> A_im) {
    const Vec<S> zero{}, one = splat<S>(1), tiny = splat<S>(Constants<S>::kTinyA);
    const Vec<S> a = A_re < zero ? -A_re : A_re, b = A_im < zero ? -A_im : A_im;
    const IntVec<S> vanishes = a > b ? a < tiny : b < tiny;
    is_zero = vanishes ? one : zero;
    if constexpr (kComplex) {
      // Scaled by the larger part, so that squares neither overflow nor vanish.
      const Vec<S> larger = vanishes ? one : (a > b ? a : b);
      const Vec<S> x = A_re / larger, y = A_im / larger;
      const Vec<S> norm = vanishes ? one : (x * x + y * y) * larger;
      re = vanishes ? zero : x / norm;
      im = vanishes ? zero : -y / norm;
    } else {
      re = vanishes ? zero : one / (vanishes ? one : A_re);
      im = zero;
    }
  }
};

// e = exp(dt A) and, for the zero-order hold, phi = expm1(dt A) / A of one state at one step.
template <class S, bool kComplex, bool kZoh>
struct Discrete {
  Vec<S> e_re, e_im, phi_re, phi_im;

  MAMBA_AOT_INLINE Discrete(Vec<S> dt, Vec<S> dt_log2e, Vec<S> dt_two_over_pi, Vec<S> A_re, Vec<S> A_im,
                            const Inverse<S, kComplex>& inverse) {
    Vec<S> size, size_less_one{};
    if constexpr (kZoh || sizeof(S) == 8) {
      const ExpParts<S> growth(dt, A_re, dt_log2e);
      size = growth.exp();
      size_less_one = growth.expm1();
    } else {
      size = exp_of_product(dt_log2e, A_re);
    }
    if constexpr (kComplex) {
      const SinCos<S> turn(dt, A_im, dt_two_over_pi);
      e_re = size * turn.cos;
      e_im = size * turn.sin;
      if constexpr (kZoh) {
        const Vec<S> m_re = fma(size_less_one, turn.cos, turn.cosm1);
        phi_re = fma(m_re, inverse.re, fma(-e_im, inverse.im, dt * inverse.is_zero));
        phi_im = fma(m_re, inverse.im, e_im * inverse.re);
      }
    } else {
      e_re = size;
      if constexpr (kZoh) phi_re = fma(size_less_one, inverse.re, dt * inverse.is_zero);
    }
  }
};

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
