// mamba1_sequence, what a published block does between its outer projections, for many tokens and without
// gradients: what its arguments must be, how it is made of other ops, and the two implementations of it.
#pragma once

#include "ops/causal_conv1d.h"
#include "ops/check.h"
#include "ops/selective_scan.h"

namespace mamba_aot {

// The arguments of the schema, by its names.
struct Mamba1SequenceTensors {
  const Tensor &xz, &conv_weight;
  const OptionalTensor& conv_bias;
  const Tensor &x_proj, &dt_proj;
  const OptionalTensor& dt_bias;
  const Tensor &A, &D;
  const OptionalTensor &conv_state, &ssm_state;
};

struct Mamba1SequenceSizes {
  // Channels inside the block, states, rank of delta, taps of the convolution.
  int64_t batch, length, inner, state, rank, taps;
};

// Checks every argument and returns the sizes. Throws std::invalid_argument.
Mamba1SequenceSizes check_mamba1_sequence(const Mamba1SequenceTensors& t);

// The checked sequence by the two ops of a device. Python would call each of some twenty functions.
Tensor mamba1_sequence_by(const Mamba1SequenceTensors& t, const Mamba1SequenceSizes& s,
                          decltype(&cpu::causal_conv1d_fwd) convolve,
                          decltype(&cpu::selective_scan_fwd) scan);

// Both namespaces implement the schema of library.cpp, argument for argument.
namespace cpu {
Tensor mamba1_sequence(Tensor xz, Tensor conv_weight, OptionalTensor conv_bias, Tensor x_proj, Tensor dt_proj,
                       OptionalTensor dt_bias, Tensor A, Tensor D, OptionalTensor conv_state,
                       OptionalTensor ssm_state);
}  // namespace cpu

namespace cuda {
Tensor mamba1_sequence(Tensor xz, Tensor conv_weight, OptionalTensor conv_bias, Tensor x_proj, Tensor dt_proj,
                       OptionalTensor dt_bias, Tensor A, Tensor D, OptionalTensor conv_state,
                       OptionalTensor ssm_state);
}  // namespace cuda

}  // namespace mamba_aot
