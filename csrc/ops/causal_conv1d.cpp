// causal_conv1d on CUDA: check, allocate, pick a variant, launch. The kernels are
// csrc/kernels/causal_conv1d.py.
#include "ops/causal_conv1d.h"

#include "generated/causal_conv1d.gen.h"
#include "ops/launch_arguments.h"

namespace mamba_aot::cuda {
namespace {

using generated::CausalConv1dBwd;
using generated::CausalConv1dFilter;
using generated::CausalConv1dFwd;
using generated::CausalConv1dPackedBwd;
using generated::CausalConv1dPackedFwd;
using generated::CausalConv1dSequences;
using generated::CausalConv1dStep;
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
  kGradient = 64,
  kNarrowFilter = 128,
  kShort = 256,
};

// Filters up to this width have kernels of their own; wider ones loop over their taps.
constexpr int64_t kNarrow = 4;

// The longest walks: of the forward, in what it asks for at once; of the backward, in blocks of steps.
constexpr int64_t kForwardTurns = 2, kBackwardBlocks = 16;
// In steps: kernels add that to a length in 32 bits.
constexpr int64_t kLongestWalk = 8191;

void check_limits(const char* fn, int64_t channels, int64_t length) {
  check(channels < INT32_MAX - kLongestWalk && length < INT32_MAX - kLongestWalk, fn,
        ": on CUDA channels and length must each be below 2^31 - ", kLongestWalk + 1, ", got ", channels,
        " and ", length, ". Split the sequence and pass initial_states.");
}

// "seq": rows contiguous along time; "last": contiguous along channels; both on 16-element boundaries.
enum class Order { seq, last, strided };

Order order_of(const CausalConv1dSizes& s, std::initializer_list<const Strides*> tensors) {
  bool seq = s.length % 16 == 0, last = s.channels % 16 == 0;
  for (const Strides* t : tensors) {
    seq = seq && t->rows();
    last = last && t->columns();
  }
  return seq ? Order::seq : last ? Order::last : Order::strided;
}

template <class Kernel>
typename Kernel::Key narrow_key(const Tensor& x, Order order) {
  using Layout = typename Kernel::Layout;
  if (order == Order::seq) return {dtype_of(x), Layout::seq};
  if (order == Order::last) return {dtype_of(x), Layout::last};
  return {storage_of(x), Layout::strided};
}

template <class Kernel>
typename Kernel::Key packed_key(const Tensor& x, Order order) {
  using Layout = typename Kernel::Layout;
  return {storage_of(x), order == Order::seq ? Layout::seq : Layout::strided};
}

// How many blocks of steps a thread walks along: many spare work, but a GPU wants some 10^5 threads.
template <class Kernel>
int64_t blocks_walked(const CausalConv1dSizes& s, const Tensor& x, const typename Kernel::Config& config,
                      int64_t most) {
  const int64_t wanted = Kernel::THREADS(x.get_device_index());
  const int64_t threads = s.batch * ceil_div(s.channels, config.VECTOR) * ceil_div(s.length, config.STEPS);
  const int64_t all = ceil_div(s.length, config.RUNS * config.STEPS);
  return std::max<int64_t>(1, std::min({threads / wanted, all, most}));
}

// What the kernels over a sequence have in common.
template <class Args>
void put_common(Args& args, const CausalConv1dSizes& s, const Tensor& x, const Tensor& filter,
                const OptionalTensor& states) {
  args.x = pointer(x);
  args.weight = pointer(filter);
  args.states = pointer(states);
  args.D = static_cast<int32_t>(s.channels);
  args.L = static_cast<int32_t>(s.length);
  args.width = static_cast<int32_t>(s.width);
  Strides(x).put(args.x_batch, args.x_channel, args.x_time);
  Strides(states).put(args.states_batch, args.states_channel, args.states_time);
}

template <class Args>
void put_sequences(Args& args, const CausalConv1dSizes& s, const OptionalTensor& sequences) {
  args.sequences = pointer(sequences);
  args.batches = static_cast<int32_t>(s.batch);
}

// What weight and bias are read as: as they are where both have the dtype of x, for a conversion is a launch.
ScalarType dtype_of_filter(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  const ScalarType type = type_of(x);
  return type_of(weight) == type && (!bias || type_of(*bias) == type) ? type : ScalarType::Float;
}

int32_t flags_of(bool silu, const Tensor& filter, const OptionalTensor& bias, const OptionalTensor& states,
                 const OptionalTensor& sequences) {
  return (silu ? kSilu : 0) | (type_of(filter) == ScalarType::Float ? 0 : kNarrowFilter) |
         (bias ? kHasBias : 0) | (states ? kHasStates : 0) | (sequences ? kHasSequences : 0);
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
  const CausalConv1dWide::Key key{storage_of(x)};
  const auto& config = CausalConv1dWide::pick(key, {});
  CausalConv1dWide::Args args{};
  put_common(args, s, x, filter, states);
  put_sequences(args, s, sequences);
  args.bias = pointer(offset);
  args.flags = format_flag(x) | flags_of(silu, filter, offset, states, sequences) | (dout ? kGradient : 0);
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

// Runs a narrow kernel's forward over programs along time that each take `steps`.
template <class Kernel, class Config, class Args>
void launch_forward(const CausalConv1dSizes& s, const typename Kernel::Key& key, const Config& config,
                    Args& args, const Tensor& x, const Tensor& out, int64_t steps) {
  args.out = pointer(out);
  Strides(out).put(args.out_batch, args.out_channel, args.out_time);
  Kernel::launch(key, config, x.get_device_index(),
                 s.batch * ceil_div(s.channels, config.CHANNELS) * ceil_div(s.length, steps), args);
}

Tensor narrow_forward(const CausalConv1dSizes& s, const Tensor& x, const Tensor& filter,
                      const OptionalTensor& offset, const OptionalTensor& states,
                      const OptionalTensor& sequences, bool silu) {
  Tensor out = layout_like(x);
  const Strides xs(x), os(out);
  const Order order = order_of(s, {&xs, &os});
  const auto fill = [&](auto& args) {
    put_common(args, s, x, filter, states);
    args.bias = pointer(offset);
    args.flags = format_flag(x) | flags_of(silu, filter, offset, states, sequences);
  };
  if (sequences) {
    const auto key = packed_key<CausalConv1dPackedFwd>(x, order);
    const auto& config = CausalConv1dPackedFwd::pick(key, {});
    CausalConv1dPackedFwd::Args args{};
    fill(args);
    put_sequences(args, s, sequences);
    launch_forward<CausalConv1dPackedFwd>(s, key, config, args, x, out, config.RUNS * config.STEPS);
    return out;
  }
  const auto key = narrow_key<CausalConv1dFwd>(x, order);
  const auto& config = CausalConv1dFwd::pick(key, {});
  CausalConv1dFwd::Args args{};
  fill(args);
  const int64_t blocks = blocks_walked<CausalConv1dFwd>(s, x, config, kForwardTurns * config.AT_ONCE);
  args.blocks = static_cast<int32_t>(blocks);
  launch_forward<CausalConv1dFwd>(s, key, config, args, x, out, blocks * config.RUNS * config.STEPS);
  return out;
}

// Sums of a backward's programs, float32 [programs, planes, channels]: see _causal_conv1d_filter.py.
using FilterSums = Tensor;

// A backward kernel over programs along time that each take `steps`; fills dx and dstates.
template <class Kernel, class Config, class Args>
FilterSums launch_backward(const CausalConv1dSizes& s, const typename Kernel::Key& key, const Config& config,
                           Args& args, const Tensor& x, const Tensor& dx, const Tensor& dstates,
                           int64_t planes, int64_t steps) {
  const int64_t programs = s.batch * ceil_div(s.length, steps);
  FilterSums sums = empty_on(x, {programs, planes, s.channels}, ScalarType::Float);
  args.dx = pointer(dx);
  args.dstates = pointer(dstates);
  args.dfilter = pointer(sums);
  Strides(dx).put(args.dx_batch, args.dx_channel, args.dx_time);
  Kernel::launch(key, config, x.get_device_index(), programs * ceil_div(s.channels, config.CHANNELS), args);
  return sums;
}

FilterSums wide_backward(const CausalConv1dSizes& s, const Tensor& dout, const Tensor& x,
                         const Tensor& filter, const OptionalTensor& offset, const OptionalTensor& states,
                         const OptionalTensor& sequences, bool silu, const Tensor& dx,
                         const Tensor& dstates) {
  const Tensor slope = wide_forward(s, dout, x, filter, offset, states, sequences, silu);
  const CausalConv1dWideBwd::Key key{storage_of(x)};
  const auto& config = CausalConv1dWideBwd::pick(key, {});
  CausalConv1dWideBwd::Args args{};
  put_common(args, s, x, filter, states);
  put_sequences(args, s, sequences);
  args.slope = pointer(slope);
  args.flags = format_flag(x) | flags_of(silu, filter, offset, states, sequences);
  return launch_backward<CausalConv1dWideBwd>(s, key, config, args, x, dx, dstates, s.width + 1,
                                              config.TIMES);
}

FilterSums narrow_backward(const CausalConv1dSizes& s, const Tensor& dout, const Tensor& x,
                           const Tensor& filter, const OptionalTensor& offset, const OptionalTensor& states,
                           const OptionalTensor& sequences, bool silu, const Tensor& dx,
                           const Tensor& dstates) {
  const Strides gs(dout), xs(x), dxs(dx);
  const Order order = order_of(s, {&gs, &xs, &dxs});
  const auto fill = [&](auto& args) {
    put_common(args, s, x, filter, states);
    args.dout = pointer(dout);
    args.bias = pointer(offset);
    args.flags = format_flag(x) | flags_of(silu, filter, offset, states, sequences);
    gs.put(args.dout_batch, args.dout_channel, args.dout_time);
  };
  if (sequences) {
    const auto key = packed_key<CausalConv1dPackedBwd>(x, order);
    const auto& config = CausalConv1dPackedBwd::pick(key, {});
    CausalConv1dPackedBwd::Args args{};
    fill(args);
    put_sequences(args, s, sequences);
    return launch_backward<CausalConv1dPackedBwd>(s, key, config, args, x, dx, dstates, config.W + 1,
                                                  config.RUNS * config.STEPS);
  }
  const auto key = narrow_key<CausalConv1dBwd>(x, order);
  const auto& config = CausalConv1dBwd::pick(key, {});
  CausalConv1dBwd::Args args{};
  fill(args);
  const int64_t blocks = blocks_walked<CausalConv1dBwd>(s, x, config, kBackwardBlocks);
  args.blocks = static_cast<int32_t>(blocks);
  return launch_backward<CausalConv1dBwd>(s, key, config, args, x, dx, dstates, config.W + 1,
                                          blocks * config.RUNS * config.STEPS);
}

// float32 gradients of the taps, [channels, width], and with a bias of it, [channels].
std::tuple<Tensor, OptionalTensor> filter_gradients(const CausalConv1dSizes& s, const FilterSums& sums,
                                                    bool with_bias) {
  Tensor dweight = empty_on(sums, {s.channels, s.width}, ScalarType::Float);
  OptionalTensor dbias;
  if (with_bias) dbias = empty_on(sums, {s.channels}, ScalarType::Float);
  const auto& config = CausalConv1dFilter::pick({}, {});
  CausalConv1dFilter::Args args{};
  args.dfilter = pointer(sums);
  args.dweight = pointer(dweight);
  args.dbias = pointer(dbias);
  args.D = static_cast<int32_t>(s.channels);
  args.rows = static_cast<int32_t>(sums.size(0));
  args.planes = static_cast<int32_t>(sums.size(1));
  args.width = static_cast<int32_t>(s.width);
  args.flags = with_bias ? kHasBias : 0;
  CausalConv1dFilter::launch({}, config, sums.get_device_index(),
                             ceil_div(s.channels, config.CHANNELS) * (s.width + 1), args);
  return {dweight, dbias};
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
  const ScalarType read = s.width > kNarrow ? ScalarType::Float : dtype_of_filter(x, weight, bias);
  const Tensor filter = to_state_dtype(weight, read);
  const OptionalTensor offset = to_state_dtype(bias, read);
  const OptionalTensor states = states_read(initial_states);
  return s.width > kNarrow ? wide_forward(s, std::nullopt, x, filter, offset, states, sequences, silu)
                           : narrow_forward(s, x, filter, offset, states, sequences, silu);
}

CausalConv1dOtherGradients causal_conv1d_bwd_into(Tensor dout, Tensor x, Tensor weight, OptionalTensor bias,
                                                  OptionalTensor initial_states, OptionalTensor sequences,
                                                  bool silu, Tensor dx) {
  const CausalConv1dSizes s = check_causal_conv1d_backward(dout, x, weight, bias, initial_states, sequences);
  check_gradient_out("causal_conv1d_fn", "dx", dx, "x", x, {&dout, &x});
  check_limits("causal_conv1d_fn", s.channels, s.length);
  // Zeros, as the sequence after initial states may be empty.
  Tensor dstates =
      initial_states ? torch::stable::new_zeros(x, {s.rows, s.channels, s.width - 1}) : absent_on(x);
  if (s.empty()) {
    return {torch::stable::new_zeros(weight, {s.channels, s.width}),
            bias ? torch::stable::new_zeros(*bias, {s.channels}) : absent_on(x), dstates};
  }
  const ScalarType read = s.width > kNarrow ? ScalarType::Float : dtype_of_filter(x, weight, bias);
  const Tensor filter = to_state_dtype(weight, read);
  const OptionalTensor offset = to_state_dtype(bias, read);
  const OptionalTensor states = states_read(initial_states);
  const FilterSums sums =
      s.width > kNarrow ? wide_backward(s, dout, x, filter, offset, states, sequences, silu, dx, dstates)
                        : narrow_backward(s, dout, x, filter, offset, states, sequences, silu, dx, dstates);
  const auto [dweight, dbias] = filter_gradients(s, sums, bias.has_value());
  return {to_input_dtype(dweight, weight), bias ? to_input_dtype(*dbias, *bias) : absent_on(x), dstates};
}

CausalConv1dGradients causal_conv1d_bwd(Tensor dout, Tensor x, Tensor weight, OptionalTensor bias,
                                        OptionalTensor initial_states, OptionalTensor sequences, bool silu) {
  check_causal_conv1d_backward(dout, x, weight, bias, initial_states, sequences);
  Tensor dx = layout_like(x);
  const auto [dweight, dbias, dstates] =
      causal_conv1d_bwd_into(dout, x, weight, bias, initial_states, sequences, silu, dx);
  return {dx, dweight, dbias, dstates};
}

Tensor causal_conv1d_update(Tensor x, Tensor conv_state, Tensor weight, OptionalTensor bias,
                            OptionalTensor cache_seqlens, OptionalTensor conv_state_indices, bool silu) {
  const CausalConv1dUpdateSizes s =
      check_causal_conv1d_update(x, conv_state, weight, bias, cache_seqlens, conv_state_indices);
  check_limits("causal_conv1d_update", s.channels, s.length);
  Tensor out = s.single ? empty_on(x, {s.batch, s.channels}, type_of(x))
                        : empty_on(x, {s.batch, s.channels, s.length}, type_of(x));
  if (s.empty()) return out;
  const ScalarType read = dtype_of_filter(x, weight, bias);
  const bool narrow = read == type_of(x);
  const Tensor filter = to_state_dtype(weight, read);
  const OptionalTensor offset = to_state_dtype(bias, read);
  const bool brief = s.length == 1 && s.width <= 4 && s.state_length <= 4 && !cache_seqlens;
  const int32_t flags =
      format_flag(x) | (silu ? kSilu : 0) | (bias ? kHasBias : 0) | (conv_state_indices ? kHasIndices : 0);
  if (s.single && narrow && s.width == 4 && (s.state_length == 3 || s.state_length == 4) && !cache_seqlens &&
      x.stride(1) == 1 && conv_state.stride(2) == 1 && conv_state.stride(1) == s.state_length &&
      s.channels < INT32_MAX / 4) {
    const CausalConv1dStep::Key key{storage_of(x), static_cast<int32_t>(s.state_length)};
    const auto& config = CausalConv1dStep::pick(key, {});
    CausalConv1dStep::Args args{};
    args.x = pointer(x);
    args.conv_state = pointer(conv_state);
    args.weight = pointer(filter);
    args.bias = pointer(offset);
    args.indices = pointer(conv_state_indices);
    args.out = pointer(out);
    args.D = static_cast<int32_t>(s.channels);
    args.slots = static_cast<int32_t>(s.slots);
    args.x_batch = x.stride(0);
    args.state_slot = conv_state.stride(0);
    args.indices_batch = conv_state_indices ? conv_state_indices->stride(0) : 0;
    args.flags = flags;
    CausalConv1dStep::launch(key, config, x.get_device_index(),
                             s.batch * ceil_div(s.channels, config.CHANNELS), args);
    return out;
  }
  const CausalConv1dUpdate::Key key{storage_of(x)};
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
  args.flags = flags | (cache_seqlens ? kHasSeen : 0) | (narrow ? kNarrowFilter : 0) | (brief ? kShort : 0);
  CausalConv1dUpdate::launch(key, config, x.get_device_index(),
                             s.batch * ceil_div(s.channels, config.CHANNELS), args);
  return out;
}

}  // namespace mamba_aot::cuda
