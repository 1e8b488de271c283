// What a causal convolution on the CPU needs to know, in plain data: see views.h for why.
#pragma once

#include "cpu/views.h"

namespace mamba_aot::cpu {

// Work is cut into items (batch, segment of the sequence, split of the channels) from the sizes alone.
struct ConvPlan {
  int64_t batch, channels, length, width;
  int64_t segments, segment_length, splits, split_channels;
  bool silu, float64;

  // [batch, channels, length]
  View x, out;
  // [batch, channels, width - 1]: what came before step 0
  View initial_states;
  // Contiguous, dtype S: [channels, width], [channels] or null
  const void *weight, *bias;

  // Backward only. [batch, channels, length], [batch, channels, width - 1]
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
  // Contiguous, dtype S: [channels, width], [channels] or null
  const void *weight, *bias;
};

}  // namespace mamba_aot::cpu
