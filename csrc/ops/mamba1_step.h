// mamba1_step (a token through a layer with a published block) and few_rows_linear (the logits after the last
// layer): what their arguments must be, and the two implementations of each.
#pragma once

#include "ops/check.h"

namespace mamba_aot {

// The arguments of the schema that are tensors, by its names.
struct Mamba1StepTensors {
  const Tensor& x;
  const OptionalTensor &residual, &norm_weight;
  const Tensor &in_proj, &conv_state, &conv_weight;
  const OptionalTensor& conv_bias;
  const Tensor &x_proj, &dt_proj, &dt_bias, &A, &D, &ssm_state, &out_proj;
  const OptionalTensor& next_norm_weight;
};

struct Mamba1StepSizes {
  // Channels outside and inside the block, states, rank of delta, taps of the convolution and steps kept for
  // it.
  int64_t batch, width, inner, state, rank, taps, kept;
};

namespace detail {

constexpr const char* kMamba1Step = "mamba1_step";

}  // namespace detail

// Checks every argument and returns the sizes. Throws std::invalid_argument.
Mamba1StepSizes check_mamba1_step(const Mamba1StepTensors& t);

// Checks x [batch, width], weight [rows, width] and what belongs to a norm of x + residual. Throws
// std::invalid_argument.
void check_few_rows_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& norm_weight,
                           const OptionalTensor& residual);

// Checks x [rows, size]. Throws std::invalid_argument.
void check_argmax_rows(const Tensor& x);

using Mamba1StepOutputs = std::tuple<Tensor, Tensor>;

// Both namespaces implement the schema of library.cpp, argument for argument.
namespace cpu {
Mamba1StepOutputs mamba1_step(Tensor x, OptionalTensor residual, OptionalTensor norm_weight, Tensor in_proj,
                              Tensor conv_state, Tensor conv_weight, OptionalTensor conv_bias, Tensor x_proj,
                              Tensor dt_proj, Tensor dt_bias, Tensor A, Tensor D, Tensor ssm_state,
                              Tensor out_proj, OptionalTensor next_norm_weight, double eps, double next_eps,
                              bool wide_sum);
Tensor few_rows_linear(Tensor x, Tensor weight, OptionalTensor norm_weight, OptionalTensor residual,
                       double eps);
Tensor argmax_rows(Tensor x);
}  // namespace cpu

namespace cuda {
Mamba1StepOutputs mamba1_step(Tensor x, OptionalTensor residual, OptionalTensor norm_weight, Tensor in_proj,
                              Tensor conv_state, Tensor conv_weight, OptionalTensor conv_bias, Tensor x_proj,
                              Tensor dt_proj, Tensor dt_bias, Tensor A, Tensor D, Tensor ssm_state,
                              Tensor out_proj, OptionalTensor next_norm_weight, double eps, double next_eps,
                              bool wide_sum);
Tensor few_rows_linear(Tensor x, Tensor weight, OptionalTensor norm_weight, OptionalTensor residual,
                       double eps);
Tensor argmax_rows(Tensor x);
}  // namespace cuda

}  // namespace mamba_aot
