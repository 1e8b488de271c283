// The CPU half of rms_norm: checks, allocates, cuts the rows into items and hands them to the kernels.
#include "ops/rms_norm.h"

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/rms_norm_plan.h"
#include "cpu/sum_partials.h"

namespace mamba_aot::cpu {

MAMBA_AOT_PER_ISA(int64_t, rms_norm_forward,
                  (const NormPlan& plan, int64_t begin, int64_t end, void* scratch))
MAMBA_AOT_PER_ISA(int64_t, rms_norm_backward,
                  (const NormPlan& plan, int64_t begin, int64_t end, void* scratch))

namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

NormPlan make_plan(const RmsNormSizes& s, ScalarType type, const OptionalTensor& x, const Tensor& weight,
                   const OptionalTensor& bias, const OptionalTensor& residual, const OptionalTensor& z,
                   bool centered, bool gate_last) {
  NormPlan plan{};
  plan.batch = s.batch;
  plan.rows = s.rows;
  plan.channels = s.channels;
  plan.groups = s.groups;
  plan.group_size = s.group_size;
  // Enough blocks for many threads, few enough rows that adding them up one by one loses no digits.
  plan.block_rows = std::clamp<int64_t>(ceil_div(s.all_rows(), 64), 8, 256);
  plan.centered = centered;
  plan.gate_last = gate_last;
  plan.float64 = type == ScalarType::Double;
  plan.x = view(x);
  plan.residual = view(residual);
  plan.z = view(z);
  plan.weight = weight.data_ptr();
  plan.bias = bias ? bias->data_ptr() : nullptr;
  return plan;
}

// Items worth a thread of their own.
int64_t item_grain(int64_t elements) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, elements)); }

}  // namespace

RmsNormOutputs rms_norm_fwd(Tensor x, Tensor weight, OptionalTensor bias, OptionalTensor residual,
                            OptionalTensor z, double eps, int64_t group_size, bool centered,
                            std::optional<bool> norm_before_gate, bool keep_sum, bool wide_sum) {
  const RmsNormSizes s = check_rms_norm(x, weight, bias, residual, z, group_size, centered, norm_before_gate);
  const ScalarType type = state_dtype(type_of(x));
  const Tensor scale = to_state_dtype(weight, type);
  const OptionalTensor offset = to_state_dtype(bias, type);
  NormPlan plan = make_plan(s, type, x, scale, offset, residual, z, centered, gate_last(norm_before_gate));
  Tensor out = empty_on(x, {s.batch, s.rows, s.channels}, type_of(x));
  Tensor sum = keep_sum
                   ? empty_on(x, {s.batch, s.rows, s.channels}, rms_norm_sum_dtype(x, residual, wide_sum))
                   : absent_on(x);
  Tensor mean = centered ? empty_on(x, {s.batch, s.rows, s.groups}, type) : empty_on(x, {0}, type);
  Tensor rstd = empty_on(x, {s.batch, s.rows, s.groups}, type);
  plan.eps = eps;
  plan.out = view(out);
  if (keep_sum) plan.sum = view(sum);
  plan.mean = centered ? mean.data_ptr() : nullptr;
  plan.rstd = rstd.data_ptr();
  run_items(plan, s.empty() ? 0 : s.all_rows(), item_grain(s.channels), pick_rms_norm_forward(plan.float64));
  return {out, sum, mean, rstd};
}

RmsNormGradients rms_norm_bwd(Tensor dout, OptionalTensor dsum, OptionalTensor x, Tensor weight,
                              OptionalTensor bias, OptionalTensor residual, OptionalTensor z, Tensor mean,
                              Tensor rstd, double eps, int64_t group_size, bool centered,
                              std::optional<bool> norm_before_gate) {
  const RmsNormSizes s = check_rms_norm_backward(dout, dsum, x, weight, bias, residual, z, mean, rstd,
                                                 group_size, centered, norm_before_gate);
  const ScalarType type = state_dtype(type_of(dout));
  const Tensor scale = to_state_dtype(weight, type);
  const OptionalTensor offset = to_state_dtype(bias, type);
  NormPlan plan = make_plan(s, type, x, scale, offset, residual, z, centered, gate_last(norm_before_gate));
  Tensor dx = empty_on(dout, {s.batch, s.rows, s.channels}, type_of(dout));
  const bool own = has_own_gradient(residual, dout);
  Tensor dresidual =
      own ? empty_on(dout, {s.batch, s.rows, s.channels}, type_of(*residual)) : absent_on(dout);
  Tensor dz = z ? empty_on(dout, {s.batch, s.rows, s.channels}, type_of(*z)) : absent_on(dout);
  const int64_t items = s.empty() ? 0 : ceil_div(s.all_rows(), plan.block_rows);
  Tensor dweight = empty_on(dout, {items, s.channels}, type);
  Tensor dbias = bias ? empty_on(dout, {items, s.channels}, type) : absent_on(dout);
  plan.eps = eps;
  plan.mean = centered ? mean.data_ptr() : nullptr;
  plan.rstd = rstd.data_ptr();
  plan.dout = view(dout);
  plan.dsum = view(dsum);
  plan.dx = view(dx);
  if (own) plan.dresidual = view(dresidual);
  if (z) plan.dz = view(dz);
  plan.dweight = dweight.data_ptr();
  plan.dbias = bias ? dbias.data_ptr() : nullptr;
  run_items(plan, items, item_grain(plan.block_rows * s.channels), pick_rms_norm_backward(plan.float64));
  dweight = to_input_dtype(sum_over_items(dweight, 1, items, {s.channels}), weight);
  if (bias) dbias = to_input_dtype(sum_over_items(dbias, 1, items, {s.channels}), *bias);
  return {dx, dweight, dbias, dresidual, dz};
}

}  // namespace mamba_aot::cpu
