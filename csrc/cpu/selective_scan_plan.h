// What a selective scan on the CPU needs to know, in plain data: see views.h for why.
#pragma once

#include "cpu/views.h"

namespace mamba_aot::cpu {

// States are saved every this many steps: kChunk of ops/selective_scan.h, which kernels cannot include.
constexpr int64_t kScanChunk = 64;

// Steps [begin, end) of one sequence.
struct ScanRun {
  int64_t begin, end;
};

// Work is cut into items (row, group, split): a split is a fixed range of the group's channels, chosen from
// the sizes alone, so that sums over channels come out the same for any number of threads.
struct ScanPlan {
  int64_t rows, channels, length, groups, state, parts;
  // Channels that share a row of delta.
  int64_t head_channels;
  int64_t splits, split_channels;
  bool softplus, zoh, float64;

  // Row r of work has the sequences runs[first_run[r]] to runs[first_run[r + 1]] of batch row r, the first of
  // which begins with the initial state if it begins at step 0; or, by ends, one sequence of batch row 0.
  const ScanRun* runs;
  const int64_t* first_run;
  bool by_ends;
  // Rows of chunk_states per batch row.
  int64_t saved_rows;

  // [batch, channels, length]
  View u, delta, z, out;
  // [batch, groups, state, length, parts]; no data where they are constant
  View B, C;
  // [batch, state, length]
  View gate;
  // [rows, channels, state, parts], in the state's dtype S
  View initial_state, last_state;
  // Contiguous, dtype S: [channels, state, parts], [channels], [channels]
  const void *A, *D, *delta_bias;
  // Like A; null where they vary
  const void *constant_B, *constant_C;
  // Contiguous, dtype S: [batch, saved_rows, state * parts, channels]; null if not saved
  void* chunk_states;

  // Backward only. [batch, channels, length]
  View dout, du, ddelta, dz;
  // [rows, channels, state, parts], dtype S
  View dlast_state, dinitial_state;
  // Sums over one item each, dtype S: [batch, groups, splits, state, length, parts] twice, and without parts
  void *dB, *dC, *dgate;
  // Sums over one row of work each, dtype S: [rows, channels, state, parts] thrice, [rows, channels] twice
  void *dA, *constant_dB, *constant_dC, *dD, *ddelta_bias;
};

}  // namespace mamba_aot::cpu
