// How the states of a block of channels lie in vectors, and one step of them in each of two ways.
#pragma once

#include "cpu/selective_scan_discrete.h"
#include "cpu/state_update_plan.h"
#include "cpu/storage.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {

// A vector holds one state of several channels: for states of any number and strides, and complex ones.
template <class S, bool kComplex, bool kZoh>
struct ChannelsInLanes {
  // Rows [state, parts] of one block of channels: one pass where state and parts lie behind each other.
  static void read(const StateUpdateOperand& o, int64_t at, int lanes, int64_t state, int64_t parts,
                   Vec<S>* rows) {
    if (parts == 1 || (o.part == 1 && o.n == 2)) {
      load_tile<S>(o.view, at, o.channel, parts == 1 ? o.n : 1, lanes, state * parts, rows);
      return;
    }
    for (int64_t i = 0; i < state * parts; ++i) {
      load_tile<S>(o.view, at + i / 2 * o.n + i % 2 * o.part, o.channel, 0, lanes, 1, rows + i);
    }
  }

  static void write(const StateUpdateOperand& o, int64_t at, int lanes, int64_t state, int64_t parts,
                    const Vec<S>* rows) {
    if (parts == 1 || (o.part == 1 && o.n == 2)) {
      store_tile<S>(o.view, at, o.channel, parts == 1 ? o.n : 1, lanes, state * parts, rows);
      return;
    }
    for (int64_t i = 0; i < state * parts; ++i) {
      store_tile<S>(o.view, at + i / 2 * o.n + i % 2 * o.part, o.channel, 0, lanes, 1, rows + i);
    }
  }

  // Advances the states h of one block by one step; returns C h.
  static Vec<S> step(int64_t state, int, const Vec<S>* A, const S* B, const S* C, const S* gate, Vec<S> dt,
                     Vec<S> x, Vec<S>* h) {
    const Vec<S> dt_log2e = dt * splat<S>(kLog2E), dt_two_over_pi = dt * splat<S>(kTwoOverPi), dt_x = dt * x;
    StepSum<S> y;
    for (int64_t n = 0; n < state; ++n) {
      const Vec<S> g = splat<S>(gate ? gate[n] : 1);
      Inverse<S, kComplex> inverse;
      if constexpr (kComplex) {
        const Vec<S> a_re = A[2 * n], a_im = A[2 * n + 1];
        if constexpr (kZoh) inverse.set(a_re, a_im);
        const Discrete<S, true, kZoh> d(dt, dt_log2e, dt_two_over_pi, a_re, a_im, inverse);
        const Vec<S> B_re = splat<S>(B[2 * n]), B_im = splat<S>(B[2 * n + 1]);
        Vec<S> in_re = dt_x * B_re, in_im = dt_x * B_im;
        if constexpr (kZoh) {
          const Vec<S> p_re = d.phi_re * x, p_im = d.phi_im * x;
          in_re = fma(p_re, B_re, -(p_im * B_im));
          in_im = fma(p_re, B_im, p_im * B_re);
        }
        const Vec<S> decay_re = d.e_re * g, decay_im = d.e_im * g, re = h[2 * n], im = h[2 * n + 1];
        h[2 * n] = fma(decay_re, re, fma(-decay_im, im, in_re));
        h[2 * n + 1] = fma(decay_re, im, fma(decay_im, re, in_im));
        // Twice the real part: one state stands for a conjugate pair.
        const Vec<S> C_re = splat<S>(2 * C[2 * n]), C_im = splat<S>(2 * C[2 * n + 1]);
        y.add(n, fma(C_re, h[2 * n], -(C_im * h[2 * n + 1])));
      } else {
        if constexpr (kZoh) inverse.set(A[n], Vec<S>{});
        const Discrete<S, false, kZoh> d(dt, dt_log2e, dt_two_over_pi, A[n], Vec<S>{}, inverse);
        const Vec<S> in = (kZoh ? d.phi_re * x : dt_x) * splat<S>(B[n]);
        h[n] = fma(d.e_re * g, h[n], in);
        y.add(n, splat<S>(C[n]) * h[n]);
      }
    }
    return y.total();
  }
};

// A vector holds several states of one channel: where these lie side by side and fill whole vectors, nothing
// has to be turned.
template <class S, bool kZoh>
struct StatesInLanes {
  static constexpr int kLanes = Simd<S>::kLanes;

  static bool fit(const StateUpdatePlan& p) {
    return p.parts == 1 && p.state % kLanes == 0 && p.held.n == 1 && p.A.n == 1 &&
           (!p.intermediate.view.data || p.intermediate.n == 1);
  }

  // Rows [channels, state] of one block of channels.
  static void read(const StateUpdateOperand& o, int64_t at, int channels, int64_t state, int64_t,
                   Vec<S>* rows) {
    with_elements(o.view, at, [&](auto* from) {
      for (int i = 0; i < channels; ++i, from += o.channel) {
        for (int64_t n = 0; n < state; n += kLanes) *rows++ = load_row<S>(from + n);
      }
    });
  }

  static void write(const StateUpdateOperand& o, int64_t at, int channels, int64_t state, int64_t,
                    const Vec<S>* rows) {
    with_elements(o.view, at, [&](auto* to) {
      for (int i = 0; i < channels; ++i, to += o.channel) {
        for (int64_t n = 0; n < state; n += kLanes) store_row<S>(to + n, *rows++);
      }
    });
  }

  static Vec<S> step(int64_t state, int channels, const Vec<S>* A, const S* B, const S* C, const S* gate,
                     Vec<S> dt, Vec<S> x, Vec<S>* h) {
    const Vec<S> dt_log2e = dt * splat<S>(kLog2E), dt_x = dt * x;
    Vec<S> sums[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      sums[i] = Vec<S>{};
      if (i >= channels) continue;
      Vec<S> y{};
      const Vec<S> own_dt = splat<S>(dt[i]), own_log2e = splat<S>(dt_log2e[i]);
      const Vec<S> own_x = splat<S>(x[i]), own_dt_x = splat<S>(dt_x[i]);
      for (int64_t n = 0; n < state; n += kLanes, ++A, ++h) {
        Inverse<S, false> inverse;
        if constexpr (kZoh) inverse.set(*A, Vec<S>{});
        const Discrete<S, false, kZoh> d(own_dt, own_log2e, Vec<S>{}, *A, Vec<S>{}, inverse);
        const Vec<S> in = (kZoh ? d.phi_re * own_x : own_dt_x) * load<S>(B + n);
        *h = fma(gate ? d.e_re * load<S>(gate + n) : d.e_re, *h, in);
        y = fma(load<S>(C + n), *h, y);
      }
      sums[i] = y;
    }
    return sum_lanes<S>(sums);
  }

 private:
  template <class F>
  static MAMBA_AOT_INLINE void with_elements(const View& x, int64_t at, F f) {
    switch (x.dtype) {
      case DType::f32:
        return f(static_cast<float*>(x.data) + at);
      case DType::f64:
        return f(static_cast<double*>(x.data) + at);
      case DType::f16:
        return f(static_cast<Half*>(x.data) + at);
      case DType::bf16:
        return f(static_cast<BFloat16*>(x.data) + at);
    }
  }
};

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
