// mamba1_step of many rows on CUDA: norm, tensor-core products, convolution, state. The kernels are
// csrc/kernels/_mamba1_step_rows.py and _mamba1_step_rows_state.py.
#pragma once

#include <algorithm>
#include <type_traits>

#include "generated/mamba1_step.gen.h"
#include "ops/launch_arguments.h"
#include "ops/mamba1_step.h"
#include "runtime/launch.h"

namespace mamba_aot::cuda {
namespace rows {

using generated::Mamba1StepRowsConvolution;
using generated::Mamba1StepRowsNorm;
using generated::Mamba1StepRowsProject;
using generated::Mamba1StepRowsProjectLarge;
using generated::Mamba1StepRowsState;
using generated::Mamba1StepRowsSum;

// Rows of a matrix and vectors of a tile of the tensor cores.
constexpr int64_t kTileRows = 16, kTileVectors = 8;
// Vectors that the kernel of larger tiles is made for: VECTORS of csrc/kernels/_matrix_streams.py.
constexpr int64_t kMostVectors = 64;

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

// out = the sum of `shares` [parts, ...] over the parts.
inline void add_up(const Tensor& shares, const Tensor& out) {
  const Mamba1StepRowsSum::Key key{};
  const auto& config = Mamba1StepRowsSum::pick(key, {});
  Mamba1StepRowsSum::Args args{};
  args.shares = pointer(shares);
  args.out = pointer(out);
  args.size = out.numel();
  args.parts = static_cast<int32_t>(shares.size(0));
  args.flags = format_flag(out);
  Mamba1StepRowsSum::launch(key, config, out.get_device_index(), ceil_div(args.size, config.BLOCK), args);
}

// Launches a product by `Kernel`, whose programs are `tiles` times `parts` of the columns.
template <class Kernel>
Tensor project_by(const typename Kernel::Key& key, const typename Kernel::Config& config, const Tensor& x,
                  const Tensor& weight, int64_t tiles, int64_t parts) {
  const int64_t rows = weight.size(0), batch = x.size(0);
  const Tensor out = empty_on(x, {batch, rows}, type_of(weight));
  const auto shares =
      parts > 1 ? OptionalTensor(empty_on(x, {parts, batch, rows}, ScalarType::Float)) : OptionalTensor();
  typename Kernel::Args args{};
  args.x = pointer(x);
  args.matrix = pointer(weight);
  args.out = pointer(out);
  args.shares = pointer(shares);
  args.rows = static_cast<int32_t>(rows);
  args.width = static_cast<int32_t>(weight.size(1));
  args.batch = static_cast<int32_t>(batch);
  args.x_row = x.stride(0);
  args.parts = static_cast<int32_t>(parts);
  if constexpr (std::is_same_v<Kernel, Mamba1StepRowsProject>) args.flags = format_flag(weight);
  Kernel::launch(key, config, weight.get_device_index(), tiles * parts, args);
  if (shares) add_up(*shares, out);
  return out;
}

// How the kernel of larger tiles takes a matrix: all multiprocessors are to read it equally long, a program
// each.
struct LargePlan {
  const Mamba1StepRowsProjectLarge::Config* config = nullptr;
  int64_t tiles = 0, parts = 0;
};

inline LargePlan plan_large(const Tensor& weight, const Mamba1StepRowsProjectLarge::Key& key) {
  const int32_t device = weight.get_device_index();
  const int64_t rows = weight.size(0), width = weight.size(1);
  const int64_t multiprocessors = runtime::multiprocessors_of(device);
  const int64_t most_parts =
      ceil_div(width, std::max<int64_t>(1, Mamba1StepRowsProjectLarge::COLUMNS(device)));
  LargePlan plan;
  int64_t least = 0;
  for (const int32_t tall : {0, 1}) {
    const auto& config = Mamba1StepRowsProjectLarge::pick(key, {tall, device});
    const int64_t tile = config.TALL + config.EXTRA, tiles = ceil_div(rows, tile);
    const int64_t parts = std::clamp<int64_t>(multiprocessors / tiles, 1, most_parts);
    const int64_t longest = ceil_div(tiles * parts, multiprocessors) * tile * ceil_div(width, parts);
    if (plan.config != nullptr && longest >= least) continue;
    plan = {&config, tiles, parts};
    least = longest;
  }
  return plan;
}

// x weight^T, [batch, rows of weight]; x [batch, columns of weight] may have its rows apart.
inline Tensor project(const Tensor& x, const Tensor& weight) {
  const int32_t device = weight.get_device_index();
  const int64_t rows = weight.size(0), width = weight.size(1), batch = x.size(0);
  if (batch <= kMostVectors) {
    const Mamba1StepRowsProjectLarge::Key key{dtype_of(weight)};
    const LargePlan plan = plan_large(weight, key);
    if (Mamba1StepRowsProjectLarge::is_for(key, *plan.config, device)) {
      return project_by<Mamba1StepRowsProjectLarge>(key, *plan.config, x, weight, plan.tiles, plan.parts);
    }
  }
  // A matrix that takes longer to read than a kernel takes to begin is read faster by torch's product.
  if (rows * width >= Mamba1StepRowsProject::WIDE(device)) {
    return torch::stable::matmul(x, torch::stable::transpose(weight, 0, 1));
  }
  const auto& config = Mamba1StepRowsProject::pick({}, {rows, device});
  const int64_t tiles = ceil_div(rows, kTileRows * config.M) * ceil_div(batch, kTileVectors * config.N);
  const int64_t parts = std::min(ceil_div(width, std::max<int64_t>(1, Mamba1StepRowsProject::WIDTH(device))),
                                 std::max<int64_t>(1, Mamba1StepRowsProject::PROGRAMS(device) / tiles));
  return project_by<Mamba1StepRowsProject>({}, config, x, weight, tiles, parts);
}

inline void update_state(const Mamba1StepTensors& t, const Mamba1StepSizes& s, const Tensor& low,
                         const Tensor& xz, const Tensor& y) {
  const Mamba1StepRowsState::Key key{storage_of(t.ssm_state)};
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
  const ScalarType type = type_of(t.x);
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
