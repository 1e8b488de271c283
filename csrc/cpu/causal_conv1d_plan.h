// What a causal convolution on the CPU needs to know, in plain data: see views.h for why.
#pragma once

#include "cpu/views.h"

namespace mamba_aot::cpu {

// How many taps there is room for; widths without code of their own are 0 where a width is a template value.
inline constexpr int kMostTaps = 64;
// Channels of an item, at most.
inline constexpr int kSplitChannels = 64;

// Work is cut into items (batch, segment of the sequence, split of the channels) from the sizes alone.
struct ConvPlan {
  int64_t batch, channels, length, width;
  int64_t segments, segment_length, splits, split_channels;
  bool silu, float64;

  // [batch, channels, length]
  View x, out;
  // [rows, channels, width - 1]: what came before a sequence
  View initial_states;
  // [batch, length] each: where the step's sequence starts, and its row of the initial states (-1: none).
  // Null: each batch row is a sequence with the initial states of that row.
  const int32_t *starts, *rows;
  // [channels, width], [channels] or null
  View weight, bias;

  // Backward only. [batch, channels, length]; [rows, channels, width - 1], 0 where a sequence is empty
  View dout, dx, dinitial_states;
  // Sums over one item each, dtype S: [batch, segments, channels, width], [batch, segments, channels] or null
  void *dweight, *dbias;
};

struct ConvUpdatePlan {
  int64_t batch, channels, length, width, state_length, split_channels;
  bool silu, float64;

  // [batch, channels, length]
  View x, out;
  // [slots, channels, state length], updated in place
  View conv_state;
  // [batch] slots, or null for slot = sequence; negative ones are padding
  const int32_t* indices;
  int64_t indices_stride;
  // [batch] steps seen before, of which the ring holds the last ones; or null for a state that shifts
  const int32_t* seen;
  int64_t seen_stride;
  // [channels, width], [channels] or null
  View weight, bias;
};

}  // namespace mamba_aot::cpu
