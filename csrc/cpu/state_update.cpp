// The CPU half of state_update: checks, allocates, cuts the work into items and hands them to the kernel.
#include "ops/state_update.h"

#include "cpu/dispatch.h"
#include "cpu/state_update_plan.h"

namespace mamba_aot::cpu {

MAMBA_AOT_PER_ISA(int64_t, state_update_step,
                  (const StateUpdatePlan& plan, int64_t begin, int64_t end, void* scratch))

Tensor state_update(Tensor state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, OptionalTensor D,
                    OptionalTensor z, OptionalTensor dt_bias, OptionalTensor decay_gate,
                    OptionalTensor state_batch_indices, bool dt_softplus, bool zoh) {
  const StateUpdateSizes s =
      check_state_update(state, x, dt, A, B, C, D, z, dt_bias, decay_gate, state_batch_indices);
  check_slots("selective_state_update", "state_batch_indices", state_batch_indices, s.slots);
  const ScalarType type = state_dtype(x.scalar_type());
  const Tensor rates = to_state_dtype(A, type), in = to_state_dtype(B, type), read = to_state_dtype(C, type);
  const OptionalTensor skip = to_state_dtype(D, type), bias = to_state_dtype(dt_bias, type);
  const OptionalTensor gate = to_state_dtype(decay_gate, type);
  Tensor out = empty_on(x, {s.batch, s.channels}, x.scalar_type());
  StateUpdatePlan plan{};
  plan.batch = s.batch;
  plan.channels = s.channels;
  plan.groups = s.groups;
  plan.state = s.state;
  plan.parts = s.complex ? 2 : 1;
  plan.split_channels = 64;
  plan.splits = (s.channels / s.groups + plan.split_channels - 1) / plan.split_channels;
  plan.softplus = dt_softplus;
  plan.zoh = zoh;
  plan.float64 = type == ScalarType::Double;
  plan.held = view(state);
  plan.x = view(x);
  plan.dt = view(dt);
  plan.z = view(z);
  plan.out = view(out);
  plan.A = rates.data_ptr();
  plan.B = in.data_ptr();
  plan.C = read.data_ptr();
  plan.D = skip ? skip->data_ptr() : nullptr;
  plan.dt_bias = bias ? bias->data_ptr() : nullptr;
  plan.gate = gate ? gate->data_ptr() : nullptr;
  if (state_batch_indices) {
    plan.indices = static_cast<const int32_t*>(state_batch_indices->data_ptr());
    plan.indices_stride = state_batch_indices->stride(0);
  }
  // Sequences of one slot stay on one thread, so that even a repeated slot is updated in order.
  const int64_t items = s.empty() ? 0 : s.groups * plan.splits;
  const int64_t work = s.batch * plan.split_channels * s.state * plan.parts;
  run_items(plan, items, work > 0 && work < 32768 ? 32768 / work : 1, pick_state_update_step());
  return out;
}

}  // namespace mamba_aot::cpu
