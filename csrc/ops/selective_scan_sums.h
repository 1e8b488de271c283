// Sums over steps that the CUDA backward kernels of selective_scan write, and the gradients made of them.
#pragma once

#include "ops/launch_arguments.h"
#include "ops/selective_scan.h"

namespace mamba_aot::cuda {

// Sums over parts of the time axis that a launch writes whole, fp32 [rows of work, ...] each; `total()` adds
// up rows and parts. With `sparse`, rows are packed sequences in the spans of a launch, which may be many and
// may miss it: they begin at 0 and are added up after each launch, which is one part there.
class RowSums {
 public:
  RowSums(const SelectiveScanSizes& s, const Tensor& on, bool sparse, int64_t spans, int64_t parts,
          int64_t outer, int64_t inner)
      : sparse_(sparse),
        parts_(s.empty() ? torch::stable::new_zeros(on, {1, 1, outer, inner})
                         : empty_on(on, {parts, sparse_ ? 1 : s.rows, outer, inner}, ScalarType::Float)),
        rows_(empty_on(on, {sparse_ ? spans * s.rows : 0, outer, inner}, ScalarType::Float)) {}

  float* start(int64_t part) {
    if (sparse_) torch::stable::zero_(rows_);
    Tensor& target = sparse_ ? rows_ : parts_;
    return static_cast<float*>(target.data_ptr()) + (sparse_ ? 0 : part * target.stride(0));
  }

  void finish(int64_t part) {
    if (!sparse_) return;
    const int64_t over[] = {0};
    Tensor target = torch::stable::select(torch::stable::select(parts_, 0, part), 0, 0);
    torch::stable::sum_out(target, rows_, over);
  }

  Tensor total() const {
    const int64_t over[] = {0, 1};
    return torch::stable::sum(parts_, over);
  }

 private:
  bool sparse_;
  Tensor parts_, rows_;
};

// [groups, padded channels of a group] as a gradient of [channels], without the padding.
inline Tensor gradient_of_channels(const RowSums& sums, const OptionalTensor& input,
                                   const SelectiveScanSizes& s) {
  Tensor total = sums.total();
  Tensor inside = torch::stable::narrow(total, 1, 0, s.channels / s.groups);
  return gradient_of(*input, torch::stable::reshape(inside, {s.channels}));
}

// The gradient of A or a constant ([channels, state(, 2)]) from the kernel's [state * parts, channels].
inline Tensor gradient_of_constant(const RowSums& sums, const Tensor& input, const SelectiveScanSizes& s) {
  Tensor by_channel = torch::stable::transpose(sums.total(), 0, 1);
  if (!s.complex) return gradient_of(input, by_channel);
  Tensor pairs = torch::stable::reshape(by_channel, {s.channels, s.state, 2});
  return gradient_of(input, pairs);
}

}  // namespace mamba_aot::cuda
