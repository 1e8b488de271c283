// sequence_runs: where the runs of equal indices of packed rows start and end.
#pragma once

#include "ops/check.h"

namespace mamba_aot {

// Checks seq_idx [batch, length], int32. Throws std::invalid_argument.
void check_sequence_runs(const Tensor& seq_idx);

// Both namespaces implement the schema of library.cpp: int32 [2, batch, length], of each step the first one
// of its run and the one after its last; -1 - start and -end where the index is negative.
namespace cpu {
Tensor sequence_runs(Tensor seq_idx);
}  // namespace cpu

namespace cuda {
Tensor sequence_runs(Tensor seq_idx);

// The same of cu_seqlens (contiguous), its first half alone; what no sequence has is padding.
Tensor sequence_runs_by_ends(const Tensor& cu_seqlens, int64_t length);
}  // namespace cuda

}  // namespace mamba_aot
