// What the argument of sequence_runs must be.
#include "ops/sequence_runs.h"

namespace mamba_aot {

void check_sequence_runs(const Tensor& seq_idx) {
  const char* fn = "sequence_runs";
  Arg{fn, "seq_idx", seq_idx}
      .has_rank("[batch, length]", 2)
      .has_dtype(ScalarType::Int, "(a sequence index per step)");
  constexpr int64_t kLimit = int64_t{1} << 30;
  check(seq_idx.size(1) < kLimit, fn, ": seq_idx must have fewer than 2^30 steps a row, got ",
        seq_idx.size(1));
}

}  // namespace mamba_aot
