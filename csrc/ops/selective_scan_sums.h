// Sums over steps that the CUDA backward kernels of selective_scan write, and the gradients made of them.
#pragma once

#include "ops/launch_arguments.h"
#include "ops/selective_scan.h"

namespace mamba_aot::cuda {

// How programs share rows of sums: one for each part of the time axis and row of work; or, with `sparse`, one
// for each row, which may be many and may miss a launch: they begin at 0 and are added up after each one; or,
// with `in_steps`, one for each part and row that have steps of each other, which a row's number and the
// part's in the order of time add up to.
struct SumRows {
  bool sparse, in_steps;
  int64_t parts;
};

// Sums over steps that a launch writes, fp32 [rows, outer, inner]; `total()` adds them up. Those that are not
// wanted have no memory, as each tensor costs the host a microsecond or two.
class RowSums {
 public:
  RowSums(const SelectiveScanSizes& s, const Tensor& on, const SumRows& rows, int64_t outer, int64_t inner,
          bool wanted = true)
      : shared_(rows) {
    if (!wanted) return;
    if (s.empty() || rows.in_steps) {
      parts_ = torch::stable::new_zeros(on, {1, s.empty() ? 1 : s.rows + rows.parts - 1, outer, inner});
    } else {
      parts_ = empty_on(on, {rows.parts, rows.sparse ? 1 : s.rows, outer, inner}, ScalarType::Float);
    }
    if (rows.sparse) rows_ = empty_on(on, {s.rows, outer, inner}, ScalarType::Float);
  }

  // Where a launch of parts [part, part + count) writes, which come from the last one on.
  float* start(int64_t part, int64_t count) {
    if (!parts_) return nullptr;
    if (rows_) {
      torch::stable::zero_(*rows_);
      return static_cast<float*>(rows_->data_ptr());
    }
    const int64_t skipped =
        shared_.in_steps ? (shared_.parts - part - count) * parts_->stride(1) : part * parts_->stride(0);
    return static_cast<float*>(parts_->data_ptr()) + skipped;
  }

  void finish(int64_t part) {
    if (!rows_) return;
    const int64_t over[] = {0};
    Tensor target = torch::stable::select(torch::stable::select(*parts_, 0, part), 0, 0);
    torch::stable::sum_out(target, *rows_, over);
  }

  // Of sums that are wanted.
  Tensor total() const {
    const int64_t over[] = {0, 1};
    return torch::stable::sum(*parts_, over);
  }

 private:
  SumRows shared_;
  OptionalTensor parts_, rows_;
};

// [groups, padded channels of a group] as a gradient of [channels], without the padding.
inline Tensor gradient_of_channels(const RowSums& sums, const OptionalTensor& input,
                                   const SelectiveScanSizes& s) {
  Tensor total = sums.total();
  Tensor inside = torch::stable::narrow(total, 1, 0, s.channels / s.groups);
  Tensor flat = torch::stable::reshape(inside, {s.channels});
  return type_of(*input) == ScalarType::Float ? flat : gradient_of(*input, flat);
}

// The gradient of A or a constant ([channels, state(, 2)]) from the kernel's [state * parts, channels].
inline Tensor gradient_of_constant(const RowSums& sums, const Tensor& input, const SelectiveScanSizes& s) {
  Tensor by_channel = torch::stable::transpose(sums.total(), 0, 1);
  if (!s.complex) return gradient_of(input, by_channel);
  Tensor pairs = torch::stable::reshape(by_channel, {s.channels, s.state, 2});
  return gradient_of(input, pairs);
}

}  // namespace mamba_aot::cuda
