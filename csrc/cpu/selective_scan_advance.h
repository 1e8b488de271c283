// The recurrence over one chunk, for one block of channels and kStates states: states stay in registers.
#pragma once

#include "cpu/selective_scan_discrete.h"
#include "cpu/selective_scan_item.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {

// Passes over a few states each, whose sums over states are added up apart from those of other passes.
constexpr int64_t kPassesInSum = 8;

// What the backward sweep needs of the forward one, per step and state: h has one more row, the start state.
template <class S>
struct Tape {
  Vec<S>*h, *e, *phi;
};

// B or C of one state at one step: one of its two shares is 0.
template <bool kGeneral, class S>
MAMBA_AOT_INLINE Vec<S> weight(S along_time, const Vec<S>& constant) {
  return kGeneral ? splat<S>(along_time) + constant : splat<S>(along_time);
}

// Rows of one step of the packed chunk.
template <class S>
struct StepRows {
  const S *B, *C, *gate;

  MAMBA_AOT_INLINE StepRows(const ScanItem<S>& item, int64_t t, int64_t first_state)
      : B(reinterpret_cast<const S*>(item.B + t * item.row_vectors) + first_state),
        C(reinterpret_cast<const S*>(item.C + t * item.row_vectors) + first_state),
        gate(reinterpret_cast<const S*>(item.gate + t * item.part_vectors) + first_state) {}
};

// Advances h (kStates states from first_state on, number `at_item` of the item's) through the chunk and adds
// C h to y. On the way it asks for what is `ahead`.
template <class S, bool kComplex, bool kZoh, bool kGeneral, int kStates, bool kKeep>
void advance(const ScanItem<S>& item, int64_t at_item, int64_t first_state, const Vec<S>* dt_tile,
             const Vec<S>* x_tile, Vec<S>* state, Vec<S>* y_tile, const Tape<S>& tape, const Ahead& ahead) {
  constexpr int kParts = kComplex ? 2 : 1;
  const int64_t part_stride = item.part_stride();
  const Vec<S>*A = item.A + at_item, *B = item.constant_B + at_item, *C = item.constant_C + at_item;
  Vec<S> a_re[kStates], a_im[kStates], h_re[kStates], h_im[kStates];
  Inverse<S, kComplex> inverse[kStates];
#pragma GCC unroll 8
  for (int j = 0; j < kStates; ++j) {
    a_re[j] = A[j * kParts];
    a_im[j] = kComplex ? A[j * kParts + kParts - 1] : Vec<S>{};
    h_re[j] = state[j * kParts];
    h_im[j] = kComplex ? state[j * kParts + kParts - 1] : Vec<S>{};
    if constexpr (kZoh) inverse[j].set(a_re[j], a_im[j]);
  }
  for (int64_t t = 0; t < item.steps; ++t) {
    ahead.ask(t);
    const StepRows<S> rows(item, t, first_state);
    const Vec<S> dt = dt_tile[t], x = x_tile[t];
    const Vec<S> dt_log2e = dt * splat<S>(kLog2E), dt_two_over_pi = dt * splat<S>(kTwoOverPi);
    const Vec<S> dt_x = dt * x;
    // Summed apart from the tile: short chains of additions lose less.
    Vec<S> y{};
#pragma GCC unroll 8
    for (int j = 0; j < kStates; ++j) {
      const Discrete<S, kComplex, kZoh> d(dt, dt_log2e, dt_two_over_pi, a_re[j], a_im[j], inverse[j]);
      if constexpr (kComplex) {
        const Vec<S> B_re = weight<kGeneral>(rows.B[j], B[j * 2]);
        const Vec<S> B_im = weight<kGeneral>(rows.B[part_stride + j], B[j * 2 + 1]);
        Vec<S> in_re, in_im;
        if constexpr (kZoh) {
          const Vec<S> p_re = d.phi_re * x, p_im = d.phi_im * x;
          in_re = fma(p_re, B_re, -(p_im * B_im));
          in_im = fma(p_re, B_im, p_im * B_re);
        } else {
          in_re = dt_x * B_re;
          in_im = dt_x * B_im;
        }
        Vec<S> decay_re = d.e_re, decay_im = d.e_im;
        if constexpr (kGeneral) {
          decay_re = decay_re * splat<S>(rows.gate[j]);
          decay_im = decay_im * splat<S>(rows.gate[j]);
        }
        const Vec<S> re = h_re[j], im = h_im[j];
        h_re[j] = fma(decay_re, re, fma(-decay_im, im, in_re));
        h_im[j] = fma(decay_re, im, fma(decay_im, re, in_im));
        y = fma(weight<kGeneral>(rows.C[j], C[j * 2]), h_re[j], y);
        y = fma(-weight<kGeneral>(rows.C[part_stride + j], C[j * 2 + 1]), h_im[j], y);
      } else {
        const Vec<S> in = (kZoh ? d.phi_re * x : dt_x) * weight<kGeneral>(rows.B[j], B[j]);
        Vec<S> decay = d.e_re;
        if constexpr (kGeneral) decay = decay * splat<S>(rows.gate[j]);
        h_re[j] = fma(decay, h_re[j], in);
        y = fma(weight<kGeneral>(rows.C[j], C[j]), h_re[j], y);
      }
      if constexpr (kKeep) {
        const int64_t at = (t * kStates + j) * kParts, next = at + kStates * kParts;
        tape.h[next] = h_re[j];
        tape.e[at] = d.e_re;
        if constexpr (kZoh) tape.phi[at] = d.phi_re;
        if constexpr (kComplex) {
          tape.h[next + 1] = h_im[j];
          tape.e[at + 1] = d.e_im;
          if constexpr (kZoh) tape.phi[at + 1] = d.phi_im;
        }
      }
    }
    y_tile[t] = y_tile[t] + y;
  }
#pragma GCC unroll 8
  for (int j = 0; j < kStates; ++j) {
    state[j * kParts] = h_re[j];
    if constexpr (kComplex) state[j * kParts + kParts - 1] = h_im[j];
  }
}

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
