// rms_norm on CUDA: check, allocate, pick a variant, launch. The kernels are csrc/kernels/rms_norm.py.
#include "ops/rms_norm.h"

#include <algorithm>

#include "generated/rms_norm.gen.h"
#include "ops/launch_arguments.h"

namespace mamba_aot::cuda {
namespace {

using generated::RmsNormBwd;
using generated::RmsNormFwd;

// Bits of the kernels' `flags`, the same as in csrc/kernels/rms_norm.py.
enum Flag : int32_t {
  kHasBias = 1,
  kHasResidual = 2,
  kHasZ = 4,
  kGateLast = 8,
  kCentered = 16,
  kHasSum = 32,
  kHasDresidual = 64,
  kHasX = 128,
};

// Where the dtype codes start in `flags`, and whose they are.
constexpr int kDtypes = 8;
enum Position { kWeight, kBias, kResidual, kSum };

// The longest rows that kernels take in one block, see the configurations in csrc/kernels/rms_norm.py. Longer
// ones go the way of rows that lie anyhow.
constexpr int64_t kWholeForward = 8192;
constexpr int64_t kWholeBackward = 4096;

// PROGRAMS of csrc/kernels/tuned are for rows of up to so many channels.
constexpr int64_t kShortRow = 1024;

// A program adds up at most this many rows in one fp32 number; more would cost digits.
constexpr int64_t kRowsInOneSum = 256;

void check_limits(const char* fn, const RmsNormSizes& s) {
  check(s.channels < INT32_MAX - 8192, fn, ": on CUDA channels must be below 2^31 - 8192, got ", s.channels);
  check(s.all_rows() < (INT32_MAX - 1024) / std::max<int64_t>(1, s.groups), fn,
        ": on CUDA rows times groups must be below 2^31 - 1024, got ", s.all_rows(), " rows of ", s.groups,
        " groups. Split the rows.");
}

int32_t dtype_code(const Tensor& t, Position position) {
  const int32_t code = type_of(t) == ScalarType::Half ? 1 : type_of(t) == ScalarType::BFloat16 ? 2 : 0;
  return code << (kDtypes + 2 * position);
}

int32_t dtype_code(const OptionalTensor& t, Position position) { return t ? dtype_code(*t, position) : 0; }

// A weight or bias as the kernels read it: contiguous, of any dtype but float64.
Tensor parameter(const Tensor& t) {
  return to_state_dtype(t, type_of(t) == ScalarType::Double ? ScalarType::Float : type_of(t));
}

OptionalTensor parameter(const OptionalTensor& t) {
  if (!t) return std::nullopt;
  return parameter(*t);
}

bool aligned(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0; }

// Element strides of a [batch, rows, channels] tensor; those of a missing one are 0 and fit any layout.
struct RowStrides {
  int64_t batch = 0, row = 0, channel = 1;
  // Each row is contiguous and on a 16-element boundary: what the "rows" variants are compiled for.
  bool rows = true;

  explicit RowStrides(const OptionalTensor& t) {
    if (!t) return;
    // A dimension of one element is never stepped along, so its stride means nothing.
    batch = t->size(0) > 1 ? t->stride(0) : 0;
    row = t->size(1) > 1 ? t->stride(1) : 0;
    channel = t->size(2) > 1 ? t->stride(2) : 1;
    rows = channel == 1 && batch % 16 == 0 && row % 16 == 0 && aligned(*t);
  }

  void put(int64_t& to_batch, int64_t& to_row, int64_t& to_channel) const {
    to_batch = batch;
    to_row = row;
    to_channel = channel;
  }
};

// What both directions hand to their kernel besides their own tensors.
struct Inputs {
  Tensor weight;
  OptionalTensor bias;
  RowStrides x, residual, z;
  int32_t flags;
  bool rows;

  Inputs(const RmsNormSizes& s, const OptionalTensor& x_, const Tensor& weight_, const OptionalTensor& bias_,
         const OptionalTensor& residual_, const OptionalTensor& z_, bool centered, bool last)
      : weight(parameter(weight_)), bias(parameter(bias_)), x(x_), residual(residual_), z(z_) {
    flags = (x_ ? kHasX : 0) | (bias ? kHasBias : 0) | (residual_ ? kHasResidual : 0) | (z_ ? kHasZ : 0) |
            (last ? kGateLast : 0) | (centered ? kCentered : 0) | dtype_code(weight, kWeight) |
            dtype_code(bias, kBias) | dtype_code(residual_, kResidual);
    rows = s.group_size % 16 == 0 && x.rows && residual.rows && z.rows && aligned(weight) &&
           (!bias || aligned(*bias));
  }
};

}  // namespace

RmsNormOutputs rms_norm_fwd(Tensor x, Tensor weight, OptionalTensor bias, OptionalTensor residual,
                            OptionalTensor z, double eps, int64_t group_size, bool centered,
                            std::optional<bool> norm_before_gate, bool keep_sum, bool wide_sum) {
  const RmsNormSizes s = check_rms_norm(x, weight, bias, residual, z, group_size, centered, norm_before_gate);
  if (!of_one_dtype(x, x, z)) {
    auto wide = rms_norm_fwd(in_float32(x), weight, bias, residual, in_float32(z), eps, group_size, centered,
                             norm_before_gate, keep_sum, wide_sum);
    std::get<0>(wide) = to_input_dtype(std::get<0>(wide), x);
    std::get<1>(wide) = to_input_dtype(std::get<1>(wide), x);
    return wide;
  }
  check_limits(detail::rms_norm_name(centered, norm_before_gate), s);
  constexpr ScalarType kFloat = ScalarType::Float;
  Tensor out = empty_on(x, {s.batch, s.rows, s.channels}, type_of(x));
  Tensor sum = keep_sum
                   ? empty_on(x, {s.batch, s.rows, s.channels}, rms_norm_sum_dtype(x, residual, wide_sum))
                   : absent_on(x);
  Tensor mean = centered ? empty_on(x, {s.batch, s.rows, s.groups}, kFloat) : empty_on(x, {0}, kFloat);
  Tensor rstd = empty_on(x, {s.batch, s.rows, s.groups}, kFloat);
  if (s.empty()) return {out, sum, mean, rstd};
  const Inputs in(s, x, weight, bias, residual, z, centered, gate_last(norm_before_gate));
  using Layout = RmsNormFwd::Layout;
  const bool whole = in.rows && s.group_size <= kWholeForward;
  const RmsNormFwd::Key key{storage_of(x), whole ? Layout::rows : Layout::strided};
  const auto& config = RmsNormFwd::pick(key, {s.group_size});
  RmsNormFwd::Args args{};
  args.x = pointer(x);
  args.residual = pointer(residual);
  args.z = pointer(z);
  args.weight = pointer(in.weight);
  args.bias = pointer(in.bias);
  args.out = pointer(out);
  args.sum_out = pointer(sum);
  args.mean_out = pointer(mean);
  args.rstd_out = pointer(rstd);
  args.eps = static_cast<float>(eps);
  args.all_rows = static_cast<int32_t>(s.all_rows());
  args.inner_rows = static_cast<int32_t>(s.rows);
  args.channels = static_cast<int32_t>(s.channels);
  args.G = static_cast<int32_t>(s.group_size);
  in.x.put(args.x_batch, args.x_row, args.x_channel);
  in.residual.put(args.residual_batch, args.residual_row, args.residual_channel);
  in.z.put(args.z_batch, args.z_row, args.z_channel);
  args.flags = in.flags | format_flag(x) | (keep_sum ? kHasSum | dtype_code(sum, kSum) : 0);
  const int64_t programs = ceil_div(s.all_rows(), config.ROWS) * s.groups;
  RmsNormFwd::launch(key, config, x.get_device_index(), programs, args);
  return {out, sum, mean, rstd};
}

RmsNormGradients rms_norm_bwd(Tensor dout, OptionalTensor dsum, OptionalTensor x, Tensor weight,
                              OptionalTensor bias, OptionalTensor residual, OptionalTensor z, Tensor mean,
                              Tensor rstd, double eps, int64_t group_size, bool centered,
                              std::optional<bool> norm_before_gate) {
  const RmsNormSizes s = check_rms_norm_backward(dout, dsum, x, weight, bias, residual, z, mean, rstd,
                                                 group_size, centered, norm_before_gate);
  if (!of_one_dtype(dout, dout, z)) {
    auto wide = rms_norm_bwd(in_float32(dout), dsum, in_float32(x), weight, bias, residual, in_float32(z),
                             mean, rstd, eps, group_size, centered, norm_before_gate);
    std::get<0>(wide) = to_input_dtype(std::get<0>(wide), dout);
    std::get<2>(wide) = to_input_dtype(std::get<2>(wide), bias ? *bias : dout);
    std::get<3>(wide) = to_input_dtype(std::get<3>(wide), dout);
    std::get<4>(wide) = to_input_dtype(std::get<4>(wide), *z);
    return wide;
  }
  check_limits(detail::rms_norm_name(centered, norm_before_gate), s);
  Tensor dx = empty_on(dout, {s.batch, s.rows, s.channels}, type_of(dout));
  const bool own = has_own_gradient(residual, dout);
  Tensor dresidual =
      own ? empty_on(dout, {s.batch, s.rows, s.channels}, type_of(*residual)) : absent_on(dout);
  Tensor dz = z ? empty_on(dout, {s.batch, s.rows, s.channels}, type_of(dout)) : absent_on(dout);
  if (s.empty()) {
    return {dx, torch::stable::new_zeros(weight, {s.channels}),
            bias ? torch::stable::new_zeros(*bias, {s.channels}) : absent_on(dout), dresidual, dz};
  }
  const Inputs in(s, x, weight, bias, residual, z, centered, gate_last(norm_before_gate));
  const RowStrides gs(dout), ss(dsum);
  using Layout = RmsNormBwd::Layout;
  const bool whole = in.rows && s.group_size <= kWholeBackward && gs.rows && ss.rows;
  const RmsNormBwd::Key key{storage_of(dout), whole ? Layout::rows : Layout::strided};
  const auto& config = RmsNormBwd::pick(key, {s.group_size});
  // As many programs as there is room for at once, each with a plane of sums: twice the row takes twice the
  // registers.
  const int64_t room =
      RmsNormBwd::PROGRAMS(dout.get_device_index()) / std::max<int64_t>(1, config.BLOCK / kShortRow);
  const int64_t wanted =
      std::clamp<int64_t>(ceil_div(s.all_rows() * s.groups, std::max<int64_t>(1, room)), 1, kRowsInOneSum);
  const int64_t rows_a_program = ceil_div(wanted, config.ROWS) * config.ROWS;
  const int64_t blocks = ceil_div(s.all_rows(), rows_a_program);
  Tensor planes = empty_on(dout, {blocks, bias ? 2 : 1, s.channels}, ScalarType::Float);
  RmsNormBwd::Args args{};
  args.dout = pointer(dout);
  args.dsum = pointer(dsum);
  args.x = pointer(x);
  args.residual = pointer(residual);
  args.z = pointer(z);
  args.weight = pointer(in.weight);
  args.bias = pointer(in.bias);
  args.mean_in = pointer(mean);
  args.rstd_in = pointer(rstd);
  args.dx = pointer(dx);
  args.dresidual = pointer(dresidual);
  args.dz = pointer(dz);
  args.planes = pointer(planes);
  args.eps = static_cast<float>(eps);
  args.all_rows = static_cast<int32_t>(s.all_rows());
  args.inner_rows = static_cast<int32_t>(s.rows);
  args.rows_a_program = static_cast<int32_t>(rows_a_program);
  args.channels = static_cast<int32_t>(s.channels);
  args.G = static_cast<int32_t>(s.group_size);
  gs.put(args.dout_batch, args.dout_row, args.dout_channel);
  ss.put(args.dsum_batch, args.dsum_row, args.dsum_channel);
  in.x.put(args.x_batch, args.x_row, args.x_channel);
  in.residual.put(args.residual_batch, args.residual_row, args.residual_channel);
  in.z.put(args.z_batch, args.z_row, args.z_channel);
  args.flags = in.flags | format_flag(dout) | (dsum ? kHasSum : 0) | dtype_code(dsum, kSum) |
               (own ? kHasDresidual : 0);
  RmsNormBwd::launch(key, config, dout.get_device_index(), blocks * s.groups, args);

  const int64_t over_blocks[] = {0};
  Tensor sums = torch::stable::sum(planes, over_blocks);
  return {dx, gradient_of(weight, torch::stable::select(sums, 0, 0)),
          bias ? gradient_of(*bias, torch::stable::select(sums, 0, 1)) : absent_on(dout), dresidual, dz};
}

}  // namespace mamba_aot::cuda
