// What mamba1_step and few_rows_linear check of their arguments, on every device.
#include "ops/mamba1_step.h"

namespace mamba_aot {
namespace detail {
namespace {

// A weight or a state: on the device of x, of the one dtype and shape that fit, and contiguous.
void check_step_operand(const char* name, const Tensor& t, const Tensor& x, ScalarType type,
                        const char* reason, const char* dims, Dims want) {
  Arg arg{kMamba1Step, name, t};
  arg.on_device_of(x, "x").has_shape(dims, want).has_dtype(type, reason);
  check(t.is_contiguous(), kMamba1Step, ": ", name, " must be contiguous. Pass ", name, ".contiguous().");
}

// What is added to x: of its shape, of a dtype that the arithmetic holds, and contiguous.
void check_residual(const char* fn, const Tensor& residual, const Tensor& x, const char* dims) {
  Arg added{fn, "residual", residual};
  added.on_device_of(x, "x").has_shape(dims, {x.size(0), x.size(1)}).is_data_dtype();
  check(residual.is_contiguous(), fn, ": residual must be contiguous. Pass residual.contiguous().");
  check(type_of(residual) != ScalarType::Double || type_of(x) == ScalarType::Double, fn,
        ": residual must not be wider than the arithmetic, which is float32 for x of ", dtype(x),
        ", got float64. Convert it with .float().");
}

}  // namespace
}  // namespace detail

Mamba1StepSizes check_mamba1_step(const Mamba1StepTensors& t) {
  const char* fn = detail::kMamba1Step;
  const Tensor& x = t.x;
  Arg{fn, "x", x}.has_rank("[batch, d_model]", 2).is_data_dtype();
  check(x.is_contiguous(), fn, ": x must be contiguous. Pass x.contiguous().");
  Arg{fn, "A", t.A}.has_rank("[channels, state]", 2);
  Arg{fn, "dt_proj", t.dt_proj}.has_rank("[channels, rank]", 2);
  Arg{fn, "conv_weight", t.conv_weight}.has_rank("[channels, taps]", 2);
  Arg{fn, "conv_state", t.conv_state}.has_rank("[batch, channels, taps - 1 or taps]", 3);
  const Mamba1StepSizes s{x.size(0),           x.size(1),         t.A.size(0),
                          t.A.size(1),         t.dt_proj.size(1), t.conv_weight.size(1),
                          t.conv_state.size(2)};
  check(s.width > 0 && s.inner > 0, fn, ": d_model and channels must be at least 1, got ", s.width, " and ",
        s.inner);
  check(s.taps >= 1 && (s.kept == s.taps || s.kept == s.taps - 1), fn,
        ": conv_state must keep taps - 1 or taps steps, where conv_weight has ", s.taps, ", got ", s.kept);
  const ScalarType type = type_of(x), wide = state_dtype(type);
  const auto narrow_operand = [&](const char* name, const Tensor& operand, const char* dims, Dims want) {
    detail::check_step_operand(name, operand, x, type, "like x", dims, want);
  };
  const auto wide_operand = [&](const char* name, const Tensor& operand, const char* dims, Dims want) {
    detail::check_step_operand(name, operand, x, wide, "(the arithmetic of x)", dims, want);
  };
  check(t.norm_weight || t.next_norm_weight, fn,
        ": norm_weight or next_norm_weight must be given, got neither.");
  check(
      t.norm_weight || t.residual, fn,
      ": residual must be given where there is no norm_weight: x is then normed, and next_norm_weight is for "
      "the residual and the output.");
  if (t.norm_weight) narrow_operand("norm_weight", *t.norm_weight, "[d_model]", {s.width});
  narrow_operand("in_proj", t.in_proj, "[2 channels, d_model]", {2 * s.inner, s.width});
  narrow_operand("conv_state", t.conv_state, "[batch, channels, steps]", {s.batch, s.inner, s.kept});
  narrow_operand("conv_weight", t.conv_weight, "[channels, taps]", {s.inner, s.taps});
  if (t.conv_bias) narrow_operand("conv_bias", *t.conv_bias, "[channels]", {s.inner});
  narrow_operand("x_proj", t.x_proj, "[rank + 2 state, channels]", {s.rank + 2 * s.state, s.inner});
  narrow_operand("dt_proj", t.dt_proj, "[channels, rank]", {s.inner, s.rank});
  narrow_operand("dt_bias", t.dt_bias, "[channels]", {s.inner});
  narrow_operand("out_proj", t.out_proj, "[d_model, channels]", {s.width, s.inner});
  if (t.next_norm_weight) {
    narrow_operand("next_norm_weight", *t.next_norm_weight, "[d_model]", {s.width});
  }
  wide_operand("A", t.A, "[channels, state]", {s.inner, s.state});
  wide_operand("D", t.D, "[channels]", {s.inner});
  // States of sixteen bits are read and written in half the time; they are added up as wide ones.
  const ScalarType kept = type_of(t.ssm_state) == type ? type : wide;
  detail::check_step_operand("ssm_state", t.ssm_state, x, kept, "(the arithmetic of x) or like x",
                             "[batch, channels, state]", {s.batch, s.inner, s.state});
  if (t.residual) detail::check_residual(fn, *t.residual, x, "[batch, d_model]");
  return s;
}

void check_few_rows_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& norm_weight,
                           const OptionalTensor& residual) {
  const char* fn = "few_rows_linear";
  Arg{fn, "x", x}.has_rank("[batch, width]", 2).is_data_dtype();
  Arg{fn, "weight", weight}.on_device_of(x, "x").has_rank("[rows, width]", 2);
  Arg{fn, "weight", weight}.has_shape("[rows, width]", {weight.size(0), x.size(1)});
  Arg{fn, "weight", weight}.has_dtype(type_of(x), "like x");
  check(x.is_contiguous(), fn, ": x must be contiguous. Pass x.contiguous().");
  check(weight.is_contiguous(), fn, ": weight must be contiguous. Pass weight.contiguous().");
  check(norm_weight || !residual, fn, ": residual is for a norm and must be None where norm_weight is.");
  if (!norm_weight) return;
  Arg{fn, "norm_weight", *norm_weight}.on_device_of(x, "x").has_shape("[width]", {x.size(1)});
  Arg{fn, "norm_weight", *norm_weight}.has_dtype(type_of(x), "like x");
  check(norm_weight->is_contiguous(), fn, ": norm_weight must be contiguous. Pass norm_weight.contiguous().");
  check(x.size(1) > 0, fn, ": width must be at least 1 for a norm, got 0");
  if (residual) detail::check_residual(fn, *residual, x, "[batch, width]");
}

void check_argmax_rows(const Tensor& x) {
  const char* fn = "argmax_rows";
  Arg{fn, "x", x}.has_rank("[rows, size]", 2).is_data_dtype();
  const int64_t size = x.size(1);
  check(size > 0 && size < (int64_t{1} << 31), fn, ": x must have 1 to 2^31 - 1 numbers a row, got ", size);
  check(x.stride(1) == 1 || size == 1, fn, ": the numbers of a row of x must lie side by side. Pass ",
        "x.contiguous().");
}

}  // namespace mamba_aot
