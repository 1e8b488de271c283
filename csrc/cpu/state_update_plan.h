// What steps of the selective scan on the CPU need to know, in plain data: see views.h for why.
#pragma once

#include "cpu/views.h"

namespace mamba_aot::cpu {

// The most channels of one item.
constexpr int64_t kSplitChannels = 64;

// An argument and its element strides; those along what it does not have are 0.
struct StateUpdateOperand {
  View view;
  int64_t batch, step, head, channel, n, part;
};

// Work is cut into items (head, split of the head's channels); each goes through all sequences.
struct StateUpdatePlan {
  int64_t batch, steps, heads, channels, groups, state, parts, slots;
  int64_t splits, split_channels;
  bool softplus, zoh, float64, update_state;

  // [slots, heads, channels, state, parts]: read, and written in place
  StateUpdateOperand held;
  // [batch, steps, heads, channels]
  StateUpdateOperand x, dt, z, out;
  // [batch, steps, heads, channels, state, parts]
  StateUpdateOperand intermediate;
  // [heads, channels, state, parts], [heads, channels], [heads, channels]
  StateUpdateOperand A, D, dt_bias;
  // Contiguous, dtype S: [batch, steps, groups, state, parts] twice, [batch, steps, state]
  const void *B, *C, *gate;
  // [batch] slots to read and to write, or null for slot = sequence and for the slot that was read; those
  // outside the slots are padding, and so is pad_slot
  const int32_t *source, *target;
  int64_t source_stride, target_stride, pad_slot;
  // [batch] numbers of steps that the stored state takes, or null for all
  const int32_t* accepted;
  int64_t accepted_stride;
};

}  // namespace mamba_aot::cpu
