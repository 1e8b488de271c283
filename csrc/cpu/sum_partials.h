// Sums over work items, in a fixed order: the same bits for any number of threads.
#pragma once

#include "cpu/dispatch.h"

namespace mamba_aot::cpu {

MAMBA_AOT_PER_ISA(void, sum_partials,
                  (const void* parts, int64_t count, int64_t size, int64_t begin, int64_t end, bool float64,
                   void* out))

// parts: contiguous [outer, count, size], float32 or float64 -> contiguous [outer, size] in the shape
// `sizes`.
inline Tensor sum_over_items(const Tensor& parts, int64_t outer, int64_t count, Dims sizes) {
  Tensor out = empty_on(parts, sizes, type_of(parts));
  const int64_t total = out.numel();
  if (total == 0) return out;
  const void* from = parts.data_ptr();
  void* to = out.data_ptr();
  const bool float64 = type_of(parts) == ScalarType::Double;
  auto kernel = pick_sum_partials(float64);
  // About as many additions as are worth waking a thread.
  const int64_t grain = 32768 / (count + 1) + 1;
  torch::stable::parallel_for(0, total, grain, [&](int64_t begin, int64_t end) {
    kernel(from, count, total / outer, begin, end, float64, to);
  });
  return out;
}

}  // namespace mamba_aot::cpu
