// The CPU half of mamba1_step, the ops it is made of one after the other, of few_rows_linear and argmax_rows.
#include "ops/mamba1_step.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cpu/dispatch.h"
#include "ops/causal_conv1d.h"
#include "ops/rms_norm.h"
#include "ops/state_update.h"

namespace mamba_aot::cpu {

MAMBA_AOT_PER_ISA(void, few_rows_product,
                  (DType dtype, const void* matrix, const void* x, int64_t x_row, int64_t batch, int64_t rows,
                   int64_t width, int64_t begin, int64_t end, float* wide_x, void* out))
MAMBA_AOT_PER_ISA(void, greatest_of_rows,
                  (DType dtype, const void* x, int64_t stride, int64_t size, int64_t begin, int64_t end,
                   int64_t* out))

namespace {

// Of more rows than these, torch's product is the faster one.
constexpr int64_t kFewRows = 8;
// Numbers of a weight that are worth waking a thread.
constexpr int64_t kGrain = int64_t{1} << 15;

// x [batch, width], contiguous but for the length of its rows, times weight [rows, width]. Torch multiplies
// single rows slower than it can read the weight, in half precision far slower.
Tensor project(const Tensor& x, const Tensor& weight) {
  const DType dtype = view_dtype(type_of(weight));
  const int64_t batch = x.size(0), rows = weight.size(0), width = weight.size(1);
  if (batch > kFewRows || dtype == DType::f64) {
    return torch::stable::matmul(x, torch::stable::transpose(weight, 0, 1));
  }
  Tensor out = empty_on(x, {batch, rows}, type_of(x));
  const void *from = x.data_ptr(), *matrix = weight.data_ptr();
  void* to = out.data_ptr();
  const int64_t x_row = x.stride(0), grain = kGrain / std::max<int64_t>(1, width) + 1;
  const auto kernel = pick_few_rows_product(false);
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    Scratch wide_x(batch * width * static_cast<int64_t>(sizeof(float)));
    kernel(dtype, matrix, from, x_row, batch, rows, width, begin, end, static_cast<float*>(wide_x.data()),
           to);
  });
  return out;
}

struct Normed {
  Tensor out;
  OptionalTensor sum;
};

// The norm of x + residual, [batch, width], and that sum.
Normed norm(const Tensor& x, const OptionalTensor& residual, const Tensor& weight, double eps,
            bool wide_sum) {
  OptionalTensor added;
  if (residual) added = torch::stable::unsqueeze(*residual, 0);
  const auto [out, sum, mean, rstd] =
      rms_norm_fwd(torch::stable::unsqueeze(x, 0), weight, std::nullopt, added, std::nullopt, eps, 0, false,
                   std::nullopt, true, wide_sum);
  return {torch::stable::select(out, 0, 0), torch::stable::select(sum, 0, 0)};
}

Tensor columns(Tensor& rows, int64_t begin, int64_t count) {
  return torch::stable::narrow(rows, 1, begin, count);
}

}  // namespace

Mamba1StepOutputs mamba1_step(Tensor x, OptionalTensor residual, OptionalTensor norm_weight, Tensor in_proj,
                              Tensor conv_state, Tensor conv_weight, OptionalTensor conv_bias, Tensor x_proj,
                              Tensor dt_proj, Tensor dt_bias, Tensor A, Tensor D, Tensor ssm_state,
                              Tensor out_proj, OptionalTensor next_norm_weight, double eps, double next_eps,
                              bool wide_sum) {
  const Mamba1StepSizes s =
      check_mamba1_step({x, residual, norm_weight, in_proj, conv_state, conv_weight, conv_bias, x_proj,
                         dt_proj, dt_bias, A, D, ssm_state, out_proj, next_norm_weight});
  Normed in{x, residual};
  if (norm_weight) in = norm(x, residual, *norm_weight, eps, wide_sum);
  Tensor both = project(in.out, in_proj);
  const Tensor convolved = causal_conv1d_update(columns(both, 0, s.inner), conv_state, conv_weight, conv_bias,
                                                std::nullopt, std::nullopt, true);
  Tensor low = project(convolved, x_proj);
  const Tensor delta = project(columns(low, 0, s.rank), dt_proj);
  // Widened at once, not each on its own.
  Tensor inputs = to_state_dtype(columns(low, s.rank, 2 * s.state), type_of(A));
  const Tensor B = columns(inputs, 0, s.state), C = columns(inputs, s.state, s.state);
  const Tensor y = state_update(ssm_state, convolved, delta, A, B, C, D, columns(both, s.inner, s.inner),
                                dt_bias, std::nullopt, std::nullopt, std::nullopt, std::nullopt, std::nullopt,
                                std::nullopt, -1, true, false, true, false);
  Normed made{project(y, out_proj), in.sum};
  if (next_norm_weight) made = norm(made.out, made.sum, *next_norm_weight, next_eps, wide_sum);
  return {made.out, *made.sum};
}

Tensor few_rows_linear(Tensor x, Tensor weight, OptionalTensor norm_weight, OptionalTensor residual,
                       double eps) {
  check_few_rows_linear(x, weight, norm_weight, residual);
  return project(norm_weight ? norm(x, residual, *norm_weight, eps, false).out : x, weight);
}

Tensor argmax_rows(Tensor x) {
  check_argmax_rows(x);
  const int64_t rows = x.size(0), size = x.size(1), stride = x.stride(0);
  Tensor out = empty_on(x, {rows}, ScalarType::Long);
  int64_t* to = static_cast<int64_t*>(out.data_ptr());
  const DType dtype = view_dtype(type_of(x));
  const auto kernel = pick_greatest_of_rows(dtype == DType::f64);
  const void* from = x.data_ptr();
  torch::stable::parallel_for(0, rows, kGrain / size + 1, [&](int64_t begin, int64_t end) {
    kernel(dtype, from, stride, size, begin, end, to);
  });
  return out;
}

}  // namespace mamba_aot::cpu
