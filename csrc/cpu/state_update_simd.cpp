// Steps of the selective scan with a kept state. Compiled once per instruction set.
#include "cpu/state_update_lanes.h"
#include "cpu/state_update_plan.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {
namespace {

// The slot of a sequence, or -1 for padding.
int64_t slot_of(const StateUpdatePlan& p, int64_t slot) {
  return slot < 0 || slot >= p.slots || slot == p.pad_slot ? -1 : slot;
}

// Brings states closer while those before them are computed.
void prefetch_states(const StateUpdateOperand& o, int64_t at, int64_t channels, int64_t state,
                     int64_t parts) {
  const int64_t size = o.view.dtype == DType::f64 ? 8 : o.view.dtype == DType::f32 ? 4 : 2;
  if (o.n != parts) return;
  for (int64_t i = 0; i < channels; ++i) {
    const char* row = static_cast<const char*>(o.view.data) + (at + i * o.channel) * size;
    for (int64_t byte = 0; byte < state * parts * size; byte += 64) __builtin_prefetch(row + byte, 1);
  }
}

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

// Some channels of one head, in blocks that fill vectors, and what they need of every sequence.
template <class S, class Lanes>
struct Item {
  static constexpr int kLanes = Simd<S>::kLanes;
  static constexpr int kMostBlocks = (kSplitChannels + kLanes - 1) / kLanes;

  const StateUpdatePlan& p;
  int64_t head, first, channels, width;
  int blocks;
  // [blocks, width] each.
  Vec<S>*h, *A;
  Vec<S> bias[kMostBlocks], skip[kMostBlocks];

  Item(const StateUpdatePlan& plan, int64_t index, Vec<S>* scratch)
      : p(plan),
        head(index / p.splits),
        first(index % p.splits * p.split_channels),
        channels(p.channels - first < p.split_channels ? p.channels - first : p.split_channels),
        width(p.state * p.parts),
        blocks(static_cast<int>((channels + kLanes - 1) / kLanes)),
        h(scratch),
        A(scratch + blocks * width) {
    for (int k = 0; k < blocks; ++k) {
      Lanes::read(p.A, at(p.A) + k * kLanes * p.A.channel, lanes(k), p.state, p.parts, A + k * width);
    }
    load_channels(p.dt_bias, 0, 0, bias);
    load_channels(p.D, 0, 0, skip);
  }

  static int64_t scratch_bytes(const StateUpdatePlan& p) {
    return 2 * kMostBlocks * p.state * p.parts * kVectorBytes;
  }

  int64_t at(const StateUpdateOperand& o) const { return head * o.head + first * o.channel; }
  int lanes(int block) const {
    const int64_t rest = channels - block * kLanes;
    return static_cast<int>(rest < kLanes ? rest : kLanes);
  }

  // A number for each channel.
  void load_channels(const StateUpdateOperand& o, int64_t b, int64_t t, Vec<S>* to) const {
    if (o.view.data) {
      load_tiles<S>(o.view, b * o.batch + t * o.step + at(o), o.channel, 0, channels, 1, to, 1);
    } else {
      for (int k = 0; k < blocks; ++k) to[k] = Vec<S>{};
    }
  }

  void store_out(int64_t b, int64_t t, const Vec<S>* y) const {
    store_tiles<S>(p.out.view, b * p.out.batch + t * p.out.step + at(p.out), p.out.channel, 0, channels, 1, y,
                   1);
  }

  void write(const StateUpdateOperand& o, int64_t from, int k) const {
    Lanes::write(o, from + at(o) + k * kLanes * o.channel, lanes(k), p.state, p.parts, h + k * width);
  }

  void pad(int64_t b) const {
    const Vec<S> zeros[kMostBlocks] = {};
    for (int64_t t = 0; t < p.steps; ++t) store_out(b, t, zeros);
  }

  // All steps of one sequence. What channels need once a step is computed for all blocks together: one
  // block's chain of dependent instructions then hides that of the next.
  void update(int64_t b, const Row& row) const {
    const int64_t group = head / (p.heads / p.groups), target = row.target * p.held.batch;
    for (int64_t t = 0; t < p.steps; ++t) {
      Vec<S> dt[kMostBlocks], x[kMostBlocks], y[kMostBlocks];
      load_channels(p.dt, b, t, dt);
      load_channels(p.x, b, t, x);
      for (int k = 0; k < blocks; ++k) {
        dt[k] = dt[k] + bias[k];
        if (p.softplus) dt[k] = p.parts == 2 ? softplus_exact<S>(dt[k]) : softplus<S>(dt[k]);
      }
      const int64_t inputs = ((b * p.steps + t) * p.groups + group) * width;
      const S *B = static_cast<const S*>(p.B) + inputs, *C = static_cast<const S*>(p.C) + inputs;
      const S* gate = p.gate ? static_cast<const S*>(p.gate) + (b * p.steps + t) * p.state : nullptr;
      for (int k = 0; k < blocks; ++k) {
        if (t == 0) {
          const int64_t held = row.slot * p.held.batch + at(p.held) + k * kLanes * p.held.channel;
          Lanes::read(p.held, held, lanes(k), p.state, p.parts, h + k * width);
          if (row.last == 0) write(p.held, target, k);
        }
        y[k] = Lanes::step(p.state, lanes(k), A + k * width, B, C, gate, dt[k], x[k], h + k * width);
        if (t + 1 == row.last) write(p.held, target, k);
        if (p.intermediate.view.data) {
          write(p.intermediate, b * p.intermediate.batch + t * p.intermediate.step, k);
        }
      }
      for (int k = 0; k < blocks; ++k) y[k] = fma(skip[k], x[k], y[k]);
      if (p.z.view.data) {
        Vec<S> z[kMostBlocks];
        load_channels(p.z, b, t, z);
        for (int k = 0; k < blocks; ++k) y[k] = y[k] * Silu<S>(z[k]).value;
      }
      store_out(b, t, y);
    }
  }
};

template <class S, class Lanes>
int64_t run(const StateUpdatePlan& p, int64_t begin, int64_t end, void* scratch) {
  for (int64_t i = begin; i < end; ++i) {
    const Item<S, Lanes> item(p, i, static_cast<Vec<S>*>(scratch));
    // One sequence after the other, so that a state is read from its beginning to its end.
    Row next = row_of(p, 0);
    for (int64_t b = 0; b < p.batch; ++b) {
      const Row row = next;
      if (b + 1 < p.batch) {
        next = row_of(p, b + 1);
        if (next.slot >= 0) {
          prefetch_states(p.held, next.slot * p.held.batch + item.at(p.held), item.channels, p.state,
                          p.parts);
        }
      }
      if (row.slot < 0) {
        item.pad(b);
      } else {
        item.update(b, row);
      }
    }
  }
  return Item<S, Lanes>::scratch_bytes(p);
}

template <class S, bool kZoh>
int64_t pick_lanes(const StateUpdatePlan& p, int64_t begin, int64_t end, void* scratch) {
  if (p.parts == 2) return run<S, ChannelsInLanes<S, true, kZoh>>(p, begin, end, scratch);
  if (StatesInLanes<S, kZoh>::fit(p)) return run<S, StatesInLanes<S, kZoh>>(p, begin, end, scratch);
  return run<S, ChannelsInLanes<S, false, kZoh>>(p, begin, end, scratch);
}

}  // namespace

// Runs the items [begin, end) in `scratch`; returns the bytes of scratch that takes.
int64_t state_update_steps(const StateUpdatePlan& plan, int64_t begin, int64_t end, void* scratch) {
  return with_lane_type(plan.float64, [&](auto lane) {
    using S = decltype(lane);
    return plan.zoh ? pick_lanes<S, true>(plan, begin, end, scratch)
                    : pick_lanes<S, false>(plan, begin, end, scratch);
  });
}

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
