// causal_conv1d: what its arguments must be, and the two implementations of it.
#pragma once

#include "ops/check.h"

namespace mamba_aot {

inline constexpr int64_t kMinWidth = 1, kMaxWidth = 64;

struct CausalConv1dSizes {
  // `rows` of initial states: one per batch row, or one per packed sequence.
  int64_t batch, channels, length, width, rows;

  bool empty() const { return batch == 0 || channels == 0 || length == 0; }
};

struct CausalConv1dUpdateSizes {
  int64_t batch, channels, length, width, slots, state_length;
  // x was [batch, channels]: one step, no length dimension.
  bool single;

  bool empty() const { return batch == 0 || channels == 0 || length == 0; }
};

// Checks every argument of the forward op and returns the sizes. Throws std::invalid_argument.
CausalConv1dSizes check_causal_conv1d(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                      const OptionalTensor& initial_states, const OptionalTensor& sequences);

// Checks every argument of the backward op and returns the sizes. Throws std::invalid_argument.
CausalConv1dSizes check_causal_conv1d_backward(const Tensor& dout, const Tensor& x, const Tensor& weight,
                                               const OptionalTensor& bias,
                                               const OptionalTensor& initial_states,
                                               const OptionalTensor& sequences);

// Checks what says which steps are one sequence: exactly one of seq_idx and cu_seqlens. The values of
// cu_seqlens are left to who can read them. Throws std::invalid_argument.
CausalConv1dSizes check_causal_conv1d_sequences(const Tensor& x, const Tensor& weight,
                                                const OptionalTensor& seq_idx,
                                                const OptionalTensor& cu_seqlens,
                                                const OptionalTensor& initial_states);

// Checks every argument of the update op and returns the sizes. Throws std::invalid_argument.
CausalConv1dUpdateSizes check_causal_conv1d_update(const Tensor& x, const Tensor& conv_state,
                                                   const Tensor& weight, const OptionalTensor& bias,
                                                   const OptionalTensor& cache_seqlens,
                                                   const OptionalTensor& conv_state_indices);

using CausalConv1dGradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;
// The same but for x's, which is written where the caller says.
using CausalConv1dOtherGradients = std::tuple<Tensor, Tensor, Tensor>;

// What `sequences` says of a step that is padding: no input is that late, no initial states come before it.
inline constexpr int32_t kPaddingStart = INT32_MAX, kNoRow = -1;

// Both namespaces implement the five schemas of library.cpp, argument for argument.
// `sequences`, int32 [2, batch, length], says of each step where its sequence starts, and which row of the
// initial states comes before that (kNoRow: none). A start width - 1 or more steps back may be any such step.
namespace cpu {
Tensor causal_conv1d_sequences(Tensor x, Tensor weight, OptionalTensor seq_idx, OptionalTensor cu_seqlens,
                               OptionalTensor initial_states);
Tensor causal_conv1d_fwd(Tensor x, Tensor weight, OptionalTensor bias, OptionalTensor initial_states,
                         OptionalTensor sequences, bool silu);
CausalConv1dGradients causal_conv1d_bwd(Tensor dout, Tensor x, Tensor weight, OptionalTensor bias,
                                        OptionalTensor initial_states, OptionalTensor sequences, bool silu);
CausalConv1dOtherGradients causal_conv1d_bwd_into(Tensor dout, Tensor x, Tensor weight, OptionalTensor bias,
                                                  OptionalTensor initial_states, OptionalTensor sequences,
                                                  bool silu, Tensor dx);
Tensor causal_conv1d_update(Tensor x, Tensor conv_state, Tensor weight, OptionalTensor bias,
                            OptionalTensor cache_seqlens, OptionalTensor conv_state_indices, bool silu);
}  // namespace cpu

namespace cuda {
Tensor causal_conv1d_sequences(Tensor x, Tensor weight, OptionalTensor seq_idx, OptionalTensor cu_seqlens,
                               OptionalTensor initial_states);
Tensor causal_conv1d_fwd(Tensor x, Tensor weight, OptionalTensor bias, OptionalTensor initial_states,
                         OptionalTensor sequences, bool silu);
CausalConv1dGradients causal_conv1d_bwd(Tensor dout, Tensor x, Tensor weight, OptionalTensor bias,
                                        OptionalTensor initial_states, OptionalTensor sequences, bool silu);
CausalConv1dOtherGradients causal_conv1d_bwd_into(Tensor dout, Tensor x, Tensor weight, OptionalTensor bias,
                                                  OptionalTensor initial_states, OptionalTensor sequences,
                                                  bool silu, Tensor dx);
Tensor causal_conv1d_update(Tensor x, Tensor conv_state, Tensor weight, OptionalTensor bias,
                            OptionalTensor cache_seqlens, OptionalTensor conv_state_indices, bool silu);
}  // namespace cuda

}  // namespace mamba_aot
