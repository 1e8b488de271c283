// What causal_conv1d checks of its arguments, on every device.
#include "ops/causal_conv1d.h"

namespace mamba_aot {
namespace detail {
namespace {

int64_t check_conv_filter(const char* fn, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                          int64_t channels) {
  Arg w{fn, "weight", weight};
  w.has_rank("[channels, width]", 2).on_device_of(x, "x").is_float();
  const int64_t width = weight.size(1);
  check(width >= kMinWidth && width <= kMaxWidth, fn, ": weight must have a width of ", kMinWidth, " to ",
        kMaxWidth, ", got ", width, " (weight is ", shape(weight),
        "). Use torch.nn.functional.conv1d for others.");
  w.has_shape("[channels, width]", {channels, width});
  if (bias) Arg{fn, "bias", *bias}.on_device_of(x, "x").is_float().has_shape("[channels]", {channels});
  return width;
}

}  // namespace
}  // namespace detail

CausalConv1dSizes check_causal_conv1d(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                      const OptionalTensor& initial_states, const OptionalTensor& sequences) {
  const char* fn = "causal_conv1d_fn";
  Arg{fn, "x", x}.has_rank("[batch, channels, length]", 3).is_data_dtype();
  CausalConv1dSizes s{x.size(0), x.size(1), x.size(2), 0, x.size(0)};
  s.width = detail::check_conv_filter(fn, x, weight, bias, s.channels);
  if (sequences) {
    Arg packed{fn, "sequences", *sequences};
    packed.on_device_of(x, "x").has_shape("[2, batch, length]", {2, s.batch, s.length});
    packed.has_dtype(ScalarType::Int, "(as causal_conv1d_sequences makes it)");
    check(sequences->is_contiguous(), fn, ": sequences must be contiguous. Pass sequences.contiguous().");
  }
  if (initial_states) {
    Arg states{fn, "initial_states", *initial_states};
    // How many rows there are was checked when `sequences` was made.
    if (sequences && initial_states->dim() == 3) s.rows = initial_states->size(0);
    states.on_device_of(x, "x").has_shape("[batch, channels, width - 1]", {s.rows, s.channels, s.width - 1});
    states.has_dtype(type_of(x), "like x");
  }
  return s;
}

CausalConv1dSizes check_causal_conv1d_backward(const Tensor& dout, const Tensor& x, const Tensor& weight,
                                               const OptionalTensor& bias,
                                               const OptionalTensor& initial_states,
                                               const OptionalTensor& sequences) {
  CausalConv1dSizes s = check_causal_conv1d(x, weight, bias, initial_states, sequences);
  Arg grad{"causal_conv1d_fn", "dout", dout};
  grad.on_device_of(x, "x").has_shape("[batch, channels, length]", {s.batch, s.channels, s.length});
  grad.has_dtype(type_of(x), "like x");
  return s;
}

CausalConv1dSizes check_causal_conv1d_sequences(const Tensor& x, const Tensor& weight,
                                                const OptionalTensor& seq_idx,
                                                const OptionalTensor& cu_seqlens,
                                                const OptionalTensor& initial_states) {
  const char* fn = "causal_conv1d_fn";
  Arg{fn, "x", x}.has_rank("[batch, channels, length]", 3).is_data_dtype();
  CausalConv1dSizes s{x.size(0), x.size(1), x.size(2), 0, x.size(0)};
  s.width = detail::check_conv_filter(fn, x, weight, std::nullopt, s.channels);
  check(seq_idx.has_value() != cu_seqlens.has_value(), fn,
        ": seq_idx must be None when cu_seqlens is given, got both. Pass one of them.");
  if (seq_idx) {
    Arg index{fn, "seq_idx", *seq_idx};
    index.on_device_of(x, "x").has_dtype(ScalarType::Int, "(one sequence index per step)");
    index.has_shape("[batch, length]", {s.batch, s.length});
    if (initial_states) {
      Arg{fn, "initial_states", *initial_states}.has_shape("[batch, channels, width - 1]",
                                                           {s.rows, s.channels, s.width - 1});
    }
    return s;
  }
  Arg ends{fn, "cu_seqlens", *cu_seqlens};
  ends.on_device_of(x, "x").has_dtype(ScalarType::Int, "(where each sequence ends, from 0 on)");
  ends.has_rank("[sequences + 1]", 1);
  check(cu_seqlens->size(0) > 0, fn, ": cu_seqlens must be [sequences + 1], so hold at least the 0 it ",
        "starts with, got ", shape(*cu_seqlens));
  check(s.batch == 1, fn, ": x must be [1, channels, total length] when cu_seqlens is given, got ", shape(x),
        ". Join the sequences along the length.");
  s.rows = cu_seqlens->size(0) - 1;
  if (initial_states) {
    Arg{fn, "initial_states", *initial_states}.has_shape("[sequences, channels, width - 1]",
                                                         {s.rows, s.channels, s.width - 1});
  }
  return s;
}

CausalConv1dUpdateSizes check_causal_conv1d_update(const Tensor& x, const Tensor& conv_state,
                                                   const Tensor& weight, const OptionalTensor& bias,
                                                   const OptionalTensor& cache_seqlens,
                                                   const OptionalTensor& conv_state_indices) {
  const char* fn = "causal_conv1d_update";
  check(x.dim() == 2 || x.dim() == 3, fn, ": x must be [batch, channels] or [batch, channels, length], got ",
        shape(x));
  Arg{fn, "x", x}.is_data_dtype();
  CausalConv1dUpdateSizes s{x.size(0), x.size(1), x.dim() == 3 ? x.size(2) : 1, 0, 0, 0, x.dim() == 2};
  s.width = detail::check_conv_filter(fn, x, weight, bias, s.channels);
  Arg state{fn, "conv_state", conv_state};
  state.has_rank("[slots, channels, state length]", 3).on_device_of(x, "x");
  s.slots = conv_state.size(0);
  s.state_length = conv_state.size(2);
  check(s.state_length >= s.width - 1, fn,
        ": conv_state must be [slots, channels, state length] with a state ",
        "length of at least width - 1 = ", s.width - 1, ", got ", shape(conv_state));
  state.has_shape("[slots, channels, state length]", {s.slots, s.channels, s.state_length});
  state.has_dtype(type_of(x), "like x").is_writable().shares_no_memory_with(x, "x");
  if (cache_seqlens) {
    Arg seen{fn, "cache_seqlens", *cache_seqlens};
    seen.on_device_of(x, "x").has_shape("[batch]", {s.batch});
    seen.has_dtype(ScalarType::Int, "(steps seen by each sequence)");
  }
  if (conv_state_indices) {
    Arg indices{fn, "conv_state_indices", *conv_state_indices};
    indices.on_device_of(x, "x").has_shape("[batch]", {s.batch});
    indices.has_dtype(ScalarType::Int, "(one slot per sequence)");
  } else {
    check(s.slots == s.batch, fn, ": conv_state must have one slot per sequence of x, which is ", s.batch,
          ", when conv_state_indices is None, got ", s.slots);
  }
  return s;
}

}  // namespace mamba_aot
