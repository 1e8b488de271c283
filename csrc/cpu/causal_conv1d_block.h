// What the convolution's kernels share: a filter, a block of channels of one sequence, an item of work.
#pragma once

#include "cpu/ahead.h"
#include "cpu/causal_conv1d_plan.h"
#include "cpu/tile.h"
#include "cpu/vector_math.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {

// The filter of one block of channels.
template <class S, int kWidth>
struct Filter {
  static constexpr int kRoom = kWidth ? kWidth : kMostTaps;
  int64_t run_time_width;
  Vec<S> tap[kRoom], bias;

  Filter() = default;
  MAMBA_AOT_INLINE Filter(const View& weight, const View& biases, int64_t channel, int lanes, int64_t width)
      : run_time_width(width), bias{} {
    load_tile<S>(weight, channel * weight.stride[0], weight.stride[0], weight.stride[1], lanes, width, tap);
    if (biases.data) load_tile<S>(biases, channel * biases.stride[0], biases.stride[0], 0, lanes, 1, &bias);
  }

  MAMBA_AOT_INLINE int64_t width() const { return kWidth ? kWidth : run_time_width; }

  // The value before the activation, from the `width` inputs that end at its step.
  MAMBA_AOT_INLINE Vec<S> at(const Vec<S>* inputs) const {
    Vec<S> y = bias;
    const int64_t taps = width();
#pragma GCC unroll 4
    for (int64_t k = 0; k < taps; ++k) y = fma(tap[k], inputs[k], y);
    return y;
  }
};

// A block of channels of one sequence, as many as a vector has lanes; or, for moves of tiles, more of them.
template <class S>
struct Block {
  const ConvPlan& plan;
  int64_t batch, channel;
  int lanes;

  // Tiles of more than one vector's channels are `apart` vectors from each other.
  void load_steps(const View& v, int64_t t, int64_t steps, Vec<S>* tile, int64_t apart = 0) const {
    load_tiles<S>(v, batch * v.stride[0] + channel * v.stride[1] + t * v.stride[2], v.stride[1], v.stride[2],
                  lanes, steps, tile, apart);
  }
  void store_steps(const View& v, int64_t t, int64_t steps, const Vec<S>* tile, int64_t apart = 0) const {
    store_tiles<S>(v, batch * v.stride[0] + channel * v.stride[1] + t * v.stride[2], v.stride[1], v.stride[2],
                   lanes, steps, tile, apart);
  }
  // The lines of a chunk that begins at step t; none outside of the sequence, nor where channels lie side by
  // side, as asking for those took longer than waiting.
  MAMBA_AOT_INLINE Ahead ahead(const View& v, int64_t t) const {
    if (t < 0 || t >= plan.length || v.stride[2] != 1) return {};
    return {v, batch * v.stride[0] + channel * v.stride[1] + t * v.stride[2], v.stride[1], v.stride[2]};
  }
  // The width - 1 inputs before step t, from the initial states (or zero) where that is before the sequence.
  void load_history(int64_t t, Vec<S>* tile, int64_t apart = 0) const {
    const int64_t before = plan.width - 1, missing = t < before ? before - t : 0;
    for (int64_t b = 0; b * Simd<S>::kLanes < lanes; ++b) {
      for (int64_t i = 0; i < missing; ++i) tile[b * apart + i] = Vec<S>{};
    }
    if (plan.initial_states.data && !plan.starts && missing)
      load_steps(plan.initial_states, t, missing, tile, apart);
    if (missing < before) load_steps(plan.x, t - before + missing, before - missing, tile + missing, apart);
  }
};

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

template <class S>
MAMBA_AOT_INLINE Block<S> whole_item(const ConvPlan& plan, const Item& item) {
  return {plan, item.batch, item.first_channel, static_cast<int>(item.last_channel - item.first_channel)};
}

// The filters of all blocks of an item.
template <class S, int kWidth>
struct Filters {
  Filter<S, kWidth> of_block[kSplitChannels / Simd<S>::kLanes];

  Filters(const ConvPlan& plan, const Item& item) {
    Filter<S, kWidth>* filter = of_block;
    for (int64_t c = item.first_channel; c < item.last_channel; c += Simd<S>::kLanes) {
      *filter++ = {plan.weight, plan.bias, c, block_at<S>(plan, item, c).lanes, plan.width};
    }
  }
};

// Calls f with the width as a compile-time number, 0 for one without code of its own.
template <template <int> class F, class... Args>
MAMBA_AOT_INLINE void for_width(int64_t width, const Args&... args) {
  switch (width) {
    case 2:
      return F<2>::run(args...);
    case 3:
      return F<3>::run(args...);
    case 4:
      return F<4>::run(args...);
    default:
      return F<0>::run(args...);
  }
}

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
