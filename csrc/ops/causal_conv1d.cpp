// causal_conv1d on CUDA: check, allocate, pick a variant, launch. The kernels are
// csrc/kernels/causal_conv1d.py.
#include "ops/causal_conv1d.h"

#include "generated/causal_conv1d.gen.h"
#include "ops/launch_arguments.h"

namespace mamba_aot::cuda {
namespace {

using generated::CausalConv1dBwd;
using generated::CausalConv1dFwd;
using generated::CausalConv1dUpdate;

// Bits of the kernels' `flags`, the same as in csrc/kernels/causal_conv1d.py.
enum Flag : int32_t { kSilu = 1, kHasBias = 2, kHasStates = 4, kHasIndices = 8 };

int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }

void check_limits(const char* fn, int64_t channels, int64_t length) {
  check(channels < INT32_MAX - 128 && length < INT32_MAX - 1024, fn,
        ": on CUDA channels and length must each be below 2^31 - 1024, got ", channels, " and ", length,
        ". Split the sequence and pass initial_states.");
}

// "seq": rows contiguous along time; "last": contiguous along channels; both on 16-element boundaries.
template <class Layout>
Layout layout_of(std::initializer_list<const Strides*> tensors, int64_t channels, int64_t length) {
  bool seq = length % 16 == 0, last = channels % 16 == 0;
  for (const Strides* t : tensors) {
    seq = seq && t->rows();
    last = last && t->columns();
  }
  return seq ? Layout::seq : last ? Layout::last : Layout::strided;
}

}  // namespace

Tensor causal_conv1d_fwd(Tensor x, Tensor weight, OptionalTensor bias, OptionalTensor initial_states,
                         bool silu) {
  const CausalConv1dSizes s = check_causal_conv1d(x, weight, bias, initial_states);
  check_limits("causal_conv1d_fn", s.channels, s.length);
  Tensor out = layout_like(x);
  if (s.empty()) return out;
  const Tensor filter = to_state_dtype(weight, ScalarType::Float);
  const OptionalTensor offset = to_state_dtype(bias, ScalarType::Float);
  const Strides xs(x), os(out), ss(initial_states);
  const CausalConv1dFwd::Key key{dtype_of(x),
                                 layout_of<CausalConv1dFwd::Layout>({&xs, &os}, s.channels, s.length)};
  const auto& config = CausalConv1dFwd::pick(key, {});
  CausalConv1dFwd::Args args{};
  args.x = pointer(x);
  args.weight = pointer(filter);
  args.bias = pointer(offset);
  args.states = pointer(initial_states);
  args.out = pointer(out);
  args.D = static_cast<int32_t>(s.channels);
  args.L = static_cast<int32_t>(s.length);
  args.width = static_cast<int32_t>(s.width);
  xs.put(args.x_batch, args.x_channel, args.x_time);
  ss.put(args.states_batch, args.states_channel, args.states_time);
  os.put(args.out_batch, args.out_channel, args.out_time);
  args.flags = (silu ? kSilu : 0) | (bias ? kHasBias : 0) | (initial_states ? kHasStates : 0);
  const int64_t programs = s.batch * ceil_div(s.channels, config.CHANNELS) * ceil_div(s.length, config.TIMES);
  CausalConv1dFwd::launch(key, config, x.get_device_index(), programs, args);
  return out;
}

CausalConv1dGradients causal_conv1d_bwd(Tensor dout, Tensor x, Tensor weight, OptionalTensor bias,
                                        OptionalTensor initial_states, bool silu) {
  const CausalConv1dSizes s = check_causal_conv1d_backward(dout, x, weight, bias, initial_states);
  check_limits("causal_conv1d_fn", s.channels, s.length);
  Tensor dx = layout_like(x);
  Tensor dstates =
      initial_states ? torch::stable::new_zeros(x, {s.batch, s.channels, s.width - 1}) : absent_on(x);
  const Tensor filter = to_state_dtype(weight, ScalarType::Float);
  if (s.empty()) {
    return {dx, torch::stable::new_zeros(weight, {s.channels, s.width}),
            bias ? torch::stable::new_zeros(*bias, {s.channels}) : absent_on(x), dstates};
  }
  const OptionalTensor offset = to_state_dtype(bias, ScalarType::Float);
  const Strides gs(dout), xs(x), ss(initial_states), dxs(dx);
  const CausalConv1dBwd::Key key{dtype_of(x),
                                 layout_of<CausalConv1dBwd::Layout>({&gs, &xs, &dxs}, s.channels, s.length)};
  const auto& config = CausalConv1dBwd::pick(key, {});
  const int64_t steps = s.length + (initial_states ? s.width - 1 : 0);
  const int64_t time_blocks = ceil_div(steps, config.TIMES);
  Tensor dfilter = empty_on(x, {s.batch * time_blocks, config.W + 1, s.channels}, ScalarType::Float);
  CausalConv1dBwd::Args args{};
  args.dout = pointer(dout);
  args.x = pointer(x);
  args.weight = pointer(filter);
  args.bias = pointer(offset);
  args.states = pointer(initial_states);
  args.dx = pointer(dx);
  args.dstates = pointer(dstates);
  args.dfilter = pointer(dfilter);
  args.D = static_cast<int32_t>(s.channels);
  args.L = static_cast<int32_t>(s.length);
  args.width = static_cast<int32_t>(s.width);
  gs.put(args.dout_batch, args.dout_channel, args.dout_time);
  xs.put(args.x_batch, args.x_channel, args.x_time);
  ss.put(args.states_batch, args.states_channel, args.states_time);
  dxs.put(args.dx_batch, args.dx_channel, args.dx_time);
  args.flags = (silu ? kSilu : 0) | (bias ? kHasBias : 0) | (initial_states ? kHasStates : 0);
  const int64_t programs = s.batch * ceil_div(s.channels, config.CHANNELS) * time_blocks;
  CausalConv1dBwd::launch(key, config, x.get_device_index(), programs, args);

  const int64_t over_blocks[] = {0};
  Tensor sums = torch::stable::sum(dfilter, over_blocks);
  // Taps before the first one of a narrow filter, and the bias row behind the last.
  Tensor taps = torch::stable::narrow(sums, 0, config.W - s.width, s.width);
  return {dx, gradient_of(weight, torch::stable::transpose(taps, 0, 1)),
          bias ? gradient_of(*bias, torch::stable::select(sums, 0, config.W)) : absent_on(x), dstates};
}

Tensor causal_conv1d_update(Tensor x, Tensor conv_state, Tensor weight, OptionalTensor bias,
                            OptionalTensor conv_state_indices, bool silu) {
  const CausalConv1dUpdateSizes s =
      check_causal_conv1d_update(x, conv_state, weight, bias, conv_state_indices);
  check_limits("causal_conv1d_update", s.channels, s.length);
  Tensor out = s.single ? empty_on(x, {s.batch, s.channels}, x.scalar_type())
                        : empty_on(x, {s.batch, s.channels, s.length}, x.scalar_type());
  if (s.empty()) return out;
  const Tensor filter = to_state_dtype(weight, ScalarType::Float);
  const OptionalTensor offset = to_state_dtype(bias, ScalarType::Float);
  const CausalConv1dUpdate::Key key{dtype_of(x)};
  const auto& config = CausalConv1dUpdate::pick(key, {});
  CausalConv1dUpdate::Args args{};
  args.x = pointer(x);
  args.conv_state = pointer(conv_state);
  args.weight = pointer(filter);
  args.bias = pointer(offset);
  args.indices = pointer(conv_state_indices);
  args.out = pointer(out);
  args.D = static_cast<int32_t>(s.channels);
  args.L = static_cast<int32_t>(s.length);
  args.width = static_cast<int32_t>(s.width);
  args.state_length = static_cast<int32_t>(s.state_length);
  args.x_batch = x.stride(0);
  args.x_channel = x.stride(1);
  args.x_time = s.single ? 0 : x.stride(2);
  args.state_slot = conv_state.stride(0);
  args.state_channel = conv_state.stride(1);
  args.state_time = conv_state.stride(2);
  args.indices_batch = conv_state_indices ? conv_state_indices->stride(0) : 0;
  args.flags = (silu ? kSilu : 0) | (bias ? kHasBias : 0) | (conv_state_indices ? kHasIndices : 0);
  CausalConv1dUpdate::launch(key, config, x.get_device_index(),
                             s.batch * ceil_div(s.channels, config.CHANNELS), args);
  return out;
}

}  // namespace mamba_aot::cuda
