// causal_conv1d on CUDA: check, allocate, pick a variant, launch. The kernels are
// csrc/kernels/causal_conv1d.py.
#include "ops/causal_conv1d.h"

#include "generated/causal_conv1d.gen.h"
#include "ops/launch_arguments.h"

namespace mamba_aot::cuda {
namespace {

using generated::CausalConv1dBwd;
using generated::CausalConv1dFwd;
using generated::CausalConv1dSequences;
using generated::CausalConv1dUpdate;
using generated::CausalConv1dWide;
using generated::CausalConv1dWideBwd;

// Bits of the kernels' `flags`, the same as in csrc/kernels/_causal_conv1d_steps.py.
enum Flag : int32_t {
  kSilu = 1,
  kHasBias = 2,
  kHasStates = 4,
  kHasIndices = 8,
  kHasSeen = 16,
  kHasSequences = 32,
  kGradient = 64
};

// Filters up to this width have kernels of their own; wider ones loop over their taps.
constexpr int64_t kNarrow = 4;

int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }

void check_limits(const char* fn, int64_t channels, int64_t length) {
  check(channels < INT32_MAX - 128 && length < INT32_MAX - 1024, fn,
        ": on CUDA channels and length must each be below 2^31 - 1024, got ", channels, " and ", length,
        ". Split the sequence and pass initial_states.");
}

// "seq": rows contiguous along time; "last": contiguous along channels; both on 16-element boundaries.
template <class Kernel>
typename Kernel::Key narrow_key(const CausalConv1dSizes& s, const Tensor& x,
                                std::initializer_list<const Strides*> tensors,
                                const OptionalTensor& sequences) {
  using Layout = typename Kernel::Layout;
  bool seq = s.length % 16 == 0, last = s.channels % 16 == 0;
  for (const Strides* t : tensors) {
    seq = seq && t->rows();
    last = last && t->columns();
  }
  const bool exact = (seq || last) && !sequences;
  return {exact ? dtype_of(x) : storage_of(x),
          seq    ? Layout::seq
          : last ? Layout::last
                 : Layout::strided,
          sequences.has_value()};
}

// What the four kernels over a sequence have in common.
template <class Args>
void put_common(Args& args, const CausalConv1dSizes& s, const Tensor& x, const Tensor& filter,
                const OptionalTensor& states, const OptionalTensor& sequences) {
  args.x = pointer(x);
  args.weight = pointer(filter);
  args.states = pointer(states);
  args.sequences = pointer(sequences);
  args.D = static_cast<int32_t>(s.channels);
  args.L = static_cast<int32_t>(s.length);
  args.batches = static_cast<int32_t>(s.batch);
  args.width = static_cast<int32_t>(s.width);
  Strides(x).put(args.x_batch, args.x_channel, args.x_time);
  Strides(states).put(args.states_batch, args.states_channel, args.states_time);
}

int32_t flags_of(bool silu, const OptionalTensor& bias, const OptionalTensor& states,
                 const OptionalTensor& sequences) {
  return (silu ? kSilu : 0) | (bias ? kHasBias : 0) | (states ? kHasStates : 0) |
         (sequences ? kHasSequences : 0);
}

// A filter of one tap has no steps before it, and no rows are no initial states.
OptionalTensor states_read(const OptionalTensor& initial_states) {
  return initial_states && initial_states->numel() > 0 ? initial_states : std::nullopt;
}

// The wide kernel's output, or with dout the gradient before the activation, float32 [batch, channels,
// length].
Tensor wide_forward(const CausalConv1dSizes& s, const OptionalTensor& dout, const Tensor& x,
                    const Tensor& filter, const OptionalTensor& offset, const OptionalTensor& states,
                    const OptionalTensor& sequences, bool silu) {
  Tensor out = dout ? empty_on(x, {s.batch, s.channels, s.length}, ScalarType::Float) : layout_like(x);
  const CausalConv1dWide::Key key{dtype_of(x)};
  const auto& config = CausalConv1dWide::pick(key, {});
  CausalConv1dWide::Args args{};
  put_common(args, s, x, filter, states, sequences);
  args.bias = pointer(offset);
  args.flags = flags_of(silu, offset, states, sequences) | (dout ? kGradient : 0);
  if (dout) {
    args.dout = pointer(dout);
    args.slope = pointer(out);
    Strides(*dout).put(args.dout_batch, args.dout_channel, args.dout_time);
  } else {
    args.out = pointer(out);
    Strides(out).put(args.out_batch, args.out_channel, args.out_time);
  }
  const int64_t programs = s.batch * ceil_div(s.channels, config.CHANNELS) * ceil_div(s.length, config.TIMES);
  CausalConv1dWide::launch(key, config, x.get_device_index(), programs, args);
  return out;
}

// Fills dx and dstates; returns the gradients of the taps and the bias, [width + 1, channels].
Tensor wide_backward(const CausalConv1dSizes& s, const Tensor& dout, const Tensor& x, const Tensor& filter,
                     const OptionalTensor& offset, const OptionalTensor& states,
                     const OptionalTensor& sequences, bool silu, const Tensor& dx, const Tensor& dstates) {
  const Tensor slope = wide_forward(s, dout, x, filter, offset, states, sequences, silu);
  const CausalConv1dWideBwd::Key key{dtype_of(x)};
  const auto& config = CausalConv1dWideBwd::pick(key, {});
  const int64_t time_blocks = ceil_div(s.length, config.TIMES);
  Tensor dfilter = empty_on(x, {s.batch * time_blocks, s.width + 1, s.channels}, ScalarType::Float);
  CausalConv1dWideBwd::Args args{};
  put_common(args, s, x, filter, states, sequences);
  args.slope = pointer(slope);
  args.dx = pointer(dx);
  args.dstates = pointer(dstates);
  args.dfilter = pointer(dfilter);
  args.flags = flags_of(silu, offset, states, sequences);
  Strides(dx).put(args.dx_batch, args.dx_channel, args.dx_time);
  CausalConv1dWideBwd::launch(key, config, x.get_device_index(),
                              s.batch * ceil_div(s.channels, config.CHANNELS) * time_blocks, args);
  const int64_t over_blocks[] = {0};
  return torch::stable::sum(dfilter, over_blocks);
}

// The same for a narrow filter.
Tensor narrow_backward(const CausalConv1dSizes& s, const Tensor& dout, const Tensor& x, const Tensor& filter,
                       const OptionalTensor& offset, const OptionalTensor& states,
                       const OptionalTensor& sequences, bool silu, const Tensor& dx, const Tensor& dstates) {
  const Strides gs(dout), xs(x), dxs(dx);
  const auto key = narrow_key<CausalConv1dBwd>(s, x, {&gs, &xs, &dxs}, sequences);
  const auto& config = CausalConv1dBwd::pick(key, {});
  const int64_t time_blocks = ceil_div(s.length, config.RUNS * config.STEPS);
  Tensor dfilter = empty_on(x, {s.batch * time_blocks, config.W + 1, s.channels}, ScalarType::Float);
  CausalConv1dBwd::Args args{};
  put_common(args, s, x, filter, states, sequences);
  args.dout = pointer(dout);
  args.bias = pointer(offset);
  args.dx = pointer(dx);
  args.dstates = pointer(dstates);
  args.dfilter = pointer(dfilter);
  args.flags = format_flag(x) | flags_of(silu, offset, states, sequences);
  gs.put(args.dout_batch, args.dout_channel, args.dout_time);
  dxs.put(args.dx_batch, args.dx_channel, args.dx_time);
  CausalConv1dBwd::launch(key, config, x.get_device_index(),
                          s.batch * ceil_div(s.channels, config.CHANNELS) * time_blocks, args);
  const int64_t over_blocks[] = {0};
  Tensor sums = torch::stable::sum(dfilter, over_blocks);
  // Without the taps before the first one of a narrower filter.
  return torch::stable::narrow(sums, 0, config.W - s.width, s.width + 1);
}

}  // namespace

Tensor causal_conv1d_sequences(Tensor x, Tensor weight, OptionalTensor seq_idx, OptionalTensor cu_seqlens,
                               OptionalTensor initial_states) {
  const CausalConv1dSizes s = check_causal_conv1d_sequences(x, weight, seq_idx, cu_seqlens, initial_states);
  check_limits("causal_conv1d_fn", s.channels, s.length);
  Tensor sequences = empty_on(x, {2, s.batch, s.length}, ScalarType::Int);
  const int64_t size = s.batch * s.length;
  if (size == 0) return sequences;
  const CausalConv1dSequences::Key key{cu_seqlens.has_value()};
  const auto& config = CausalConv1dSequences::pick(key, {});
  CausalConv1dSequences::Args args{};
  args.seq_idx = pointer(seq_idx);
  args.ends = pointer(cu_seqlens);
  args.sequences = pointer(sequences);
  args.size = size;
  args.L = static_cast<int32_t>(s.length);
  args.width = static_cast<int32_t>(s.width);
  if (cu_seqlens) {
    args.count = static_cast<int32_t>(s.rows);
    args.ends_stride = cu_seqlens->stride(0);
    for (int64_t left = s.rows + 1; left > 0; left /= 2) ++args.halvings;
  } else {
    args.idx_batch = seq_idx->stride(0);
    args.idx_time = seq_idx->stride(1);
  }
  CausalConv1dSequences::launch(key, config, x.get_device_index(), ceil_div(size, config.BLOCK), args);
  return sequences;
}

Tensor causal_conv1d_fwd(Tensor x, Tensor weight, OptionalTensor bias, OptionalTensor initial_states,
                         OptionalTensor sequences, bool silu) {
  const CausalConv1dSizes s = check_causal_conv1d(x, weight, bias, initial_states, sequences);
  check_limits("causal_conv1d_fn", s.channels, s.length);
  if (s.empty()) return layout_like(x);
  const Tensor filter = to_state_dtype(weight, ScalarType::Float);
  const OptionalTensor offset = to_state_dtype(bias, ScalarType::Float);
  const OptionalTensor states = states_read(initial_states);
  if (s.width > kNarrow) {
    return wide_forward(s, std::nullopt, x, filter, offset, states, sequences, silu);
  }
  Tensor out = layout_like(x);
  const Strides xs(x), os(out);
  const auto key = narrow_key<CausalConv1dFwd>(s, x, {&xs, &os}, sequences);
  const auto& config = CausalConv1dFwd::pick(key, {});
  CausalConv1dFwd::Args args{};
  put_common(args, s, x, filter, states, sequences);
  args.bias = pointer(offset);
  args.out = pointer(out);
  args.flags = format_flag(x) | flags_of(silu, offset, states, sequences);
  os.put(args.out_batch, args.out_channel, args.out_time);
  const int64_t programs =
      s.batch * ceil_div(s.channels, config.CHANNELS) * ceil_div(s.length, config.RUNS * config.STEPS);
  CausalConv1dFwd::launch(key, config, x.get_device_index(), programs, args);
  return out;
}

CausalConv1dGradients causal_conv1d_bwd(Tensor dout, Tensor x, Tensor weight, OptionalTensor bias,
                                        OptionalTensor initial_states, OptionalTensor sequences, bool silu) {
  const CausalConv1dSizes s = check_causal_conv1d_backward(dout, x, weight, bias, initial_states, sequences);
  check_limits("causal_conv1d_fn", s.channels, s.length);
  Tensor dx = layout_like(x);
  // Zeros, as the sequence after initial states may be empty.
  Tensor dstates =
      initial_states ? torch::stable::new_zeros(x, {s.rows, s.channels, s.width - 1}) : absent_on(x);
  if (s.empty()) {
    return {dx, torch::stable::new_zeros(weight, {s.channels, s.width}),
            bias ? torch::stable::new_zeros(*bias, {s.channels}) : absent_on(x), dstates};
  }
  const Tensor filter = to_state_dtype(weight, ScalarType::Float);
  const OptionalTensor offset = to_state_dtype(bias, ScalarType::Float);
  const OptionalTensor states = states_read(initial_states);
  Tensor sums = s.width > kNarrow
                    ? wide_backward(s, dout, x, filter, offset, states, sequences, silu, dx, dstates)
                    : narrow_backward(s, dout, x, filter, offset, states, sequences, silu, dx, dstates);
  const Tensor taps = torch::stable::narrow(sums, 0, 0, s.width);
  return {dx, gradient_of(weight, torch::stable::transpose(taps, 0, 1)),
          bias ? gradient_of(*bias, torch::stable::select(sums, 0, s.width)) : absent_on(x), dstates};
}

Tensor causal_conv1d_update(Tensor x, Tensor conv_state, Tensor weight, OptionalTensor bias,
                            OptionalTensor cache_seqlens, OptionalTensor conv_state_indices, bool silu) {
  const CausalConv1dUpdateSizes s =
      check_causal_conv1d_update(x, conv_state, weight, bias, cache_seqlens, conv_state_indices);
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
  args.seen = pointer(cache_seqlens);
  args.indices = pointer(conv_state_indices);
  args.out = pointer(out);
  args.D = static_cast<int32_t>(s.channels);
  args.L = static_cast<int32_t>(s.length);
  args.width = static_cast<int32_t>(s.width);
  args.slots = static_cast<int32_t>(s.slots);
  args.state_length = static_cast<int32_t>(s.state_length);
  args.x_batch = x.stride(0);
  args.x_channel = x.stride(1);
  args.x_time = s.single ? 0 : x.stride(2);
  args.state_slot = conv_state.stride(0);
  args.state_channel = conv_state.stride(1);
  args.state_time = conv_state.stride(2);
  args.seen_batch = cache_seqlens ? cache_seqlens->stride(0) : 0;
  args.indices_batch = conv_state_indices ? conv_state_indices->stride(0) : 0;
  args.flags = (silu ? kSilu : 0) | (bias ? kHasBias : 0) | (conv_state_indices ? kHasIndices : 0) |
               (cache_seqlens ? kHasSeen : 0);
  CausalConv1dUpdate::launch(key, config, x.get_device_index(),
                             s.batch * ceil_div(s.channels, config.CHANNELS), args);
  return out;
}

}  // namespace mamba_aot::cuda
