// What a norm on the CPU needs to know, in plain data: see views.h for why.
#pragma once

#include "cpu/views.h"

namespace mamba_aot::cpu {

// The forward's items are rows, the backward's are blocks of rows; rows are counted over the whole batch.
struct NormPlan {
  int64_t batch, rows, channels, groups, group_size, block_rows;
  double eps;
  bool centered, gate_last, float64;

  // [batch, rows, channels]; residual, z and sum may be missing, and in the backward x beside a residual
  View x, residual, z, out, sum;
  // Contiguous, dtype S: [channels], [channels] or null
  const void *weight, *bias;
  // Contiguous, dtype S: [batch, rows, groups]; the mean is null unless centered
  void *mean, *rstd;

  // Backward only. [batch, rows, channels]; dsum, dresidual and dz may be missing
  View dout, dsum, dx, dresidual, dz;
  // Sums over one item each, dtype S: [items, channels], [items, channels] or null
  void *dweight, *dbias;
};

}  // namespace mamba_aot::cpu
