// state_update (steps of selective_scan, state in place): what its arguments must be, and the two
// implementations of it.
#pragma once

#include <array>

#include "ops/state_update_layout.h"

namespace mamba_aot {

// The arguments of the schema that are tensors, by its names.
struct StateUpdateTensors {
  const Tensor &state, &x, &dt, &A, &B, &C;
  const OptionalTensor &D, &z, &dt_bias, &decay_gate, &state_batch_indices, &dst_state_batch_indices;
  const OptionalTensor &accepted_steps, &out, &intermediate_states;
};

// Checks every argument and returns the sizes. Throws std::invalid_argument.
StateUpdateSizes check_state_update(const StateUpdateTensors& t, bool is_complex);

// Both namespaces implement the schema of library.cpp, argument for argument.
namespace cpu {
Tensor state_update(Tensor state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, OptionalTensor D,
                    OptionalTensor z, OptionalTensor dt_bias, OptionalTensor decay_gate,
                    OptionalTensor state_batch_indices, OptionalTensor dst_state_batch_indices,
                    OptionalTensor accepted_steps, OptionalTensor out, OptionalTensor intermediate_states,
                    int64_t pad_slot_id, bool dt_softplus, bool zoh, bool update_state, bool is_complex);
}  // namespace cpu

namespace cuda {
Tensor state_update(Tensor state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, OptionalTensor D,
                    OptionalTensor z, OptionalTensor dt_bias, OptionalTensor decay_gate,
                    OptionalTensor state_batch_indices, OptionalTensor dst_state_batch_indices,
                    OptionalTensor accepted_steps, OptionalTensor out, OptionalTensor intermediate_states,
                    int64_t pad_slot_id, bool dt_softplus, bool zoh, bool update_state, bool is_complex);
}  // namespace cuda

}  // namespace mamba_aot
