// Sums over steps that the CUDA backward kernels of selective_scan write, and the gradients made of them.
#pragma once

#include "generated/selective_scan.gen.h"
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

// Sums over steps that a launch writes, fp32 [rows, outer, inner]. Those that are not wanted have no memory,
// as each tensor costs the host a microsecond or two.
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

  // Of sums that are wanted: how many a kernel is left to add up one behind the other, and these. Many, of
  // large batches, are added up by torch before, in an order that costs fewer digits.
  int64_t count() const { return all() <= kMostInAChain ? all() : 1; }
  Tensor rows() const {
    if (all() <= kMostInAChain) return *parts_;
    const int64_t over[] = {0, 1};
    return torch::stable::sum(*parts_, over);
  }

 private:
  static constexpr int64_t kMostInAChain = 256;

  int64_t all() const { return parts_->size(0) * parts_->size(1); }

  SumRows shared_;
  OptionalTensor parts_, rows_;
};

// What the sums of all launches come to.
class Totals {
 public:
  // The gradient of A or of a constant, [channels, state(, 2)], from the kernel's [state * parts, channels].
  Totals(const SelectiveScanSizes& s, const RowSums& sums, const Tensor& gradient)
      : device_of_(gradient), A_sums_(sums.rows()) {
    args_.A_sums = pointer(A_sums_);
    args_.dA = pointer(gradient);
    args_.count = static_cast<int32_t>(sums.count());
    args_.D = static_cast<int32_t>(s.channels);
    args_.state_rows = static_cast<int32_t>(s.state * s.parts());
    args_.groups = static_cast<int32_t>(s.groups);
    args_.flags = code_of(gradient) | kNobody << 2 | kNobody << 4;
  }

  // Those of D and the bias, [channels] each, from rows of groups of so many channels with their padding.
  void add_channels(const RowSums& D_sums, const OptionalTensor& dD, const RowSums& bias_sums,
                    const OptionalTensor& dbias, int64_t padded_channels) {
    if (!dD && !dbias) return;
    with_channels_ = true;
    D_sums_ = D_sums.rows();
    bias_sums_ = bias_sums.rows();
    args_.D_sums = pointer(D_sums_);
    args_.bias_sums = pointer(bias_sums_);
    args_.dD = pointer(dD);
    args_.ddelta_bias = pointer(dbias);
    args_.padded_channels = static_cast<int32_t>(padded_channels);
    args_.flags = (args_.flags & 3) | code_of(dD) << 2 | code_of(dbias) << 4;
  }

  // That of the initial state, from the adjoint before the first step, in the kernel's order.
  void add_states(float* adjoint, const Tensor& dinitial_state) {
    args_.adjoint = adjoint;
    args_.dinitial_state = pointer(dinitial_state);
    args_.batches = static_cast<int32_t>(dinitial_state.size(0));
  }

  void launch() const {
    const auto& config = Kernel::pick({}, {});
    const int64_t row_blocks = std::max<int64_t>(1, ceil_div(args_.state_rows, config.ROWS));
    const int64_t units = row_blocks * (1 + args_.batches) + (with_channels_ ? 1 : 0);
    Kernel::launch({}, config, device_of_.get_device_index(), units * ceil_div(args_.D, config.CHANNELS),
                   args_);
  }

 private:
  using Kernel = generated::SelectiveScanTotals;

  const Tensor& device_of_;
  Tensor A_sums_;
  OptionalTensor D_sums_, bias_sums_;
  Kernel::Args args_{};
  bool with_channels_ = false;
};

}  // namespace mamba_aot::cuda
