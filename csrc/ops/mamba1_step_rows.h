// mamba1_step of many rows on CUDA: norm, tensor-core products, convolution, state. The kernels are
// csrc/kernels/_mamba1_step_rows.py.
#pragma once

#include <algorithm>

#include "generated/mamba1_step.gen.h"
#include "ops/launch_arguments.h"
#include "ops/mamba1_step.h"

namespace mamba_aot::cuda {
namespace rows {

using generated::Mamba1StepRowsConvolution;
using generated::Mamba1StepRowsNorm;
using generated::Mamba1StepRowsProject;
using generated::Mamba1StepRowsState;
using generated::Mamba1StepRowsSum;

// Rows of a matrix and vectors of a tile of the tensor cores.
constexpr int64_t kTileRows = 16, kTileVectors = 8;

inline void norm(const Mamba1StepTensors& t, const Mamba1StepSizes& s, double eps, int32_t flags,
                 const Tensor& sum, const Tensor& normed) {
  const Mamba1StepRowsNorm::Key key{};
  Mamba1StepRowsNorm::Args args{};
  args.x = pointer(t.x);
  args.residual = pointer(t.residual);
  args.norm_weight = pointer(t.norm_weight);
  args.sum_out = pointer(sum);
  args.out = pointer(normed);
  args.eps = static_cast<float>(eps);
  args.width = static_cast<int32_t>(s.width);
  args.flags = flags;
  Mamba1StepRowsNorm::launch(key, Mamba1StepRowsNorm::pick(key, {}), t.x.get_device_index(), s.batch, args);
}

inline void convolve(const Mamba1StepTensors& t, const Mamba1StepSizes& s, int32_t flags, const Tensor& xz) {
  const Mamba1StepRowsConvolution::Key key{};
  const auto& config = Mamba1StepRowsConvolution::pick(key, {s.inner});
  Mamba1StepRowsConvolution::Args args{};
  args.xz = pointer(xz);
  args.conv_state = pointer(t.conv_state);
  args.conv_weight = pointer(t.conv_weight);
  args.conv_bias = pointer(t.conv_bias);
  args.inner = static_cast<int32_t>(s.inner);
  args.taps = static_cast<int32_t>(s.taps);
  args.kept = static_cast<int32_t>(s.kept);
  args.flags = flags;
  const int64_t programs = s.batch * ceil_div(s.inner, config.CHANNELS);
  Mamba1StepRowsConvolution::launch(key, config, t.x.get_device_index(), programs, args);
}

// x weight^T, [batch, rows of weight]; x [batch, columns of weight] may have its rows apart.
inline Tensor project(const Tensor& x, const Tensor& weight) {
  const Mamba1StepRowsProject::Key key{};
  const int32_t device = weight.get_device_index();
  const int64_t rows = weight.size(0), width = weight.size(1), batch = x.size(0);
  // A matrix that takes longer to read than a kernel takes to begin is read faster by torch's product.
  if (rows * width >= Mamba1StepRowsProject::WIDE(device)) {
    return torch::stable::matmul(x, torch::stable::transpose(weight, 0, 1));
  }
  Tensor out = empty_on(x, {batch, rows}, weight.scalar_type());
  const auto& config = Mamba1StepRowsProject::pick(key, {rows, device});
  const int64_t tiles = ceil_div(rows, kTileRows * config.M) * ceil_div(batch, kTileVectors * config.N);
  const int64_t parts = std::min(ceil_div(width, std::max<int64_t>(1, Mamba1StepRowsProject::WIDTH(device))),
                                 std::max<int64_t>(1, Mamba1StepRowsProject::PROGRAMS(device) / tiles));
  const auto shares =
      parts > 1 ? OptionalTensor(empty_on(x, {parts, batch, rows}, ScalarType::Float)) : OptionalTensor();
  Mamba1StepRowsProject::Args args{};
  args.x = pointer(x);
  args.matrix = pointer(weight);
  args.out = pointer(out);
  args.shares = pointer(shares);
  args.rows = static_cast<int32_t>(rows);
  args.width = static_cast<int32_t>(width);
  args.batch = static_cast<int32_t>(batch);
  args.x_row = x.stride(0);
  args.parts = static_cast<int32_t>(parts);
  args.flags = format_flag(weight);
  Mamba1StepRowsProject::launch(key, config, device, tiles * parts, args);
  if (parts == 1) return out;

  const Mamba1StepRowsSum::Key sum_key{};
  const auto& sum_config = Mamba1StepRowsSum::pick(sum_key, {});
  Mamba1StepRowsSum::Args sum{};
  sum.shares = pointer(shares);
  sum.out = pointer(out);
  sum.size = batch * rows;
  sum.parts = static_cast<int32_t>(parts);
  sum.flags = args.flags;
  Mamba1StepRowsSum::launch(sum_key, sum_config, device, ceil_div(batch * rows, sum_config.BLOCK), sum);
  return out;
}

inline void update_state(const Mamba1StepTensors& t, const Mamba1StepSizes& s, const Tensor& low,
                         const Tensor& xz, const Tensor& y) {
  const Mamba1StepRowsState::Key key{};
  const auto& config = Mamba1StepRowsState::pick(key, {});
  Mamba1StepRowsState::Args args{};
  args.low = pointer(low);
  args.dt_proj = pointer(t.dt_proj);
  args.dt_bias = pointer(t.dt_bias);
  args.A = pointer(t.A);
  args.D_skip = pointer(t.D);
  args.xz = pointer(xz);
  args.state = pointer(t.ssm_state);
  args.out = pointer(y);
  args.batch = static_cast<int32_t>(s.batch);
  args.inner = static_cast<int32_t>(s.inner);
  args.rank = static_cast<int32_t>(s.rank);
  args.flags = format_flag(t.x);
  const int64_t programs = s.inner / kTileRows * ceil_div(s.batch, kTileVectors * config.N);
  Mamba1StepRowsState::launch(key, config, t.x.get_device_index(), programs, args);
}

}  // namespace rows

// The checked step of at least one row: writes the states of t and `sum`, returns the block's output. `flags`
// are those of mamba1_step_in.
inline Tensor mamba1_step_rows(const Mamba1StepTensors& t, const Mamba1StepSizes& s, double eps,
                               int32_t flags, const Tensor& sum) {
  const ScalarType type = t.x.scalar_type();
  Tensor normed = empty_on(t.x, {s.batch, s.width}, type);
  rows::norm(t, s, eps, flags, sum, normed);
  Tensor xz = rows::project(normed, t.in_proj);
  rows::convolve(t, s, flags, xz);
  const Tensor low = rows::project(torch::stable::narrow(xz, 1, 0, s.inner), t.x_proj);
  const Tensor y = empty_on(t.x, {s.batch, s.inner}, type);
  rows::update_state(t, s, low, xz, y);
  return rows::project(y, t.out_proj);
}

}  // namespace mamba_aot::cuda
