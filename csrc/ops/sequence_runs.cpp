// sequence_runs on CUDA. The kernel is csrc/kernels/sequence_runs.py.
#include "ops/sequence_runs.h"

#include "generated/sequence_runs.gen.h"
#include "ops/launch_arguments.h"

namespace mamba_aot::cuda {

Tensor sequence_runs(Tensor seq_idx) {
  using Kernel = generated::SequenceRuns;
  check_sequence_runs(seq_idx);
  const int64_t batch = seq_idx.size(0), length = seq_idx.size(1);
  Tensor runs = empty_on(seq_idx, {2, batch, length}, ScalarType::Int);
  if (batch * length == 0) return runs;
  const auto& config = Kernel::pick({}, {});
  const int64_t blocks = ceil_div(length, config.BLOCK);
  Kernel::Args args{};
  args.seq_idx = pointer(seq_idx);
  args.runs = pointer(runs);
  args.L = static_cast<int32_t>(length);
  args.blocks = static_cast<int32_t>(blocks);
  args.size = batch * length;
  args.idx_batch = seq_idx.stride(0);
  args.idx_time = seq_idx.stride(1);
  Kernel::launch({}, config, seq_idx.get_device_index(), batch * blocks, args);
  return runs;
}

Tensor sequence_runs_by_ends(const Tensor& cu_seqlens, int64_t length) {
  using Kernel = generated::SequenceStarts;
  Tensor runs = empty_on(cu_seqlens, {2, 1, length}, ScalarType::Int);
  if (length == 0) return runs;
  const auto& config = Kernel::pick({}, {});
  Kernel::Args args{};
  args.ends = pointer(cu_seqlens);
  args.starts = pointer(runs);
  args.count = static_cast<int32_t>(cu_seqlens.size(0) - 1);
  for (int64_t left = cu_seqlens.size(0); left > 0; left /= 2) ++args.halvings;
  args.L = static_cast<int32_t>(length);
  Kernel::launch({}, config, cu_seqlens.get_device_index(), ceil_div(length, config.BLOCK), args);
  return runs;
}

}  // namespace mamba_aot::cuda
