// Causal convolution over a sequence, forward and backward. Compiled once per instruction set.
// Channels are the lanes; tiles of [steps, channels] come from any memory layout.
#include "cpu/causal_conv1d_block.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {
namespace {

constexpr int64_t kSteps = 64;

// The inputs around a chunk of steps: `inputs[0]` is width - 1 steps before step t. Packed sequences end at
// their start: what the filter meets before that comes from the initial states, or is zero.
template <class S, int kWidth, bool kPacked>
struct Chunk {
  const Block<S>& block;
  const Filter<S, kWidth>& filter;
  const Vec<S>* inputs;
  int64_t t;

  MAMBA_AOT_INLINE int64_t start_of(int64_t i) const {
    return block.plan.starts[block.batch * block.plan.length + t + i];
  }

  MAMBA_AOT_INLINE bool is_padding(int64_t i) const {
    if constexpr (kPacked) return start_of(i) > t + i;
    return false;
  }

  // What tap k of step i meets.
  MAMBA_AOT_INLINE Vec<S> input(int64_t i, int64_t k) const {
    if constexpr (kPacked) {
      const int64_t early = start_of(i) - (t + i - filter.width() + 1 + k);
      if (early > 0) return before(i, filter.width() - 1 - early);
    }
    return inputs[i + k];
  }

  // What all taps of step i meet, in `space` where that differs from the inputs in their order.
  MAMBA_AOT_INLINE const Vec<S>* window(int64_t i, Vec<S>* space) const {
    if constexpr (kPacked) {
      if (start_of(i) > t + i - filter.width() + 1) {
        for (int64_t k = 0; k < filter.width(); ++k) space[k] = input(i, k);
        return space;
      }
    }
    return inputs + i;
  }

  // Input `index` of the initial states of the sequence that step i belongs to.
  Vec<S> before(int64_t i, int64_t index) const {
    const ConvPlan& plan = block.plan;
    const View& states = plan.initial_states;
    const int64_t row = plan.rows[block.batch * plan.length + t + i];
    Vec<S> value{};
    if (row >= 0 && index >= 0 && states.data) {
      load_tile<S>(states,
                   row * states.stride[0] + block.channel * states.stride[1] + index * states.stride[2],
                   states.stride[1], states.stride[2], block.lanes, 1, &value);
    }
    return value;
  }
};

template <class S, int kWidth, bool kPacked>
void forward_item(const ConvPlan& plan, const Item& item) {
  constexpr int kLanes = Simd<S>::kLanes, kRoom = Filter<S, kWidth>::kRoom, kRows = kRoom - 1 + kSteps;
  const int64_t before = plan.width - 1;
  const Block<S> all = whole_item<S>(plan, item);
  const Filters<S, kWidth> filters(plan, item);
  Vec<S> tiles[kSplitChannels / kLanes * kRows], space[kRoom];
  for (int64_t t = item.begin; t < item.end; t += kSteps) {
    const int64_t steps = item.end - t < kSteps ? item.end - t : kSteps;
    all.load_history(t, tiles, kRows);
    all.load_steps(plan.x, t, steps, tiles + before, kRows);
    for (int64_t b = 0; b * kLanes < all.lanes; ++b) {
      const Block<S> block = block_at<S>(plan, item, item.first_channel + b * kLanes);
      // A copy, so that it stays in registers.
      const Filter<S, kWidth> filter = filters.of_block[b];
      // A result takes the place of the oldest input that it was made from.
      Vec<S>*const inputs = tiles + b * kRows, *const y = inputs;
      const Chunk<S, kWidth, kPacked> chunk{block, filter, inputs, t};
      const Ahead next = block.ahead(plan.x, t + steps), out = block.ahead(plan.out, t);
      for (int64_t i = 0; i < steps; ++i) {
        next.ask(i);
        out.ask(i);
        const Vec<S> sum = filter.at(chunk.window(i, space));
        y[i] = plan.silu ? Silu<S>(sum).value : sum;
      }
      if constexpr (kPacked) {
        for (int64_t i = 0; i < steps; ++i) y[i] = chunk.is_padding(i) ? Vec<S>{} : y[i];
      }
    }
    all.store_steps(plan.out, t, steps, tiles, kRows);
  }
}

// grad[i] becomes the gradient before the activation, for `steps` steps from the chunk's first one on.
template <class S, int kWidth, bool kPacked>
MAMBA_AOT_INLINE void through_activation(const Chunk<S, kWidth, kPacked>& chunk, int64_t steps,
                                         Vec<S>* grad) {
  Vec<S> space[Filter<S, kWidth>::kRoom];
  if constexpr (kPacked) {
    for (int64_t i = 0; i < steps; ++i) grad[i] = chunk.is_padding(i) ? Vec<S>{} : grad[i];
  }
  if (!chunk.block.plan.silu) return;
  for (int64_t i = 0; i < steps; ++i) {
    grad[i] = grad[i] * Silu<S>(chunk.filter.at(chunk.window(i, space))).slope;
  }
}

// The gradient of the initial states of the sequence that starts at step i: their input j is read by its
// first j + 1 outputs.
template <class S, int kWidth, bool kPacked>
void initial_states_gradient(const Chunk<S, kWidth, kPacked>& chunk, int64_t i, int64_t row,
                             const Vec<S>* grad) {
  const ConvPlan& plan = chunk.block.plan;
  const View& states = plan.dinitial_states;
  const int64_t before = chunk.filter.width() - 1, start = chunk.t + i;
  Vec<S> sums[Filter<S, kWidth>::kRoom];
  for (int64_t j = 0; j < before; ++j) {
    sums[j] = Vec<S>{};
    for (int64_t m = 0; m <= j && start + m < plan.length; ++m) {
      if (kPacked && chunk.start_of(i + m) != start) break;
      sums[j] = fma(chunk.filter.tap[j - m], grad[i + m], sums[j]);
    }
  }
  store_tile<S>(states, row * states.stride[0] + chunk.block.channel * states.stride[1], states.stride[1],
                states.stride[2], chunk.block.lanes, before, sums);
}

// The sums over an item that are the gradients of one block's filter.
template <class S, int kWidth>
struct FilterSums {
  Vec<S> tap[Filter<S, kWidth>::kRoom] = {}, bias{};
};

// One block of channels through one chunk. `grad` holds the gradients of the chunk's results and, behind
// them, those before the activation of the first width - 1 steps of the chunk after it, which its inputs
// reach. Gradients of the inputs take the place of the chunk's inputs.
template <class S, int kWidth, bool kPacked>
void backward_chunk(const Chunk<S, kWidth, kPacked>& chunk, int64_t steps, Vec<S>* grad, Vec<S>* dx,
                    FilterSums<S, kWidth>& sums) {
  const ConvPlan& plan = chunk.block.plan;
  const int64_t width = chunk.filter.width(), before = width - 1;
  const Block<S>& block = chunk.block;
  const Ahead x_before = block.ahead(plan.x, chunk.t - kSteps),
              dout_before = block.ahead(plan.dout, chunk.t - kSteps), dx_here = block.ahead(plan.dx, chunk.t);
  through_activation(chunk, steps, grad);
  StepSum<S> chunk_bias;
  for (int64_t i = 0; i < steps; ++i) {
    x_before.ask(i);
    dx_here.ask(i);
    chunk_bias.add(i, grad[i]);
  }
  sums.bias = sums.bias + chunk_bias.total();
  for (int64_t k = 0; k < width; ++k) {
    StepSum<S> chunk_tap;
    for (int64_t i = 0; i < steps; ++i) chunk_tap.add(i, grad[i] * chunk.input(i, k));
    sums.tap[k] = sums.tap[k] + chunk_tap.total();
  }
  for (int64_t i = 0; i < steps; ++i) {
    dout_before.ask(i);
    Vec<S> sum{};
    int64_t first = 0;
    if constexpr (kPacked) {
      // Tap k met this step as an input of step i + before - k, unless that is of another sequence.
      while (first < width && (chunk.t + i + before - first >= plan.length ||
                               chunk.start_of(i + before - first) > chunk.t + i)) {
        ++first;
      }
    }
#pragma GCC unroll 4
    for (int64_t k = first; k < width; ++k) sum = fma(chunk.filter.tap[k], grad[i + before - k], sum);
    dx[i] = sum;
  }
  if (!kPacked || !plan.dinitial_states.data) return;
  for (int64_t i = 0; i < steps; ++i) {
    const int64_t row = plan.rows[chunk.block.batch * plan.length + chunk.t + i];
    if (row >= 0 && chunk.start_of(i) == chunk.t + i) initial_states_gradient(chunk, i, row, grad);
  }
}

template <class S, int kWidth, bool kPacked>
void backward_item(const ConvPlan& plan, const Item& item) {
  constexpr int kLanes = Simd<S>::kLanes, kRoom = Filter<S, kWidth>::kRoom, kRows = kRoom - 1 + kSteps;
  constexpr int kBlocks = kSplitChannels / kLanes;
  const Block<S> all = whole_item<S>(plan, item);
  const Filters<S, kWidth> filters(plan, item);
  const int64_t before = plan.width - 1;
  Vec<S> inputs[kBlocks * kRows], grads[kBlocks * kRows], next[kRoom];
  FilterSums<S, kWidth> sums[kBlocks];
  // f(chunk at step t, its gradients, number) for each block of channels.
  const auto for_blocks = [&](int64_t t, auto f) {
    for (int64_t b = 0; b * kLanes < all.lanes; ++b) {
      const Block<S> block = block_at<S>(plan, item, item.first_channel + b * kLanes);
      // A copy, so that it stays in registers.
      const Filter<S, kWidth> filter = filters.of_block[b];
      f(Chunk<S, kWidth, kPacked>{block, filter, inputs + b * kRows, t}, grads + b * kRows, b);
    }
  };
  const auto load = [&](int64_t t, int64_t steps) {
    all.load_history(t, inputs, kRows);
    all.load_steps(plan.x, t, steps, inputs + before, kRows);
    all.load_steps(plan.dout, t, steps, grads, kRows);
  };
  for (int64_t b = 0; b < kBlocks; ++b) {
    for (int64_t i = 0; i < before; ++i) grads[b * kRows + i] = Vec<S>{};
  }
  const int64_t after = plan.length - item.end < before ? plan.length - item.end : before;
  if (after > 0) {
    load(item.end, after);
    for_blocks(item.end,
               [&](const auto& chunk, Vec<S>* grad, int64_t) { through_activation(chunk, after, grad); });
  }
  for (int64_t index = (item.end - item.begin + kSteps - 1) / kSteps - 1; index >= 0; --index) {
    const int64_t t = item.begin + index * kSteps;
    const int64_t steps = item.end - t < kSteps ? item.end - t : kSteps;
    for (int64_t b = 0; b < kBlocks; ++b) {
      Vec<S>* grad = grads + b * kRows;
      for (int64_t i = 0; i < before; ++i) next[i] = grad[i];
      for (int64_t i = 0; i < before; ++i) grad[steps + i] = next[i];
    }
    load(t, steps);
    for_blocks(t, [&](const auto& chunk, Vec<S>* grad, int64_t b) {
      backward_chunk(chunk, steps, grad, inputs + b * kRows, sums[b]);
    });
    all.store_steps(plan.dx, t, steps, inputs, kRows);
  }
  for_blocks(0, [&](const auto& chunk, Vec<S>* grad, int64_t b) {
    const Block<S>& block = chunk.block;
    if (!kPacked && item.segment == 0 && plan.dinitial_states.data) {
      initial_states_gradient(chunk, 0, item.batch, grad);
    }
    const int64_t at = (item.batch * plan.segments + item.segment) * plan.channels + block.channel;
    store_tile<S>(flat_view<S>(plan.dweight), at * plan.width, plan.width, 1, block.lanes, plan.width,
                  sums[b].tap);
    if (plan.dbias) store_tile<S>(flat_view<S>(plan.dbias), at, 1, 0, block.lanes, 1, &sums[b].bias);
  });
}

}  // namespace

// Packed sequences have code for a width known at run time only: most of their time goes into finding where
// a filter starts.
template <int kWidth>
struct ForwardRange {
  static void run(const ConvPlan& plan, int64_t begin, int64_t end) {
    with_lane_type(plan.float64, [&](auto lane) {
      using S = decltype(lane);
      const auto one = plan.starts ? &forward_item<S, 0, true> : &forward_item<S, kWidth, false>;
      for (int64_t i = begin; i < end; ++i) one(plan, Item(plan, i));
    });
  }
};

template <int kWidth>
struct BackwardRange {
  static void run(const ConvPlan& plan, int64_t begin, int64_t end) {
    with_lane_type(plan.float64, [&](auto lane) {
      using S = decltype(lane);
      const auto one = plan.starts ? &backward_item<S, 0, true> : &backward_item<S, kWidth, false>;
      for (int64_t i = begin; i < end; ++i) one(plan, Item(plan, i));
    });
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

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
