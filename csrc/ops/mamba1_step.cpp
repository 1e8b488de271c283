// mamba1_step on CUDA: check, allocate, four launches, or those of mamba1_step_rows.h. The kernels are
// csrc/kernels/mamba1_step.py.
#include "ops/mamba1_step.h"

#include <algorithm>

#include "generated/mamba1_step.gen.h"
#include "ops/launch_arguments.h"
#include "ops/mamba1_step_rows.h"
#include "ops/rms_norm.h"
#include "runtime/batch_invariant.h"

namespace mamba_aot::cuda {
namespace {

using generated::ArgmaxRows;
using generated::ArgmaxRowsParts;
using generated::FewRowsLinear;
using generated::Mamba1StepIn;
using generated::Mamba1StepProject;
using generated::Mamba1StepState;

// A bit of the kernels' `flags`, the same as in csrc/kernels/mamba1_step.py.
constexpr int32_t kWideOut = 8;
// ROUNDS of csrc/kernels/_matrix_vector.py.
constexpr int64_t kMostRounds = 32;

// What the kernels are compiled for.
void check_limits(const Mamba1StepSizes& s, const Tensor& x) {
  const char* fn = detail::kMamba1Step;
  check(storage_of(x) == DType::half, fn, ": x must be float16 or bfloat16 on CUDA, got ", dtype(x));
  check(s.width % 16 == 0 && s.inner % 16 == 0 && s.rank % 16 == 0, fn,
        ": on CUDA d_model, channels and rank must be multiples of 16, got ", s.width, ", ", s.inner, " and ",
        s.rank);
  check(s.state == 16, fn, ": on CUDA A must have 16 states, got ", s.state);
  check(s.taps <= 4, fn, ": on CUDA conv_weight must have at most 4 taps, got ", s.taps);
  check(s.batch * s.inner < (int64_t{1} << 24) && s.width < (int64_t{1} << 24), fn,
        ": on CUDA batch times channels and d_model must be below 2^24, got ", s.batch * s.inner, " and ",
        s.width);
}

// How many rows of a matrix a program takes so that there are about `programs`: some it multiplies at once.
int64_t rows_of_program(int64_t batch, int64_t rows, int64_t at_once, int64_t programs) {
  const int64_t wanted = ceil_div(batch * rows, std::max<int64_t>(1, programs));
  return std::min(ceil_div(wanted, at_once), kMostRounds) * at_once;
}

bool is_aligned(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0; }

void check_aligned(const char* name, const Tensor& t) {
  check(is_aligned(t), detail::kMamba1Step, ": ", name,
        " must begin on a boundary of 16 bytes on CUDA. Pass ", name, ".clone().");
}

// out = weight x for each row of x, fp32 [batch, x_row]; out is fp32 or of the dtype of weight.
void project(const Tensor& x, int64_t x_row, const Tensor& weight, const Tensor& out) {
  const Mamba1StepProject::Key key{};
  const int64_t rows = weight.size(0);
  const int32_t device = weight.get_device_index();
  const auto& config = Mamba1StepProject::pick(key, {weight.size(1), device});
  const int64_t count =
      rows_of_program(x.size(0), rows, config.num_warps / config.SPLIT, Mamba1StepProject::PROGRAMS(device));
  const bool wide = type_of(out) == ScalarType::Float;
  Mamba1StepProject::Args args{};
  args.x = pointer(x);
  args.matrix = pointer(weight);
  args.out = wide ? nullptr : pointer(out);
  args.wide_out = wide ? pointer(out) : nullptr;
  args.rows = static_cast<int32_t>(rows);
  args.width = static_cast<int32_t>(weight.size(1));
  args.x_row = x_row;
  args.count = static_cast<int32_t>(count);
  args.flags = format_flag(weight) | (wide ? kWideOut : 0);
  Mamba1StepProject::launch(key, config, device, x.size(0) * ceil_div(rows, count), args);
}

// Whether there is a kernel for the norm of x + residual and the product, and it is the faster one.
bool has_few_rows_kernel(const Tensor& x, const Tensor& weight, const Tensor& norm_weight,
                         const OptionalTensor& residual) {
  const int64_t batch = x.size(0), width = x.size(1);
  if (storage_of(x) != DType::half || x.numel() == 0 || weight.numel() == 0) return false;
  if (width % 16 != 0 || width >= int64_t{1} << 24 || weight.size(0) >= int64_t{1} << 24) return false;
  if (!is_aligned(x) || !is_aligned(weight) || !is_aligned(norm_weight)) return false;
  if (residual && !is_aligned(*residual)) return false;
  // Each row reads the weight again, and what a head weighs does not stay in the cache.
  return batch_invariant() || batch == 1;
}

Tensor norm_and_project(const Tensor& x, const Tensor& weight, const Tensor& norm_weight,
                        const OptionalTensor& residual, double eps) {
  const int32_t device = x.get_device_index();
  const int64_t batch = x.size(0), width = x.size(1), rows = weight.size(0);
  const FewRowsLinear::Key key{};
  const auto& config = FewRowsLinear::pick(key, {width});
  const int64_t at_once = config.num_warps / config.SPLIT;
  const int64_t programs = std::max<int64_t>(1, Mamba1StepIn::PROGRAMS(device) / batch);
  const int64_t count = ceil_div(ceil_div(rows, programs), at_once) * at_once;
  const Tensor out = empty_on(x, {batch, rows}, type_of(x));
  FewRowsLinear::Args args{};
  args.x = pointer(x);
  args.residual = pointer(residual);
  args.norm_weight = pointer(norm_weight);
  args.matrix = pointer(weight);
  args.out = pointer(out);
  args.eps = static_cast<float>(eps);
  args.rows = static_cast<int32_t>(rows);
  args.width = static_cast<int32_t>(width);
  args.count = static_cast<int32_t>(count);
  args.flags = format_flag(x) | flags_of_sum(residual, x);
  FewRowsLinear::launch(key, config, device, batch * ceil_div(rows, count), args);
  return out;
}

}  // namespace

Mamba1StepOutputs mamba1_step(Tensor x, OptionalTensor residual, OptionalTensor norm_weight, Tensor in_proj,
                              Tensor conv_state, Tensor conv_weight, OptionalTensor conv_bias, Tensor x_proj,
                              Tensor dt_proj, Tensor dt_bias, Tensor A, Tensor D, Tensor ssm_state,
                              Tensor out_proj, OptionalTensor next_norm_weight, double eps, double next_eps,
                              bool wide_sum) {
  const Mamba1StepTensors t{x,           residual,  norm_weight, in_proj,  conv_state,
                            conv_weight, conv_bias, x_proj,      dt_proj,  dt_bias,
                            A,           D,         ssm_state,   out_proj, next_norm_weight};
  const Mamba1StepSizes s = check_mamba1_step(t);
  check_limits(s, x);
  check_aligned("x", x);
  if (residual) check_aligned("residual", *residual);
  if (norm_weight) check_aligned("norm_weight", *norm_weight);
  check_aligned("in_proj", in_proj);
  check_aligned("x_proj", x_proj);
  check_aligned("dt_proj", dt_proj);
  check_aligned("A", A);
  check_aligned("ssm_state", ssm_state);
  check_aligned("out_proj", out_proj);
  if (next_norm_weight) check_aligned("next_norm_weight", *next_norm_weight);
  const bool norms_lie_apart = !norm_weight || next_norm_weight;
  check(
      !norms_lie_apart || !batch_invariant(), detail::kMamba1Step,
      ": with MAMBA_AOT_BATCH_INVARIANT=1 on CUDA, norm_weight must be given and next_norm_weight must not.");
  const ScalarType narrow = type_of(x), wide = ScalarType::Float;
  Tensor sum = empty_on(x, {s.batch, s.width}, wide_sum ? wide : residual ? type_of(*residual) : narrow);
  if (s.batch == 0) return {empty_on(x, {0, s.width}, narrow), sum};
  const int32_t format = format_flag(x), device = x.get_device_index();
  // In the kernels of this file each row of a batch reads the weights again; those of a narrow layer come
  // from the cache. Beyond so many rows times d_model, tensor cores are faster.
  if (norms_lie_apart || (!batch_invariant() && s.batch * s.width > Mamba1StepIn::FEW(device))) {
    return {mamba1_step_rows(t, s, eps, next_eps, sum), sum};
  }
  Tensor out = empty_on(x, {s.batch, s.width}, narrow);
  Tensor xz = empty_on(x, {s.batch, 2 * s.inner}, wide);
  Tensor low = empty_on(x, {s.batch, s.rank + 2 * s.state}, wide);
  Tensor y = empty_on(x, {s.batch, s.inner}, wide);

  const Mamba1StepIn::Key in_key{};
  const auto& in_config = Mamba1StepIn::pick(in_key, {s.width, device});
  const int64_t in_rows = rows_of_program(s.batch, 2 * s.inner, in_config.num_warps / in_config.SPLIT,
                                          Mamba1StepIn::PROGRAMS(device));
  Mamba1StepIn::Args in{};
  in.x = pointer(x);
  in.residual = pointer(residual);
  in.norm_weight = pointer(*norm_weight);
  in.in_proj = pointer(in_proj);
  in.conv_state = pointer(conv_state);
  in.conv_weight = pointer(conv_weight);
  in.conv_bias = pointer(conv_bias);
  in.sum_out = pointer(sum);
  in.xz = pointer(xz);
  in.eps = static_cast<float>(eps);
  in.width = static_cast<int32_t>(s.width);
  in.inner = static_cast<int32_t>(s.inner);
  in.taps = static_cast<int32_t>(s.taps);
  in.kept = static_cast<int32_t>(s.kept);
  in.flags = format | (conv_bias ? kHasBias : 0) | flags_of_sum(residual, sum);
  in.count = static_cast<int32_t>(in_rows);
  Mamba1StepIn::launch(in_key, in_config, device, s.batch * ceil_div(2 * s.inner, in_rows), in);

  project(xz, 2 * s.inner, x_proj, low);

  const Mamba1StepState::Key state_key{storage_of(ssm_state)};
  const auto& state_config = Mamba1StepState::pick(state_key, {});
  Mamba1StepState::Args step{};
  step.low = pointer(low);
  step.dt_proj = pointer(dt_proj);
  step.dt_bias = pointer(dt_bias);
  step.A = pointer(A);
  step.D_skip = pointer(D);
  step.xz = pointer(xz);
  step.state = pointer(ssm_state);
  step.out = pointer(y);
  step.inner = static_cast<int32_t>(s.inner);
  step.rank = static_cast<int32_t>(s.rank);
  step.flags = format;
  Mamba1StepState::launch(state_key, state_config, device, s.batch * (s.inner / state_config.CHANNELS), step);

  project(y, s.inner, out_proj, out);
  return {out, sum};
}

Tensor few_rows_linear(Tensor x, Tensor weight, OptionalTensor norm_weight, OptionalTensor residual,
                       double eps) {
  check_few_rows_linear(x, weight, norm_weight, residual);
  if (norm_weight && has_few_rows_kernel(x, weight, *norm_weight, residual)) {
    return norm_and_project(x, weight, *norm_weight, residual, eps);
  }
  // Torch's product reads the weight as fast as the memory gives it where there are more rows.
  Tensor normed = x;
  if (norm_weight) {
    OptionalTensor added;
    if (residual) added = torch::stable::unsqueeze(*residual, 0);
    normed = torch::stable::select(
        std::get<0>(rms_norm_fwd(torch::stable::unsqueeze(x, 0), *norm_weight, std::nullopt, added,
                                 std::nullopt, eps, 0, false, std::nullopt, false, false)),
        0, 0);
  }
  return torch::stable::matmul(normed, torch::stable::transpose(weight, 0, 1));
}

Tensor argmax_rows(Tensor x) {
  check_argmax_rows(x);
  const int64_t rows = x.size(0), size = x.size(1);
  const int32_t device = x.get_device_index();
  Tensor out = empty_on(x, {rows}, ScalarType::Long);
  const ArgmaxRowsParts::Key parts_key{};
  const auto& parts_config = ArgmaxRowsParts::pick(parts_key, {});
  const int64_t parts = ceil_div(size, parts_config.BLOCK);
  Tensor keys = empty_on(x, {rows, parts}, ScalarType::Long);
  ArgmaxRowsParts::Args found{};
  found.x = pointer(x);
  found.keys = pointer(keys);
  found.size = size;
  found.row_stride = x.stride(0);
  found.parts = static_cast<int32_t>(parts);
  found.code = code_of(x);
  ArgmaxRowsParts::launch(parts_key, parts_config, device, rows * parts, found);

  const ArgmaxRows::Key key{};
  ArgmaxRows::Args args{};
  args.keys = pointer(keys);
  args.out = pointer(out);
  args.parts = static_cast<int32_t>(parts);
  ArgmaxRows::launch(key, ArgmaxRows::pick(key, {}), device, rows, args);
  return out;
}

}  // namespace mamba_aot::cuda
