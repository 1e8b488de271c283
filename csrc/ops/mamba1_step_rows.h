// mamba1_step of many rows on CUDA: norms, tensor-core products, convolution, state. The kernels are
// csrc/kernels/_mamba1_step_rows.py and _mamba1_step_rows_state.py.
#pragma once

#include <algorithm>
#include <type_traits>

#include "generated/mamba1_step.gen.h"
#include "ops/launch_arguments.h"
#include "ops/mamba1_step.h"
#include "runtime/launch.h"

namespace mamba_aot::cuda {

// Bits of the kernels' `flags`, the same as in csrc/kernels/_mamba1_step_sum.py and
// _mamba1_step_convolution.py.
enum Flag : int32_t { kHasResidual = 2, kHasBias = 4, kInWords = 32 };
constexpr int kResidualType = 16, kSumType = 18;

// Of a kernel that adds x and residual.
inline int32_t flags_of_sum(const OptionalTensor& residual, const Tensor& sum) {
  return code_of(sum) << kSumType | (residual ? kHasResidual | code_of(*residual) << kResidualType : 0);
}

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

// A product: as a whole, or in fp32 parts [parts, batch, rows] that whoever reads it adds up.
struct Product {
  OptionalTensor whole, shares;

  int32_t parts() const { return shares ? static_cast<int32_t>(shares->size(0)) : 0; }
};

// out = norm(x + residual) weight; the sum goes to `sum`.
inline void norm(const Product& x, const OptionalTensor& residual, const Tensor& weight, double eps,
                 const Tensor& sum, const Tensor& out) {
  const Mamba1StepRowsNorm::Key key{};
  const int64_t batch = out.size(0), width = out.size(1);
  Mamba1StepRowsNorm::Args args{};
  args.x = pointer(x.whole);
  args.shares = pointer(x.shares);
  args.residual = pointer(residual);
  args.norm_weight = pointer(weight);
  args.sum_out = pointer(sum);
  args.out = pointer(out);
  args.eps = static_cast<float>(eps);
  args.size = batch * width;
  args.width = static_cast<int32_t>(width);
  args.parts = x.parts();
  args.flags = format_flag(out) | flags_of_sum(residual, sum);
  Mamba1StepRowsNorm::launch(key, Mamba1StepRowsNorm::pick(key, {}), out.get_device_index(), batch, args);
}

// out = the sum of `shares` [parts, ...] over the parts.
inline void add_up(const Tensor& shares, const Tensor& out) {
  const Mamba1StepRowsSum::Key key{};
  const int64_t parts = shares.size(0);
  const auto& config = Mamba1StepRowsSum::pick(key, {parts});
  Mamba1StepRowsSum::Args args{};
  args.shares = pointer(shares);
  args.out = pointer(out);
  args.size = out.numel();
  args.parts = static_cast<int32_t>(parts);
  args.flags = format_flag(out);
  Mamba1StepRowsSum::launch(key, config, out.get_device_index(), ceil_div(args.size, config.BLOCK), args);
}

inline Tensor whole(const Product& product, ScalarType type) {
  if (product.whole) return *product.whole;
  const Tensor out = empty_on(*product.shares, {product.shares->size(1), product.shares->size(2)}, type);
  add_up(*product.shares, out);
  return out;
}

// What goes into the state: x of the convolution, contiguous, and z, whose rows lie `z_row` apart.
struct Inner {
  Tensor x, z;
  int64_t z_row;
};

// Convolution and SiLU of the first half of in_proj's results.
inline Inner convolve(const Mamba1StepTensors& t, const Mamba1StepSizes& s, const Product& in) {
  const auto of_channels = [&] { return empty_on(t.x, {s.batch, s.inner}, type_of(t.x)); };
  Inner made{of_channels(), {}, s.inner};
  if (in.whole) {
    Tensor xz = *in.whole;
    made.z = torch::stable::narrow(xz, 1, s.inner, s.inner);
    made.z_row = 2 * s.inner;
  } else {
    made.z = of_channels();
  }
  const Mamba1StepRowsConvolution::Key key{};
  const auto& config = Mamba1StepRowsConvolution::pick(key, {s.inner});
  Mamba1StepRowsConvolution::Args args{};
  args.xz = pointer(in.whole);
  args.shares = pointer(in.shares);
  args.conv_state = pointer(t.conv_state);
  args.conv_weight = pointer(t.conv_weight);
  args.conv_bias = pointer(t.conv_bias);
  args.x = pointer(made.x);
  args.z = pointer(made.z);
  args.size = s.batch * 2 * s.inner;
  args.inner = static_cast<int32_t>(s.inner);
  args.taps = static_cast<int32_t>(s.taps);
  args.kept = static_cast<int32_t>(s.kept);
  args.parts = in.parts();
  const bool in_words =
      s.taps == 4 && s.kept == 3 && reinterpret_cast<uintptr_t>(t.conv_state.data_ptr()) % 4 == 0;
  args.flags = format_flag(t.x) | (t.conv_bias ? kHasBias : 0) | (in_words ? kInWords : 0);
  const int64_t programs = s.batch * ceil_div(s.inner, config.CHANNELS);
  Mamba1StepRowsConvolution::launch(key, config, t.x.get_device_index(), programs, args);
  return made;
}

// Launches a product by `Kernel`, whose programs are `tiles` times `parts` of the columns.
template <class Kernel>
Product project_by(const typename Kernel::Key& key, const typename Kernel::Config& config, const Tensor& x,
                   const Tensor& weight, int64_t tiles, int64_t parts) {
  const int64_t rows = weight.size(0), batch = x.size(0);
  Product product;
  if (parts > 1) {
    product.shares = empty_on(x, {parts, batch, rows}, ScalarType::Float);
  } else {
    product.whole = empty_on(x, {batch, rows}, type_of(weight));
  }
  typename Kernel::Args args{};
  args.x = pointer(x);
  args.matrix = pointer(weight);
  args.out = pointer(product.whole);
  args.shares = pointer(product.shares);
  args.rows = static_cast<int32_t>(rows);
  args.width = static_cast<int32_t>(weight.size(1));
  args.batch = static_cast<int32_t>(batch);
  args.parts = static_cast<int32_t>(parts);
  if constexpr (std::is_same_v<Kernel, Mamba1StepRowsProject>) args.flags = format_flag(weight);
  Kernel::launch(key, config, weight.get_device_index(), tiles * parts, args);
  return product;
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

// x weight^T, [batch, rows of weight].
inline Product project(const Tensor& x, const Tensor& weight) {
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
    return {torch::stable::matmul(x, torch::stable::transpose(weight, 0, 1)), std::nullopt};
  }
  const auto& config = Mamba1StepRowsProject::pick({}, {rows, device});
  const int64_t tiles = ceil_div(rows, kTileRows * config.M) * ceil_div(batch, kTileVectors * config.N);
  const int64_t parts = std::min(ceil_div(width, std::max<int64_t>(1, Mamba1StepRowsProject::WIDTH(device))),
                                 std::max<int64_t>(1, Mamba1StepRowsProject::PROGRAMS(device) / tiles));
  return project_by<Mamba1StepRowsProject>({}, config, x, weight, tiles, parts);
}

inline void update_state(const Mamba1StepTensors& t, const Mamba1StepSizes& s, const Tensor& low,
                         const Inner& in, const Tensor& y) {
  const Mamba1StepRowsState::Key key{storage_of(t.ssm_state)};
  const auto& config = Mamba1StepRowsState::pick(key, {s.batch, s.inner});
  Mamba1StepRowsState::Args args{};
  args.low = pointer(low);
  args.dt_proj = pointer(t.dt_proj);
  args.dt_bias = pointer(t.dt_bias);
  args.A = pointer(t.A);
  args.D_skip = pointer(t.D);
  args.x = pointer(in.x);
  args.z = pointer(in.z);
  args.z_row = static_cast<int32_t>(in.z_row);
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

// The checked step of at least one row: writes the states of t and `sum`, returns what comes after it.
inline Tensor mamba1_step_rows(const Mamba1StepTensors& t, const Mamba1StepSizes& s, double eps,
                               double next_eps, const Tensor& sum) {
  const ScalarType type = type_of(t.x);
  const auto token = [&](ScalarType of) { return empty_on(t.x, {s.batch, s.width}, of); };
  Tensor normed = t.x;
  OptionalTensor total = t.residual;
  if (t.norm_weight) {
    normed = token(type);
    total = t.next_norm_weight ? token(type_of(sum)) : sum;
    rows::norm({t.x, std::nullopt}, t.residual, *t.norm_weight, eps, *total, normed);
  }
  const rows::Inner in = rows::convolve(t, s, rows::project(normed, t.in_proj));
  const Tensor low = rows::whole(rows::project(in.x, t.x_proj), type);
  const Tensor y = empty_on(t.x, {s.batch, s.inner}, type);
  rows::update_state(t, s, low, in, y);
  const rows::Product made = rows::project(y, t.out_proj);
  if (!t.next_norm_weight) return rows::whole(made, type);
  const Tensor out = token(type);
  rows::norm(made, total, *t.next_norm_weight, next_eps, sum, out);
  return out;
}

}  // namespace mamba_aot::cuda
