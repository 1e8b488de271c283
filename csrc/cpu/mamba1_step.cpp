// The CPU half of mamba1_step: the ops it is made of, one after the other.
#include "ops/mamba1_step.h"

#include <torch/csrc/stable/ops.h>

#include "ops/causal_conv1d.h"
#include "ops/rms_norm.h"
#include "ops/state_update.h"

namespace mamba_aot::cpu {
namespace {

Tensor project(const Tensor& x, const Tensor& weight) {
  return torch::stable::matmul(x, torch::stable::transpose(weight, 0, 1));
}

Tensor columns(Tensor& rows, int64_t begin, int64_t count) {
  return torch::stable::narrow(rows, 1, begin, count);
}

}  // namespace

Mamba1StepOutputs mamba1_step(Tensor x, OptionalTensor residual, Tensor norm_weight, Tensor in_proj,
                              Tensor conv_state, Tensor conv_weight, OptionalTensor conv_bias, Tensor x_proj,
                              Tensor dt_proj, Tensor dt_bias, Tensor A, Tensor D, Tensor ssm_state,
                              Tensor out_proj, double eps, bool wide_sum) {
  const Mamba1StepSizes s =
      check_mamba1_step({x, residual, norm_weight, in_proj, conv_state, conv_weight, conv_bias, x_proj,
                         dt_proj, dt_bias, A, D, ssm_state, out_proj});
  OptionalTensor added;
  if (residual) added = torch::stable::unsqueeze(*residual, 0);
  const auto [normed, sum, mean, rstd] =
      rms_norm_fwd(torch::stable::unsqueeze(x, 0), norm_weight, std::nullopt, added, std::nullopt, eps, 0,
                   false, std::nullopt, true, wide_sum);
  Tensor both = project(torch::stable::select(normed, 0, 0), in_proj);
  const Tensor convolved = causal_conv1d_update(columns(both, 0, s.inner), conv_state, conv_weight, conv_bias,
                                                std::nullopt, std::nullopt, true);
  Tensor low = project(convolved, x_proj);
  const Tensor delta = project(columns(low, 0, s.rank), dt_proj);
  const Tensor B = torch::stable::unsqueeze(columns(low, s.rank, s.state), 1);
  const Tensor C = torch::stable::unsqueeze(columns(low, s.rank + s.state, s.state), 1);
  const Tensor y = state_update(ssm_state, convolved, delta, A, B, C, D, columns(both, s.inner, s.inner),
                                dt_bias, std::nullopt, std::nullopt, std::nullopt, std::nullopt, std::nullopt,
                                std::nullopt, -1, true, false, true, false);
  return {project(y, out_proj), torch::stable::select(sum, 0, 0)};
}

}  // namespace mamba_aot::cpu
