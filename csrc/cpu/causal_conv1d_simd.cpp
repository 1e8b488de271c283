// Causal convolution, forward, backward and one update. Compiled once per instruction set.
// Channels are the lanes; tiles of [steps, channels] come from any memory layout.
#include "cpu/causal_conv1d_plan.h"
#include "cpu/tile.h"
#include "cpu/vector_math.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {
namespace {

constexpr int64_t kSteps = 64;
constexpr int kMaxTaps = 4;

// The filter of one block of channels.
template <class S>
struct Filter {
  Vec<S> tap[kMaxTaps], bias;

  Filter(const void* weight, const void* bias_data, int64_t channel, int lanes, int64_t width) : bias{} {
    load_tile<S>(flat_view<S>(weight), channel * width, width, 1, lanes, width, tap);
    if (bias_data) load_tile<S>(flat_view<S>(bias_data), channel, 1, 0, lanes, 1, &bias);
  }

  // The value before the activation, from the `width` inputs that end at its step.
  template <int kWidth>
  MAMBA_AOT_INLINE Vec<S> at(const Vec<S>* inputs) const {
    Vec<S> y = bias;
#pragma GCC unroll 4
    for (int k = 0; k < kWidth; ++k) y = fma(tap[k], inputs[k], y);
    return y;
  }
};

// One block of channels of one sequence.
template <class S>
struct Block {
  const ConvPlan& plan;
  int64_t batch, channel;
  int lanes;

  void load_steps(const View& v, int64_t t, int64_t steps, Vec<S>* tile) const {
    load_tile<S>(v, batch * v.stride[0] + channel * v.stride[1] + t * v.stride[2], v.stride[1], v.stride[2],
                 lanes, steps, tile);
  }
  void store_steps(const View& v, int64_t t, int64_t steps, const Vec<S>* tile) const {
    store_tile<S>(v, batch * v.stride[0] + channel * v.stride[1] + t * v.stride[2], v.stride[1], v.stride[2],
                  lanes, steps, tile);
  }
  // The width - 1 inputs before step t, from the initial states (or zero) where that is before the sequence.
  void load_history(int64_t t, Vec<S>* tile) const {
    const int64_t before = plan.width - 1, missing = t < before ? before - t : 0;
    for (int64_t i = 0; i < missing; ++i) tile[i] = Vec<S>{};
    if (plan.initial_states.data && missing) load_steps(plan.initial_states, t, missing, tile);
    if (missing < before) load_steps(plan.x, t - before + missing, before - missing, tile + missing);
  }
};

// Calls visit(Block, first, last, lanes) for each block of the item.
struct Item {
  int64_t batch, segment, first_channel, last_channel, begin, end;

  Item(const ConvPlan& plan, int64_t index) {
    const int64_t split = index % plan.splits, rest = index / plan.splits;
    segment = rest % plan.segments;
    batch = rest / plan.segments;
    first_channel = split * plan.split_channels;
    last_channel = first_channel + plan.split_channels;
    if (last_channel > plan.channels) last_channel = plan.channels;
    begin = segment * plan.segment_length;
    end = begin + plan.segment_length;
    if (end > plan.length) end = plan.length;
  }
};

template <class S>
MAMBA_AOT_INLINE Block<S> block_at(const ConvPlan& plan, const Item& item, int64_t channel) {
  const int64_t rest = item.last_channel - channel;
  return {plan, item.batch, channel, static_cast<int>(rest < Simd<S>::kLanes ? rest : Simd<S>::kLanes)};
}

template <class S, int kWidth>
void forward_item(const ConvPlan& plan, const Item& item) {
  constexpr int kLanes = Simd<S>::kLanes;
  Vec<S> inputs[kWidth - 1 + kSteps], y[kSteps];
  for (int64_t t = item.begin; t < item.end; t += kSteps) {
    const int64_t steps = item.end - t < kSteps ? item.end - t : kSteps;
    for (int64_t channel = item.first_channel; channel < item.last_channel; channel += kLanes) {
      const Block<S> block = block_at<S>(plan, item, channel);
      const Filter<S> filter(plan.weight, plan.bias, channel, block.lanes, kWidth);
      block.load_history(t, inputs);
      block.load_steps(plan.x, t, steps, inputs + kWidth - 1);
      if (plan.silu) {
        for (int64_t i = 0; i < steps; ++i) y[i] = Silu<S>(filter.template at<kWidth>(inputs + i)).value;
      } else {
        for (int64_t i = 0; i < steps; ++i) y[i] = filter.template at<kWidth>(inputs + i);
      }
      block.store_steps(plan.out, t, steps, y);
    }
  }
}

// grad[i] becomes the gradient before the activation, for `steps` steps from inputs[0] on.
template <class S, int kWidth>
MAMBA_AOT_INLINE void through_activation(const ConvPlan& plan, const Filter<S>& filter, const Vec<S>* inputs,
                                         int64_t steps, Vec<S>* grad) {
  if (!plan.silu) return;
  for (int64_t i = 0; i < steps; ++i) {
    grad[i] = grad[i] * Silu<S>(filter.template at<kWidth>(inputs + i)).slope;
  }
}

template <class S, int kWidth>
void backward_block(const ConvPlan& plan, const Item& item, const Block<S>& block) {
  constexpr int64_t kBefore = kWidth - 1;
  const Filter<S> filter(plan.weight, plan.bias, block.channel, block.lanes, kWidth);
  // grad holds a chunk and the first width - 1 steps of the one after it, which its inputs reach.
  Vec<S> inputs[kBefore + kSteps], grad[kSteps + kBefore], dx[kSteps];
  Vec<S> dweight[kWidth] = {}, dbias{};
  const int64_t chunks = (item.end - item.begin + kSteps - 1) / kSteps;
  for (int64_t i = 0; i < kBefore; ++i) grad[i] = Vec<S>{};
  const int64_t after = plan.length - item.end < kBefore ? plan.length - item.end : kBefore;
  if (after > 0) {
    block.load_history(item.end, inputs);
    block.load_steps(plan.x, item.end, after, inputs + kBefore);
    block.load_steps(plan.dout, item.end, after, grad);
    through_activation<S, kWidth>(plan, filter, inputs, after, grad);
  }
  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
    const int64_t t = item.begin + chunk * kSteps;
    const int64_t steps = item.end - t < kSteps ? item.end - t : kSteps;
    Vec<S> next[kBefore];
    for (int64_t i = 0; i < kBefore; ++i) next[i] = grad[i];
    for (int64_t i = 0; i < kBefore; ++i) grad[steps + i] = next[i];
    block.load_history(t, inputs);
    block.load_steps(plan.x, t, steps, inputs + kBefore);
    block.load_steps(plan.dout, t, steps, grad);
    through_activation<S, kWidth>(plan, filter, inputs, steps, grad);
    for (int64_t i = 0; i < steps; ++i) {
      Vec<S> sum{};
#pragma GCC unroll 4
      for (int k = 0; k < kWidth; ++k) sum = fma(filter.tap[k], grad[i + kBefore - k], sum);
      dx[i] = sum;
    }
    StepSum<S> chunk_bias;
    for (int64_t i = 0; i < steps; ++i) chunk_bias.add(i, grad[i]);
    dbias = dbias + chunk_bias.total();
    for (int k = 0; k < kWidth; ++k) {
      StepSum<S> chunk_weight;
      for (int64_t i = 0; i < steps; ++i) chunk_weight.add(i, grad[i] * inputs[i + k]);
      dweight[k] = dweight[k] + chunk_weight.total();
    }
    block.store_steps(plan.dx, t, steps, dx);
  }
  if (item.segment == 0 && plan.dinitial_states.data) {
    // Input i of the initial states is read by the first i + 1 outputs.
    for (int64_t i = 0; i < kBefore; ++i) {
      Vec<S> sum{};
      for (int64_t k = 0; k <= i; ++k)
        sum = fma(filter.tap[k], i - k < plan.length ? grad[i - k] : Vec<S>{}, sum);
      dx[i] = sum;
    }
    block.store_steps(plan.dinitial_states, 0, kBefore, dx);
  }
  const int64_t at = (item.batch * plan.segments + item.segment) * plan.channels + block.channel;
  store_tile<S>(flat_view<S>(plan.dweight), at * kWidth, kWidth, 1, block.lanes, kWidth, dweight);
  if (plan.dbias) store_tile<S>(flat_view<S>(plan.dbias), at, 1, 0, block.lanes, 1, &dbias);
}

template <class S, int kWidth>
void backward_item(const ConvPlan& plan, const Item& item) {
  for (int64_t channel = item.first_channel; channel < item.last_channel; channel += Simd<S>::kLanes) {
    backward_block<S, kWidth>(plan, item, block_at<S>(plan, item, channel));
  }
}

template <class S, int kWidth>
void update_item(const ConvUpdatePlan& plan, int64_t split, Vec<S>* inputs) {
  constexpr int kLanes = Simd<S>::kLanes;
  const int64_t begin = split * plan.split_channels, limit = begin + plan.split_channels;
  const int64_t end = limit < plan.channels ? limit : plan.channels;
  Vec<S>* y = inputs + plan.state_length + plan.length;
  for (int64_t channel = begin; channel < end; channel += kLanes) {
    const int lanes = static_cast<int>(end - channel < kLanes ? end - channel : kLanes);
    const Filter<S> filter(plan.weight, plan.bias, channel, lanes, kWidth);
    for (int64_t b = 0; b < plan.batch; ++b) {
      const int64_t slot = plan.indices ? plan.indices[b * plan.indices_stride] : b;
      const View &x = plan.x, &out = plan.out, &state = plan.conv_state;
      const int64_t out_at = b * out.stride[0] + channel * out.stride[1];
      if (slot < 0) {
        for (int64_t i = 0; i < plan.length; ++i) y[i] = Vec<S>{};
        store_tile<S>(out, out_at, out.stride[1], out.stride[2], lanes, plan.length, y);
        continue;
      }
      const int64_t state_at = slot * state.stride[0] + channel * state.stride[1];
      load_tile<S>(state, state_at, state.stride[1], state.stride[2], lanes, plan.state_length, inputs);
      load_tile<S>(x, b * x.stride[0] + channel * x.stride[1], x.stride[1], x.stride[2], lanes, plan.length,
                   inputs + plan.state_length);
      const Vec<S>* window = inputs + plan.state_length - (kWidth - 1);
      for (int64_t i = 0; i < plan.length; ++i) {
        const Vec<S> sum = filter.template at<kWidth>(window + i);
        y[i] = plan.silu ? Silu<S>(sum).value : sum;
      }
      store_tile<S>(state, state_at, state.stride[1], state.stride[2], lanes, plan.state_length,
                    inputs + plan.length);
      store_tile<S>(out, out_at, out.stride[1], out.stride[2], lanes, plan.length, y);
    }
  }
}

// Calls f with the width as a compile-time number.
template <template <int> class F, class... Args>
MAMBA_AOT_INLINE void for_width(int64_t width, const Args&... args) {
  if (width == 2) F<2>::run(args...);
  if (width == 3) F<3>::run(args...);
  if (width == 4) F<4>::run(args...);
}

}  // namespace

template <int kWidth>
struct ForwardRange {
  static void run(const ConvPlan& plan, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (plan.float64) {
        forward_item<double, kWidth>(plan, Item(plan, i));
      } else {
        forward_item<float, kWidth>(plan, Item(plan, i));
      }
    }
  }
};

template <int kWidth>
struct BackwardRange {
  static void run(const ConvPlan& plan, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (plan.float64) {
        backward_item<double, kWidth>(plan, Item(plan, i));
      } else {
        backward_item<float, kWidth>(plan, Item(plan, i));
      }
    }
  }
};

template <int kWidth>
struct UpdateRange {
  static void run(const ConvUpdatePlan& plan, int64_t begin, int64_t end, void* scratch) {
    for (int64_t i = begin; i < end; ++i) {
      if (plan.float64) {
        update_item<double, kWidth>(plan, i, static_cast<Vec<double>*>(scratch));
      } else {
        update_item<float, kWidth>(plan, i, static_cast<Vec<float>*>(scratch));
      }
    }
  }
};

// Each runs the items [begin, end) in `scratch`; without scratch, returns the bytes it needs.
int64_t causal_conv1d_forward(const ConvPlan& plan, int64_t begin, int64_t end, void*) {
  for_width<ForwardRange>(plan.width, plan, begin, end);
  return 0;
}

int64_t causal_conv1d_backward(const ConvPlan& plan, int64_t begin, int64_t end, void*) {
  for_width<BackwardRange>(plan.width, plan, begin, end);
  return 0;
}

int64_t causal_conv1d_step(const ConvUpdatePlan& plan, int64_t begin, int64_t end, void* scratch) {
  if (scratch) for_width<UpdateRange>(plan.width, plan, begin, end, scratch);
  return (plan.state_length + 2 * plan.length) * kVectorBytes;
}

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
