// What a selective scan on the CPU needs to know, in plain data: see views.h for why.
#pragma once

#include "cpu/views.h"

namespace mamba_aot::cpu {

// States are saved every this many steps: kChunk of ops/selective_scan.h, which kernels cannot include.
constexpr int64_t kScanChunk = 64;

// Work is cut into items (batch, group, split): a split is a fixed range of the group's channels, chosen from
// the sizes alone, so that sums over channels come out the same for any number of threads.
struct ScanPlan {
  int64_t batch, channels, length, groups, state, parts;
  int64_t splits, split_channels;
  bool softplus, zoh, float64;

  // [batch, channels, length]
  View u, delta, z, out;
  // [batch, groups, state, length, parts]
  View B, C;
  // [batch, state, length]
  View gate;
  // [batch, channels, state, parts], in the state's dtype S
  View initial_state, last_state;
  // Contiguous, dtype S: [channels, state, parts], [channels], [channels]
  const void *A, *D, *delta_bias;
  // Contiguous, dtype S: [batch, chunks, state * parts, channels]; null if not saved
  void* chunk_states;

  // Backward only. [batch, channels, length]
  View dout, du, ddelta, dz;
  // [batch, channels, state, parts], dtype S
  View dlast_state, dinitial_state;
  // Sums over one item each, dtype S: [batch, groups, splits, state, length, parts] twice, and without parts
  void *dB, *dC, *dgate;
  // Sums over one sequence each, dtype S: [batch, channels, state, parts], [batch, channels], [batch,
  // channels]
  void *dA, *dD, *ddelta_bias;
};

}  // namespace mamba_aot::cpu
