// What rms_norm checks of its arguments, on every device.
#include "ops/rms_norm.h"

namespace mamba_aot {
namespace detail {
namespace {

RmsNormSizes check_norm(const char* fn, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                        const OptionalTensor& residual, const OptionalTensor& z, int64_t group_size) {
  Arg{fn, "x", x}.has_rank("[batch, rows, channels]", 3).is_data_dtype();
  RmsNormSizes s{x.size(0), x.size(1), x.size(2), 1, x.size(2)};
  check(group_size >= 0, fn, ": group_size must be at least 1, got ", group_size);
  if (group_size > 0) {
    check(s.channels % group_size == 0, fn, ": group_size must divide the ", s.channels,
          " channels of x, got ", group_size);
    s.groups = s.channels / group_size;
    s.group_size = group_size;
  }
  Arg{fn, "weight", weight}.on_device_of(x, "x").is_float().has_shape("[channels]", {s.channels});
  if (bias) Arg{fn, "bias", *bias}.on_device_of(x, "x").is_float().has_shape("[channels]", {s.channels});
  if (residual) {
    Arg added{fn, "residual", *residual};
    added.on_device_of(x, "x").has_shape("like x", {s.batch, s.rows, s.channels});
    added.is_data_dtype_beside(x, "x");
  }
  if (z) {
    Arg gate{fn, "z", *z};
    gate.on_device_of(x, "x").has_shape("like x", {s.batch, s.rows, s.channels});
    gate.is_data_dtype_beside(x, "x");
  }
  return s;
}

}  // namespace
}  // namespace detail

namespace detail {

const char* rms_norm_name(bool centered, std::optional<bool> norm_before_gate) {
  if (norm_before_gate) return centered ? "layernorm_fn" : "rmsnorm_fn";
  return centered ? "layer_norm_fn" : "rms_norm_fn";
}

}  // namespace detail

RmsNormSizes check_rms_norm(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                            const OptionalTensor& residual, const OptionalTensor& z, int64_t group_size,
                            bool centered, std::optional<bool> norm_before_gate) {
  return detail::check_norm(detail::rms_norm_name(centered, norm_before_gate), x, weight, bias, residual, z,
                            group_size);
}

RmsNormSizes check_rms_norm_backward(const Tensor& dout, const OptionalTensor& dsum,
                                     const OptionalTensor& given_x, const Tensor& weight,
                                     const OptionalTensor& bias, const OptionalTensor& residual,
                                     const OptionalTensor& z, const Tensor& mean, const Tensor& rstd,
                                     int64_t group_size, bool centered,
                                     std::optional<bool> norm_before_gate) {
  const char* fn = detail::rms_norm_name(centered, norm_before_gate);
  check(given_x || residual, fn, ": x must be given to the backward when residual is not");
  const Tensor& x = given_x ? *given_x : dout;
  const RmsNormSizes s = detail::check_norm(fn, x, weight, bias, residual, z, group_size);
  Arg grad{fn, "dout", dout};
  grad.on_device_of(x, "x").has_shape("like x", {s.batch, s.rows, s.channels});
  grad.has_dtype(type_of(x), "like x");
  if (dsum) {
    Arg sum{fn, "dsum", *dsum};
    sum.on_device_of(x, "x").is_data_dtype().has_shape("like x", {s.batch, s.rows, s.channels});
  }
  const auto check_statistic = [&](const char* name, const Tensor& t) {
    Arg statistic{fn, name, t};
    statistic.on_device_of(x, "x").has_shape("[batch, rows, groups]", {s.batch, s.rows, s.groups});
    statistic.has_dtype(state_dtype(type_of(x)), "(the arithmetic of x)");
    check(t.is_contiguous(), fn, ": ", name, " must be contiguous");
  };
  check_statistic("rstd", rstd);
  if (centered) check_statistic("mean", mean);
  return s;
}

ScalarType rms_norm_sum_dtype(const Tensor& x, const OptionalTensor& residual, bool wide_sum) {
  if (wide_sum) return state_dtype(type_of(x));
  return residual ? type_of(*residual) : type_of(x);
}

}  // namespace mamba_aot
