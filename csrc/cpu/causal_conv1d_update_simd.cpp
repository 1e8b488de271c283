// New steps of a causal convolution, and the state that keeps them. Compiled once per instruction set.
#include "cpu/causal_conv1d_block.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {
namespace {

// [channels, steps] of one sequence, from a channel on.
template <class S>
struct Rows {
  const View& view;
  int64_t offset;
  int lanes;

  Rows(const View& v, int64_t first, int64_t channel, int lane_count)
      : view(v), offset(first * v.stride[0] + channel * v.stride[1]), lanes(lane_count) {}

  void load(int64_t from, int64_t steps, Vec<S>* tile) const {
    load_tile<S>(view, offset + from * view.stride[2], view.stride[1], view.stride[2], lanes, steps, tile);
  }
  void store(int64_t from, int64_t steps, const Vec<S>* tile) const {
    store_tile<S>(view, offset + from * view.stride[2], view.stride[1], view.stride[2], lanes, steps, tile);
  }
};

template <class S, int kWidth>
void update_item(const ConvUpdatePlan& plan, int64_t split, Vec<S>* inputs) {
  constexpr int kLanes = Simd<S>::kLanes;
  const int64_t begin = split * plan.split_channels, limit = begin + plan.split_channels;
  const int64_t end = limit < plan.channels ? limit : plan.channels, kept = plan.state_length;
  Vec<S>* y = inputs + kept + plan.length;
  for (int64_t channel = begin; channel < end; channel += kLanes) {
    const int lanes = static_cast<int>(end - channel < kLanes ? end - channel : kLanes);
    const Filter<S, kWidth> filter(plan.weight, plan.bias, channel, lanes, plan.width);
    for (int64_t b = 0; b < plan.batch; ++b) {
      const int64_t slot = plan.indices ? plan.indices[b * plan.indices_stride] : b;
      const Rows<S> out(plan.out, b, channel, lanes);
      if (slot < 0) {
        for (int64_t i = 0; i < plan.length; ++i) y[i] = Vec<S>{};
        out.store(0, plan.length, y);
        continue;
      }
      const Rows<S> state(plan.conv_state, slot, channel, lanes);
      // Where the oldest step is, and the next new one goes; a state that shifts begins with its oldest.
      int64_t oldest = plan.seen && kept ? plan.seen[b * plan.seen_stride] % kept : 0;
      if (oldest < 0) oldest += kept;
      state.load(oldest, kept - oldest, inputs);
      state.load(0, oldest, inputs + kept - oldest);
      Rows<S>(plan.x, b, channel, lanes).load(0, plan.length, inputs + kept);
      const Vec<S>* window = inputs + kept - (plan.width - 1);
      for (int64_t i = 0; i < plan.length; ++i) {
        const Vec<S> sum = filter.at(window + i);
        y[i] = plan.silu ? Silu<S>(sum).value : sum;
      }
      if (plan.seen) {
        for (int64_t i = plan.length > kept ? plan.length - kept : 0; i < plan.length; ++i) {
          state.store((oldest + i) % kept, 1, inputs + kept + i);
        }
      } else {
        state.store(0, kept, inputs + plan.length);
      }
      out.store(0, plan.length, y);
    }
  }
}

}  // namespace

template <int kWidth>
struct UpdateRange {
  static void run(const ConvUpdatePlan& plan, int64_t begin, int64_t end, void* scratch) {
    with_lane_type(plan.float64, [&](auto lane) {
      using S = decltype(lane);
      for (int64_t i = begin; i < end; ++i) {
        update_item<S, kWidth>(plan, i, static_cast<Vec<S>*>(scratch));
      }
    });
  }
};

// Runs the items [begin, end) in `scratch`; without scratch, returns the bytes it needs.
int64_t causal_conv1d_step(const ConvUpdatePlan& plan, int64_t begin, int64_t end, void* scratch) {
  if (scratch) for_width<UpdateRange>(plan.width, plan, begin, end, scratch);
  return (plan.state_length + 2 * plan.length) * kVectorBytes;
}

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
