// rms_norm: what its arguments must be, and the two implementations of it. LayerNorm is its centered form.
#pragma once

#include "ops/check.h"

namespace mamba_aot {

struct RmsNormSizes {
  // x is [batch, rows, channels]; each row is normalized in groups of group_size channels.
  int64_t batch, rows, channels, groups, group_size;

  int64_t all_rows() const { return batch * rows; }
  bool empty() const { return batch == 0 || rows == 0 || channels == 0; }
};

// Whether y is multiplied by silu(z) after the norm, and not x before it.
inline bool gate_last(std::optional<bool> norm_before_gate) { return norm_before_gate.value_or(true); }

namespace detail {

// The functions with a gate pass norm_before_gate, the others don't.
const char* rms_norm_name(bool centered, std::optional<bool> norm_before_gate);

}  // namespace detail

// Checks every argument of the forward op and returns the sizes. Throws std::invalid_argument.
RmsNormSizes check_rms_norm(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                            const OptionalTensor& residual, const OptionalTensor& z, int64_t group_size,
                            bool centered, std::optional<bool> norm_before_gate);

// Checks every argument of the backward op and returns the sizes. Throws std::invalid_argument. Without x,
// whose dtype dout has, the residual is the sum of both.
RmsNormSizes check_rms_norm_backward(const Tensor& dout, const OptionalTensor& dsum,
                                     const OptionalTensor& given_x, const Tensor& weight,
                                     const OptionalTensor& bias, const OptionalTensor& residual,
                                     const OptionalTensor& z, const Tensor& mean, const Tensor& rstd,
                                     int64_t group_size, bool centered, std::optional<bool> norm_before_gate);

// The dtype of the returned sum of x and residual.
ScalarType rms_norm_sum_dtype(const Tensor& x, const OptionalTensor& residual, bool wide_sum);

// Where x and residual have one dtype, their gradients are the same tensor, and it is written once, as dx.
inline bool has_own_gradient(const OptionalTensor& residual, const Tensor& x) {
  return residual && type_of(*residual) != type_of(x);
}

using RmsNormOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using RmsNormGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// Both namespaces implement the two schemas of library.cpp, argument for argument.
namespace cpu {
RmsNormOutputs rms_norm_fwd(Tensor x, Tensor weight, OptionalTensor bias, OptionalTensor residual,
                            OptionalTensor z, double eps, int64_t group_size, bool centered,
                            std::optional<bool> norm_before_gate, bool keep_sum, bool wide_sum);
RmsNormGradients rms_norm_bwd(Tensor dout, OptionalTensor dsum, OptionalTensor x, Tensor weight,
                              OptionalTensor bias, OptionalTensor residual, OptionalTensor z, Tensor mean,
                              Tensor rstd, double eps, int64_t group_size, bool centered,
                              std::optional<bool> norm_before_gate);
}  // namespace cpu

namespace cuda {
RmsNormOutputs rms_norm_fwd(Tensor x, Tensor weight, OptionalTensor bias, OptionalTensor residual,
                            OptionalTensor z, double eps, int64_t group_size, bool centered,
                            std::optional<bool> norm_before_gate, bool keep_sum, bool wide_sum);
RmsNormGradients rms_norm_bwd(Tensor dout, OptionalTensor dsum, OptionalTensor x, Tensor weight,
                              OptionalTensor bias, OptionalTensor residual, OptionalTensor z, Tensor mean,
                              Tensor rstd, double eps, int64_t group_size, bool centered,
                              std::optional<bool> norm_before_gate);
}  // namespace cuda

}  // namespace mamba_aot
