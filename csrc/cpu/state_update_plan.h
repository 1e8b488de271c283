// What one step of the selective scan on the CPU needs to know, in plain data: see views.h for why.
#pragma once

#include "cpu/views.h"

namespace mamba_aot::cpu {

// Work is cut into items (group, split of the group's channels); each goes through all sequences.
struct StateUpdatePlan {
  int64_t batch, channels, groups, state, parts;
  int64_t splits, split_channels;
  bool softplus, zoh, float64;

  // [slots, channels, state, parts], updated in place
  View held;
  // [batch, channels]
  View x, dt, z, out;
  // Contiguous, dtype S: [channels, state, parts], [channels], [channels]
  const void *A, *D, *dt_bias;
  // Contiguous, dtype S: [batch, groups, state, parts] twice, [batch, state]
  const void *B, *C, *gate;
  // [batch] slots, or null for slot = sequence; negative ones are padding
  const int32_t* indices;
  int64_t indices_stride;
};

}  // namespace mamba_aot::cpu
