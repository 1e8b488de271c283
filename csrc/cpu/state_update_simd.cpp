// One step of the selective scan. Compiled once per instruction set.
#include "cpu/selective_scan_discrete.h"
#include "cpu/state_update_plan.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {
namespace {

// Rows [state, parts] of one block of channels: one pass where state and parts lie behind each other.
template <class S>
void load_states(const View& v, int64_t at, int lanes, int64_t state, int64_t parts, Vec<S>* rows) {
  if (parts == 1 || (v.stride[3] == 1 && v.stride[2] == 2)) {
    load_tile<S>(v, at, v.stride[1], parts == 1 ? v.stride[2] : 1, lanes, state * parts, rows);
    return;
  }
  for (int64_t i = 0; i < state * parts; ++i) {
    load_tile<S>(v, at + i / 2 * v.stride[2] + i % 2 * v.stride[3], v.stride[1], 0, lanes, 1, rows + i);
  }
}

template <class S>
void store_states(const View& v, int64_t at, int lanes, int64_t state, int64_t parts, const Vec<S>* rows) {
  if (parts == 1 || (v.stride[3] == 1 && v.stride[2] == 2)) {
    store_tile<S>(v, at, v.stride[1], parts == 1 ? v.stride[2] : 1, lanes, state * parts, rows);
    return;
  }
  for (int64_t i = 0; i < state * parts; ++i) {
    store_tile<S>(v, at + i / 2 * v.stride[2] + i % 2 * v.stride[3], v.stride[1], 0, lanes, 1, rows + i);
  }
}

template <class S>
Vec<S> load_one(const View& v, int64_t at, int64_t stride, int lanes) {
  Vec<S> x{};
  if (v.data) load_tile<S>(v, at, stride, 0, lanes, 1, &x);
  return x;
}

// Advances the states h of one block by one step; returns C h.
template <class S, bool kComplex, bool kZoh>
Vec<S> step(int64_t state, const Vec<S>* A, const S* B, const S* C, const S* gate, Vec<S> dt, Vec<S> x,
            Vec<S>* h) {
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

template <class S, bool kComplex, bool kZoh>
void update_block(const StateUpdatePlan& p, int64_t group, int64_t channel, int lanes, Vec<S>* scratch) {
  const int64_t row = p.state * p.parts;
  Vec<S>*A = scratch, *h = scratch + row;
  View A_view = flat_view<S>(p.A);
  load_tile<S>(A_view, channel * row, row, 1, lanes, row, A);
  const Vec<S> bias = load_one<S>(flat_view<S>(p.dt_bias), channel, 1, lanes);
  const Vec<S> skip = load_one<S>(flat_view<S>(p.D), channel, 1, lanes);
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t slot = p.indices ? p.indices[b * p.indices_stride] : b;
    const int64_t out_at = b * p.out.stride[0] + channel * p.out.stride[1];
    Vec<S> y{};
    if (slot >= 0) {
      Vec<S> dt =
          load_one<S>(p.dt, b * p.dt.stride[0] + channel * p.dt.stride[1], p.dt.stride[1], lanes) + bias;
      if (p.softplus) dt = softplus<S>(dt);
      const Vec<S> x = load_one<S>(p.x, b * p.x.stride[0] + channel * p.x.stride[1], p.x.stride[1], lanes);
      const int64_t held_at = slot * p.held.stride[0] + channel * p.held.stride[1];
      const int64_t inputs_at = (b * p.groups + group) * row;
      load_states<S>(p.held, held_at, lanes, p.state, p.parts, h);
      y = step<S, kComplex, kZoh>(p.state, A, static_cast<const S*>(p.B) + inputs_at,
                                  static_cast<const S*>(p.C) + inputs_at,
                                  p.gate ? static_cast<const S*>(p.gate) + b * p.state : nullptr, dt, x, h);
      store_states<S>(p.held, held_at, lanes, p.state, p.parts, h);
      y = fma(skip, x, y);
      if (p.z.data) {
        y = y * Silu<S>(load_one<S>(p.z, b * p.z.stride[0] + channel * p.z.stride[1], p.z.stride[1], lanes))
                    .value;
      }
    }
    store_tile<S>(p.out, out_at, p.out.stride[1], 0, lanes, 1, &y);
  }
}

template <class S, bool kComplex, bool kZoh>
int64_t run(const StateUpdatePlan& p, int64_t begin, int64_t end, void* scratch) {
  constexpr int kLanes = Simd<S>::kLanes;
  const int64_t group_channels = p.channels / p.groups;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t group = i / p.splits, first = i % p.splits * p.split_channels;
    const int64_t limit = first + p.split_channels, last = limit < group_channels ? limit : group_channels;
    for (int64_t c = first; c < last; c += kLanes) {
      const int lanes = static_cast<int>(last - c < kLanes ? last - c : kLanes);
      update_block<S, kComplex, kZoh>(p, group, group * group_channels + c, lanes,
                                      static_cast<Vec<S>*>(scratch));
    }
  }
  return 2 * p.state * p.parts * kVectorBytes;
}

template <class S>
int64_t pick(const StateUpdatePlan& p, int64_t begin, int64_t end, void* scratch) {
  if (p.parts == 2) {
    return p.zoh ? run<S, true, true>(p, begin, end, scratch) : run<S, true, false>(p, begin, end, scratch);
  }
  return p.zoh ? run<S, false, true>(p, begin, end, scratch) : run<S, false, false>(p, begin, end, scratch);
}

}  // namespace

// Runs the items [begin, end) in `scratch`; returns the bytes of scratch that takes.
int64_t state_update_step(const StateUpdatePlan& plan, int64_t begin, int64_t end, void* scratch) {
  return plan.float64 ? pick<double>(plan, begin, end, scratch) : pick<float>(plan, begin, end, scratch);
}

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
