// sequence_runs on the CPU: each row once from the left and once from the right.
#include "ops/sequence_runs.h"

#include <algorithm>

namespace mamba_aot::cpu {

Tensor sequence_runs(Tensor seq_idx) {
  check_sequence_runs(seq_idx);
  const int64_t batch = seq_idx.size(0), length = seq_idx.size(1), step = seq_idx.stride(1);
  Tensor runs = empty_on(seq_idx, {2, batch, length}, ScalarType::Int);
  const int32_t* index = static_cast<const int32_t*>(seq_idx.data_ptr());
  int32_t* starts = static_cast<int32_t*>(runs.data_ptr());
  int32_t* ends = starts + batch * length;
  for (int64_t row = 0; row < batch; ++row, index += seq_idx.stride(0), starts += length, ends += length) {
    // All padding has one index.
    const auto at = [&](int64_t t) { return std::max(index[t * step], -1); };
    int32_t start = 0, end = static_cast<int32_t>(length);
    for (int64_t t = 0; t < length; ++t) {
      if (t > 0 && at(t) != at(t - 1)) start = static_cast<int32_t>(t);
      starts[t] = at(t) < 0 ? -1 - start : start;
    }
    for (int64_t t = length - 1; t >= 0; --t) {
      if (t + 1 < length && at(t) != at(t + 1)) end = static_cast<int32_t>(t + 1);
      ends[t] = at(t) < 0 ? -end : end;
    }
  }
  return runs;
}

}  // namespace mamba_aot::cpu
