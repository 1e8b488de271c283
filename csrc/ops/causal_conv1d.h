// causal_conv1d: what its arguments must be, and the two implementations of it.
#pragma once

#include "ops/check.h"

namespace mamba_aot {

inline constexpr int64_t kMinWidth = 2, kMaxWidth = 4;

struct CausalConv1dSizes {
  int64_t batch, channels, length, width;

  bool empty() const { return batch == 0 || channels == 0 || length == 0; }
};

struct CausalConv1dUpdateSizes {
  int64_t batch, channels, length, width, slots, state_length;
  // x was [batch, channels]: one step, no length dimension.
  bool single;

  bool empty() const { return batch == 0 || channels == 0 || length == 0; }
};

namespace detail {

inline int64_t check_conv_filter(const char* fn, const Tensor& x, const Tensor& weight,
                                 const OptionalTensor& bias, int64_t channels) {
  Arg w{fn, "weight", weight};
  w.has_rank("[channels, width]", 2).on_device_of(x, "x").is_float();
  const int64_t width = weight.size(1);
  check(width >= kMinWidth && width <= kMaxWidth, fn, ": weight must have a width of ", kMinWidth, ", 3 or ",
        kMaxWidth, ", got ", width, " (weight is ", shape(weight),
        "). Use torch.nn.functional.conv1d for others.");
  w.has_shape("[channels, width]", {channels, width});
  if (bias) Arg{fn, "bias", *bias}.on_device_of(x, "x").is_float().has_shape("[channels]", {channels});
  return width;
}

}  // namespace detail

// Checks every argument of the forward op and returns the sizes. Throws std::invalid_argument.
inline CausalConv1dSizes check_causal_conv1d(const Tensor& x, const Tensor& weight,
                                             const OptionalTensor& bias,
                                             const OptionalTensor& initial_states) {
  const char* fn = "causal_conv1d_fn";
  Arg{fn, "x", x}.has_rank("[batch, channels, length]", 3).is_data_dtype();
  CausalConv1dSizes s{x.size(0), x.size(1), x.size(2), 0};
  s.width = detail::check_conv_filter(fn, x, weight, bias, s.channels);
  if (initial_states) {
    Arg states{fn, "initial_states", *initial_states};
    states.on_device_of(x, "x").has_shape("[batch, channels, width - 1]", {s.batch, s.channels, s.width - 1});
    states.has_dtype(x.scalar_type(), "like x");
  }
  return s;
}

// Checks every argument of the backward op and returns the sizes. Throws std::invalid_argument.
inline CausalConv1dSizes check_causal_conv1d_backward(const Tensor& dout, const Tensor& x,
                                                      const Tensor& weight, const OptionalTensor& bias,
                                                      const OptionalTensor& initial_states) {
  CausalConv1dSizes s = check_causal_conv1d(x, weight, bias, initial_states);
  Arg grad{"causal_conv1d_fn", "dout", dout};
  grad.on_device_of(x, "x").has_shape("[batch, channels, length]", {s.batch, s.channels, s.length});
  grad.has_dtype(x.scalar_type(), "like x");
  return s;
}

// Checks every argument of the update op and returns the sizes. Throws std::invalid_argument.
inline CausalConv1dUpdateSizes check_causal_conv1d_update(const Tensor& x, const Tensor& conv_state,
                                                          const Tensor& weight, const OptionalTensor& bias,
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
  state.has_dtype(x.scalar_type(), "like x").is_writable();
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

using CausalConv1dGradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// Both namespaces implement the three schemas of library.cpp, argument for argument.
namespace cpu {
Tensor causal_conv1d_fwd(Tensor x, Tensor weight, OptionalTensor bias, OptionalTensor initial_states,
                         bool silu);
CausalConv1dGradients causal_conv1d_bwd(Tensor dout, Tensor x, Tensor weight, OptionalTensor bias,
                                        OptionalTensor initial_states, bool silu);
Tensor causal_conv1d_update(Tensor x, Tensor conv_state, Tensor weight, OptionalTensor bias,
                            OptionalTensor conv_state_indices, bool silu);
}  // namespace cpu

namespace cuda {
Tensor causal_conv1d_fwd(Tensor x, Tensor weight, OptionalTensor bias, OptionalTensor initial_states,
                         bool silu);
CausalConv1dGradients causal_conv1d_bwd(Tensor dout, Tensor x, Tensor weight, OptionalTensor bias,
                                        OptionalTensor initial_states, bool silu);
Tensor causal_conv1d_update(Tensor x, Tensor conv_state, Tensor weight, OptionalTensor bias,
                            OptionalTensor conv_state_indices, bool silu);
}  // namespace cuda

}  // namespace mamba_aot
