// Steps of the selective scan with a kept state. Compiled once per instruction set.
#include "cpu/selective_scan_discrete.h"
#include "cpu/state_update_plan.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {
namespace {

// Blocks of one item at the narrowest vectors, those of two doubles.
constexpr int kMostBlocks = kSplitChannels / 2;

// Rows [state, parts] of one block of channels: one pass where state and parts lie behind each other.
template <class S>
void load_states(const StateUpdateOperand& o, int64_t at, int lanes, int64_t state, int64_t parts,
                 Vec<S>* rows) {
  if (parts == 1 || (o.part == 1 && o.n == 2)) {
    load_tile<S>(o.view, at, o.channel, parts == 1 ? o.n : 1, lanes, state * parts, rows);
    return;
  }
  for (int64_t i = 0; i < state * parts; ++i) {
    load_tile<S>(o.view, at + i / 2 * o.n + i % 2 * o.part, o.channel, 0, lanes, 1, rows + i);
  }
}

template <class S>
void store_states(const StateUpdateOperand& o, int64_t at, int lanes, int64_t state, int64_t parts,
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

// A number for each channel of a block.
template <class S>
Vec<S> load_channels(const StateUpdateOperand& o, int64_t batch, int64_t step, int64_t at, int lanes) {
  Vec<S> x{};
  if (o.view.data) {
    load_tile<S>(o.view, batch * o.batch + step * o.step + at, o.channel, 0, lanes, 1, &x);
  }
  return x;
}

// The slot of a sequence, or -1 for padding.
int64_t slot_of(const StateUpdatePlan& p, int64_t slot) {
  return slot < 0 || slot >= p.slots || slot == p.pad_slot ? -1 : slot;
}

// Brings the states of one block of channels closer while another one is computed.
void prefetch_states(const StateUpdateOperand& o, int64_t at, int lanes, int64_t state, int64_t parts) {
  const int64_t size = o.view.dtype == DType::f64 ? 8 : o.view.dtype == DType::f32 ? 4 : 2;
  if (o.n != parts) return;
  for (int lane = 0; lane < lanes; ++lane) {
    const char* row = static_cast<const char*>(o.view.data) + (at + lane * o.channel) * size;
    for (int64_t byte = 0; byte < state * parts * size; byte += 64) __builtin_prefetch(row + byte, 1);
  }
}

// The channels from `channel` on of one head: what they need of every sequence, in registers and scratch.
template <class S>
struct Block {
  int64_t head, channel;
  int lanes;
  Vec<S> bias, skip;
  const Vec<S>* A;

  MAMBA_AOT_INLINE int64_t at(const StateUpdateOperand& o) const {
    return head * o.head + channel * o.channel;
  }
};

// What becomes of one sequence: the slots, and after how many steps the state is stored (negative: never).
struct Row {
  int64_t slot, target, last;
};

Row row_of(const StateUpdatePlan& p, int64_t b) {
  Row row{p.source ? slot_of(p, p.source[b * p.source_stride]) : b, 0, p.steps};
  row.target = p.target ? slot_of(p, p.target[b * p.target_stride]) : row.slot;
  if (p.accepted) {
    const int64_t accepted = p.accepted[b * p.accepted_stride];
    row.last = accepted < 0 ? 0 : accepted < p.steps ? accepted : p.steps;
  }
  if (row.target < 0 || !p.update_state || (row.last == 0 && row.target == row.slot)) row.last = -1;
  return row;
}

template <class S, bool kComplex, bool kZoh>
void update_block(const StateUpdatePlan& p, const Block<S>& block, int64_t b, const Row& row, Vec<S>* h) {
  const int64_t width = p.state * p.parts, group = block.head / (p.heads / p.groups);
  const int lanes = block.lanes;
  const int64_t out_at = b * p.out.batch + block.at(p.out), held_at = block.at(p.held);
  if (row.slot < 0) {
    const Vec<S> zero{};
    for (int64_t t = 0; t < p.steps; ++t) {
      store_tile<S>(p.out.view, out_at + t * p.out.step, p.out.channel, 0, lanes, 1, &zero);
    }
    return;
  }
  load_states<S>(p.held, row.slot * p.held.batch + held_at, lanes, p.state, p.parts, h);
  const int64_t target_at = row.target * p.held.batch + held_at;
  if (row.last == 0) store_states<S>(p.held, target_at, lanes, p.state, p.parts, h);
  for (int64_t t = 0; t < p.steps; ++t) {
    Vec<S> dt = load_channels<S>(p.dt, b, t, block.at(p.dt), lanes) + block.bias;
    if (p.softplus) dt = softplus<S>(dt);
    const Vec<S> x = load_channels<S>(p.x, b, t, block.at(p.x), lanes);
    const int64_t inputs_at = ((b * p.steps + t) * p.groups + group) * width;
    const S* gate = p.gate ? static_cast<const S*>(p.gate) + (b * p.steps + t) * p.state : nullptr;
    Vec<S> y = step<S, kComplex, kZoh>(p.state, block.A, static_cast<const S*>(p.B) + inputs_at,
                                       static_cast<const S*>(p.C) + inputs_at, gate, dt, x, h);
    if (t + 1 == row.last) store_states<S>(p.held, target_at, lanes, p.state, p.parts, h);
    if (p.intermediate.view.data) {
      const int64_t at = b * p.intermediate.batch + t * p.intermediate.step + block.at(p.intermediate);
      store_states<S>(p.intermediate, at, lanes, p.state, p.parts, h);
    }
    y = fma(block.skip, x, y);
    if (p.z.view.data) y = y * Silu<S>(load_channels<S>(p.z, b, t, block.at(p.z), lanes)).value;
    store_tile<S>(p.out.view, out_at + t * p.out.step, p.out.channel, 0, lanes, 1, &y);
  }
}

template <class S, bool kComplex, bool kZoh>
int64_t run(const StateUpdatePlan& p, int64_t begin, int64_t end, void* scratch) {
  constexpr int kLanes = Simd<S>::kLanes;
  const int64_t width = p.state * p.parts, most = (p.split_channels + kLanes - 1) / kLanes;
  Vec<S>*h = static_cast<Vec<S>*>(scratch), *rates = h + width;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t head = i / p.splits, first = i % p.splits * p.split_channels;
    const int64_t limit = first + p.split_channels, last = limit < p.channels ? limit : p.channels;
    Block<S> blocks[kMostBlocks];
    int count = 0;
    for (int64_t c = first; c < last; c += kLanes) {
      Block<S>& block = blocks[count];
      block.head = head;
      block.channel = c;
      block.lanes = static_cast<int>(last - c < kLanes ? last - c : kLanes);
      Vec<S>* A = rates + count++ * width;
      load_states<S>(p.A, block.at(p.A), block.lanes, p.state, p.parts, A);
      block.A = A;
      block.bias = load_channels<S>(p.dt_bias, 0, 0, block.at(p.dt_bias), block.lanes);
      block.skip = load_channels<S>(p.D, 0, 0, block.at(p.D), block.lanes);
    }
    // One sequence after the other, so that a state is read from its beginning to its end.
    Row next = row_of(p, 0);
    for (int64_t b = 0; b < p.batch; ++b) {
      const Row row = next;
      if (b + 1 < p.batch) next = row_of(p, b + 1);
      for (int k = 0; k < count; ++k) {
        const Block<S>& block = blocks[k];
        if (b + 1 < p.batch && next.slot >= 0) {
          const int64_t at = next.slot * p.held.batch + block.at(p.held);
          prefetch_states(p.held, at, block.lanes, p.state, p.parts);
        }
        update_block<S, kComplex, kZoh>(p, block, b, row, h);
      }
    }
  }
  return (1 + most) * width * kVectorBytes;
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
int64_t state_update_steps(const StateUpdatePlan& plan, int64_t begin, int64_t end, void* scratch) {
  return with_lane_type(plan.float64,
                        [&](auto lane) { return pick<decltype(lane)>(plan, begin, end, scratch); });
}

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
