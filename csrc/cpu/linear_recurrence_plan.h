// What a linear recurrence on the CPU needs to know, in plain data: see views.h for why.
#pragma once

#include "cpu/views.h"

namespace mamba_aot::cpu {

// States are saved every this many steps: kRecurrenceChunk of ops/linear_recurrence.h.
constexpr int64_t kRecurrenceSaved = 64;
// Steps of one tile at most, and rows of one item.
constexpr int64_t kRecurrenceTile = 256;
constexpr int64_t kRecurrenceSplit = 256;

// Work is cut into items (p, q, split of the rows r).
struct RecurrencePlan {
  int64_t size[3];
  int64_t length, splits, split_rows, tile_steps;
  bool complex, reverse, float64;

  // Strides of [p, q, r, length]; the parts of a complex number lie side by side.
  View a, b, h;
  // Strides of [p, q, r], in the state's dtype S.
  View initial_state, last_state;
  // Strides of [p, q, r, chunk], dtype S; null if not saved
  View chunk_states;

  // Backward only; b is given where chunk_states are, else h.
  View dh, da, db, dlast_state, dinitial_state;
};

}  // namespace mamba_aot::cpu
