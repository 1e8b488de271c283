// selective_scan: what its arguments must be, and the two implementations of it.
#pragma once

#include "ops/check.h"

namespace mamba_aot {

// States are saved at the start of every chunk of this many steps.
inline constexpr int64_t kChunk = 64;

// What is packed: nothing, several sequences in each batch row, or all of them in one row.
enum class Packing { none, by_index, by_ends };

struct SelectiveScanSizes {
  int64_t batch, channels, length, groups, state;
  // A, B, C and the states are complex: pairs of reals in a last dimension of 2.
  bool complex;
  // Rows of delta, each for channels / heads channels.
  int64_t heads;
  Packing packing = Packing::none;
  // Rows of work, each with a state of its own: one per batch row, or one per sequence of cu_seqlens.
  int64_t rows = 0;
  // [channels, state] for all steps.
  bool constant_B = false, constant_C = false;

  int64_t parts() const { return complex ? 2 : 1; }
  int64_t chunks() const { return (length + kChunk - 1) / kChunk; }
  // Behind the states of the chunks lie those that sequences begin with which begin inside a chunk: zero by
  // index, one for each sequence by ends.
  int64_t saved_rows() const {
    return chunks() + (packing == Packing::by_index ? 1 : packing == Packing::by_ends ? rows : 0);
  }
  bool packed() const { return packing != Packing::none; }
  bool empty() const { return batch == 0 || rows == 0 || channels == 0 || length == 0; }
};

namespace detail {

// Whether B or C is [channels, state].
inline bool is_constant(const Tensor& t, const SelectiveScanSizes& s) {
  return t.dim() == (s.complex ? 3 : 2);
}

}  // namespace detail

// The tensors both ops take, in the order of the schemas.
struct SelectiveScanInputs {
  Tensor u, delta, A, B, C;
  OptionalTensor D, z, delta_bias, decay_gate;
};

// Checks every argument of the forward op and returns the sizes. Throws std::invalid_argument.
SelectiveScanSizes check_selective_scan(const SelectiveScanInputs& in, const OptionalTensor& initial_state,
                                        const OptionalTensor& runs, const OptionalTensor& cu_seqlens);

// Checks every argument of the backward op and returns the sizes. Throws std::invalid_argument.
SelectiveScanSizes check_selective_scan_backward(const Tensor& dout, const OptionalTensor& dlast_state,
                                                 const SelectiveScanInputs& in, const OptionalTensor& runs,
                                                 const OptionalTensor& cu_seqlens,
                                                 const Tensor& chunk_states);

using SelectiveScanOutputs = std::tuple<Tensor, Tensor, Tensor>;
using SelectiveScanGradients =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
// The same but for delta's and z's, which are written where the caller says.
using SelectiveScanOtherGradients =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

inline SelectiveScanOtherGradients others(const SelectiveScanGradients& all) {
  return {std::get<0>(all), std::get<2>(all), std::get<3>(all), std::get<4>(all),
          std::get<5>(all), std::get<7>(all), std::get<8>(all), std::get<9>(all)};
}

// Checks where those two are to be written. Throws std::invalid_argument.
void check_selective_scan_gradients_out(const Tensor& dout, const SelectiveScanInputs& in,
                                        const Tensor& ddelta, const Tensor& dz);

// Both namespaces implement the three schemas of library.cpp, argument for argument. `from_state` says
// whether the forward began with an initial state, without which nobody needs its gradient.
namespace cpu {
SelectiveScanOutputs selective_scan_fwd(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C,
                                        OptionalTensor D, OptionalTensor z, OptionalTensor delta_bias,
                                        OptionalTensor decay_gate, OptionalTensor initial_state,
                                        OptionalTensor runs, OptionalTensor cu_seqlens, bool delta_softplus,
                                        bool zoh, bool save_states);
SelectiveScanGradients selective_scan_bwd(Tensor dout, OptionalTensor dlast_state, Tensor u, Tensor delta,
                                          Tensor A, Tensor B, Tensor C, OptionalTensor D, OptionalTensor z,
                                          OptionalTensor delta_bias, OptionalTensor decay_gate,
                                          OptionalTensor runs, OptionalTensor cu_seqlens, Tensor chunk_states,
                                          bool delta_softplus, bool zoh, bool from_state);
SelectiveScanOtherGradients selective_scan_bwd_into(Tensor dout, OptionalTensor dlast_state, Tensor u,
                                                    Tensor delta, Tensor A, Tensor B, Tensor C,
                                                    OptionalTensor D, Tensor z, OptionalTensor delta_bias,
                                                    OptionalTensor decay_gate, OptionalTensor runs,
                                                    OptionalTensor cu_seqlens, Tensor chunk_states,
                                                    bool delta_softplus, bool zoh, Tensor ddelta, Tensor dz);
}  // namespace cpu

namespace cuda {
SelectiveScanOutputs selective_scan_fwd(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C,
                                        OptionalTensor D, OptionalTensor z, OptionalTensor delta_bias,
                                        OptionalTensor decay_gate, OptionalTensor initial_state,
                                        OptionalTensor runs, OptionalTensor cu_seqlens, bool delta_softplus,
                                        bool zoh, bool save_states);
SelectiveScanGradients selective_scan_bwd(Tensor dout, OptionalTensor dlast_state, Tensor u, Tensor delta,
                                          Tensor A, Tensor B, Tensor C, OptionalTensor D, OptionalTensor z,
                                          OptionalTensor delta_bias, OptionalTensor decay_gate,
                                          OptionalTensor runs, OptionalTensor cu_seqlens, Tensor chunk_states,
                                          bool delta_softplus, bool zoh, bool from_state);
SelectiveScanOtherGradients selective_scan_bwd_into(Tensor dout, OptionalTensor dlast_state, Tensor u,
                                                    Tensor delta, Tensor A, Tensor B, Tensor C,
                                                    OptionalTensor D, Tensor z, OptionalTensor delta_bias,
                                                    OptionalTensor decay_gate, OptionalTensor runs,
                                                    OptionalTensor cu_seqlens, Tensor chunk_states,
                                                    bool delta_softplus, bool zoh, Tensor ddelta, Tensor dz);
}  // namespace cuda

}  // namespace mamba_aot
