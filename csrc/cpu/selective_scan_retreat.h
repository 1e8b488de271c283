// One chunk walked back, for one block of channels and kStates states.
// lam is the adjoint of h: lam_t = conj(C_t) dy_t + conj(a_{t+1}) lam_{t+1}; gradients follow PyTorch's
// convention for complex numbers, dL/dRe + i dL/dIm.
#pragma once

#include "cpu/selective_scan_advance.h"
#include "cpu/selective_scan_channel_sums.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {

// Tiles of the chunk, one vector per step; du and ddt are added to.
template <class S>
struct RetreatTiles {
  const Vec<S>*dt, *x, *dy;
  Vec<S>*du, *ddt;
};

// What is summed over time, per channel: [blocks, states, parts] of A and, where they are constant, B and C.
template <class S>
struct TimeSums {
  Vec<S>*dA, *dB, *dC;
};

// Sums over the steps of a chunk for a few states. Long sums are cut into short ones: these every 16 steps,
// then per chunk, then over the sequence.
template <class S, int kNumbers>
struct ChunkSums {
  Vec<S> recent[kNumbers] = {}, earlier[kNumbers] = {};

  MAMBA_AOT_INLINE void cut() {
#pragma GCC unroll 8
    for (int i = 0; i < kNumbers; ++i) {
      earlier[i] = earlier[i] + recent[i];
      recent[i] = Vec<S>{};
    }
  }
  MAMBA_AOT_INLINE void add_to(Vec<S>* sums) const {
    for (int i = 0; i < kNumbers; ++i) sums[i] = sums[i] + earlier[i];
  }
};

// d phi / d A of the zero-order hold: (dt e - phi) / A, which cancels where |dt A| is small: there its
// series.
template <class S, bool kComplex>
MAMBA_AOT_INLINE void phi_slope(Vec<S> dt, Vec<S> A_re, Vec<S> A_im, const Inverse<S, kComplex>& inverse,
                                Vec<S> e_re, Vec<S> e_im, Vec<S> phi_re, Vec<S> phi_im, Vec<S>& re,
                                Vec<S>& im) {
  const auto& terms = Constants<S>::kSlope;
  constexpr int kTerms = sizeof(terms) / sizeof(terms[0]);
  const Vec<S> w_re = dt * A_re, limit = splat<S>(Constants<S>::kSlopeLimit);
  const Vec<S> top_re = fma(dt, e_re, -phi_re);
  if constexpr (kComplex) {
    const Vec<S> w_im = dt * A_im, top_im = fma(dt, e_im, -phi_im);
    re = fma(top_re, inverse.re, -(top_im * inverse.im));
    im = fma(top_re, inverse.im, top_im * inverse.re);
    const IntVec<S> small = fma(w_re, w_re, w_im * w_im) < limit;
    if (!any<S>(small)) return;
    Vec<S> sum_re = splat<S>(terms[0]), sum_im{};
#pragma GCC unroll 16
    for (int i = 1; i < kTerms; ++i) {
      const Vec<S> old = sum_re;
      sum_re = fma(sum_re, w_re, fma(-sum_im, w_im, splat<S>(terms[i])));
      sum_im = fma(old, w_im, sum_im * w_re);
    }
    re = small ? dt * dt * sum_re : re;
    im = small ? dt * dt * sum_im : im;
  } else {
    re = top_re * inverse.re;
    const IntVec<S> small = w_re * w_re < limit;
    if (!any<S>(small)) return;
    re = small ? dt * dt * polynomial<S>(w_re, terms) : re;
  }
}

// Walks back from the end of the chunk. `carry` is conj(a_{t+1}) lam_{t+1} at the end of the chunk on entry,
// and at its start on return. On the way it asks for what is `ahead`.
template <class S, bool kComplex, bool kZoh, bool kGeneral, int kStates>
void retreat(const ScanItem<S>& item, int64_t at_item, int64_t first_state, const RetreatTiles<S>& tiles,
             const Tape<S>& tape, const ChannelSums<S>& sums, const TimeSums<S>& over_time,
             const Ahead& ahead) {
  constexpr int kParts = kComplex ? 2 : 1, kIm = kParts - 1;
  const int64_t part_stride = item.part_stride();
  const Vec<S>*A = item.A + at_item, *B = item.constant_B + at_item, *C = item.constant_C + at_item;
  Vec<S>* carry = item.h + at_item;
  const Vec<S> zero{};
  Vec<S> a_re[kStates], a_im[kStates], c_re[kStates], c_im[kStates];
  ChunkSums<S, kStates * kParts> dA, dB, dC;
  Inverse<S, kComplex> inverse[kStates];
#pragma GCC unroll 8
  for (int j = 0; j < kStates; ++j) {
    a_re[j] = A[j * kParts];
    a_im[j] = kComplex ? A[j * kParts + kIm] : zero;
    c_re[j] = carry[j * kParts];
    c_im[j] = kComplex ? carry[j * kParts + kIm] : zero;
    if constexpr (kZoh) inverse[j].set(a_re[j], a_im[j]);
  }
  for (int64_t t = item.steps - 1; t >= 0; --t) {
    ahead.ask(t);
    const StepRows<S> rows(item, t, first_state);
    const Vec<S> dt = tiles.dt[t], x = tiles.x[t], dy = tiles.dy[t];
    // C in `rows` carries the factor 2 of a complex scan, its gradient takes it from here.
    const Vec<S> dy_scaled = kComplex ? dy + dy : dy, dt_x = dt * x;
    Vec<S> ddt = zero, du = zero, lam_B = zero;
    WeightSums<S, kStates * kParts> weight_sums;
    // Adds to gradients of B and C both where they vary and where they are constant.
    const auto gather = [&](int number, Vec<S> of_B, Vec<S> of_C) {
      weight_sums.put(number, of_B, of_C);
      if constexpr (kGeneral) {
        dB.recent[number] = dB.recent[number] + of_B;
        dC.recent[number] = dC.recent[number] + of_C;
      }
    };
#pragma GCC unroll 8
    for (int j = 0; j < kStates; ++j) {
      const int64_t at = (t * kStates + j) * kParts, next = at + kStates * kParts;
      const Vec<S> e_re = tape.e[at], e_im = kComplex ? tape.e[at + kIm] : zero;
      const Vec<S> phi_re = kZoh ? tape.phi[at] : zero, phi_im = kZoh && kComplex ? tape.phi[at + kIm] : zero;
      const int re = j * kParts, im = re + kIm;
      const Vec<S> B_re = weight<kGeneral>(rows.B[j], B[re]), C_re = weight<kGeneral>(rows.C[j], C[re]);
      const Vec<S> gate = kGeneral ? splat<S>(rows.gate[j]) : splat<S>(1);
      if constexpr (kComplex) {
        const Vec<S> B_im = weight<kGeneral>(rows.B[part_stride + j], B[im]);
        const Vec<S> C_im = weight<kGeneral>(rows.C[part_stride + j], C[im]);
        const Vec<S> lam_re = fma(C_re, dy, c_re[j]), lam_im = fma(-C_im, dy, c_im[j]);
        const Vec<S> dC_re = dy_scaled * tape.h[next], dC_im = -dy_scaled * tape.h[next + 1];
        // conj(B) lam
        const Vec<S> bl_re = fma(B_re, lam_re, B_im * lam_im), bl_im = fma(B_re, lam_im, -(B_im * lam_re));
        if constexpr (kZoh) {
          const Vec<S> p_re = fma(phi_re, lam_re, phi_im * lam_im),
                       p_im = fma(phi_re, lam_im, -(phi_im * lam_re));
          gather(re, x * p_re, dC_re);
          gather(im, x * p_im, dC_im);
          du = fma(phi_re, bl_re, fma(phi_im, bl_im, du));
          const Vec<S> dphi_re = x * bl_re, dphi_im = x * bl_im;
          ddt = fma(e_re, dphi_re, fma(e_im, dphi_im, ddt));
          Vec<S> s_re, s_im;
          phi_slope<S, true>(dt, a_re[j], a_im[j], inverse[j], e_re, e_im, phi_re, phi_im, s_re, s_im);
          dA.recent[re] = fma(s_re, dphi_re, fma(s_im, dphi_im, dA.recent[re]));
          dA.recent[im] = fma(s_re, dphi_im, fma(-s_im, dphi_re, dA.recent[im]));
        } else {
          gather(re, dt_x * lam_re, dC_re);
          gather(im, dt_x * lam_im, dC_im);
          lam_B = lam_B + bl_re;
        }
        // conj(e) lam, and with the previous state conj(e) lam conj(h): the gradient of the gate, dt and A.
        const Vec<S> el_re = fma(e_re, lam_re, e_im * lam_im), el_im = fma(e_re, lam_im, -(e_im * lam_re));
        const Vec<S> p_re = tape.h[at], p_im = tape.h[at + 1];
        const Vec<S> q_re = fma(el_re, p_re, el_im * p_im), q_im = fma(el_im, p_re, -(el_re * p_im));
        const int64_t state_at = t * kStates + j;
        if constexpr (kGeneral) sums.gate[state_at] = sums.gate[state_at] + q_re;
        const Vec<S> w_re = gate * q_re, w_im = gate * q_im;
        ddt = fma(a_re[j], w_re, fma(a_im[j], w_im, ddt));
        dA.recent[re] = fma(dt, w_re, dA.recent[re]);
        dA.recent[im] = fma(dt, w_im, dA.recent[im]);
        c_re[j] = gate * el_re;
        c_im[j] = gate * el_im;
      } else {
        const Vec<S> lam = fma(C_re, dy, c_re[j]);
        const Vec<S> dC_here = dy * tape.h[next];
        const Vec<S> bl = B_re * lam;
        if constexpr (kZoh) {
          gather(re, x * phi_re * lam, dC_here);
          du = fma(phi_re, bl, du);
          const Vec<S> dphi = x * bl;
          ddt = fma(e_re, dphi, ddt);
          Vec<S> s_re, s_im;
          phi_slope<S, false>(dt, a_re[j], zero, inverse[j], e_re, zero, phi_re, zero, s_re, s_im);
          dA.recent[re] = fma(s_re, dphi, dA.recent[re]);
        } else {
          gather(re, dt_x * lam, dC_here);
          lam_B = lam_B + bl;
        }
        const Vec<S> el = e_re * lam, q = el * tape.h[at];
        if constexpr (kGeneral) sums.gate[at] = sums.gate[at] + q;
        const Vec<S> w = gate * q;
        ddt = fma(a_re[j], w, ddt);
        dA.recent[re] = fma(dt, w, dA.recent[re]);
        c_re[j] = gate * el;
      }
    }
    if constexpr (!kZoh) {
      du = fma(dt, lam_B, du);
      ddt = fma(x, lam_B, ddt);
    }
    weight_sums.add_to(sums.weights + t * weight_sums.kVectors);
    tiles.du[t] = tiles.du[t] + du;
    tiles.ddt[t] = tiles.ddt[t] + ddt;
    if (t % 16 == 0) {
      dA.cut();
      if constexpr (kGeneral) {
        dB.cut();
        dC.cut();
      }
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < kStates; ++j) {
    carry[j * kParts] = c_re[j];
    if constexpr (kComplex) carry[j * kParts + kIm] = c_im[j];
  }
  dA.add_to(over_time.dA + at_item);
  if constexpr (kGeneral) {
    dB.add_to(over_time.dB + at_item);
    dC.add_to(over_time.dC + at_item);
  }
}

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
