// The CPU half of state_update: checks, allocates, cuts the work into items and hands them to the kernel.
#include "ops/state_update.h"

#include "cpu/dispatch.h"
#include "cpu/state_update_plan.h"

namespace mamba_aot::cpu {

MAMBA_AOT_PER_ISA(int64_t, state_update_steps,
                  (const StateUpdatePlan& plan, int64_t begin, int64_t end, void* scratch))

namespace {

// States that are worth a thread: some 20 microseconds of work, of which a layer's token has few.
constexpr int64_t kGrain = 4096;

// Slots are read on the CPU, so each can be checked: a wrong one would lie outside the state.
void check_update_slots(const char* name, const OptionalTensor& indices, int64_t slots, int64_t pad_slot) {
  if (!indices) return;
  const int32_t* slot = static_cast<const int32_t*>(indices->data_ptr());
  for (int64_t i = 0; i < indices->size(0); ++i) {
    const int32_t got = slot[i * indices->stride(0)];
    check(got < slots || got == pad_slot, "selective_state_update: ", name, " must be slots below ", slots,
          " (or negative, for padding), got ", got, " at position ", i);
  }
}

StateUpdateOperand operand(const OptionalTensor& t, const StateUpdateStrides& s) {
  if (!t) return {};
  const View whole{t->data_ptr(), view_dtype(type_of(*t)), {}};
  return {whole, s.batch, s.step, s.head, s.channel, s.n, s.part};
}

void put_rows(const OptionalTensor& t, const int32_t*& data, int64_t& stride) {
  data = t ? static_cast<const int32_t*>(t->data_ptr()) : nullptr;
  stride = t ? t->stride(0) : 0;
}

}  // namespace

Tensor state_update(Tensor state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, OptionalTensor D,
                    OptionalTensor z, OptionalTensor dt_bias, OptionalTensor decay_gate,
                    OptionalTensor state_batch_indices, OptionalTensor dst_state_batch_indices,
                    OptionalTensor accepted_steps, OptionalTensor out, OptionalTensor intermediate_states,
                    int64_t pad_slot_id, bool dt_softplus, bool zoh, bool update_state, bool is_complex) {
  StateUpdateSizes s =
      check_state_update({state, x, dt, A, B, C, D, z, dt_bias, decay_gate, state_batch_indices,
                          dst_state_batch_indices, accepted_steps, out, intermediate_states},
                         is_complex);
  check_update_slots("state_batch_indices", state_batch_indices, s.slots, pad_slot_id);
  check_update_slots("dst_state_batch_indices", dst_state_batch_indices, s.slots, pad_slot_id);
  const ScalarType type = state_dtype(type_of(x));
  const Tensor in = to_state_dtype(B, type), read = to_state_dtype(C, type);
  const OptionalTensor gate = to_state_dtype(decay_gate, type);
  Tensor result = out ? *out : empty_like_x(x);

  auto held = detail::strides_of(state, detail::kState, s);
  auto of_x = detail::strides_of(x, detail::kData, s), of_dt = detail::strides_of(dt, detail::kData, s);
  auto of_z = detail::strides_of(z, detail::kData, s), of_out = detail::strides_of(result, detail::kData, s);
  auto rates = detail::strides_of(A, detail::kRates, s), skip = detail::strides_of(D, detail::kVector, s);
  auto bias = detail::strides_of(dt_bias, detail::kVector, s);
  auto intermediate = detail::strides_of(intermediate_states, detail::kIntermediate, s);
  detail::join_heads(s, {&held, &of_x, &of_dt, &of_z, &of_out, &rates, &skip, &bias, &intermediate});

  StateUpdatePlan plan{};
  plan.batch = s.batch;
  plan.steps = s.steps;
  plan.heads = s.heads;
  plan.channels = s.dim;
  plan.groups = s.groups;
  plan.state = s.state;
  plan.parts = s.complex ? 2 : 1;
  plan.slots = s.slots;
  plan.split_channels = kSplitChannels;
  plan.splits = (s.dim + plan.split_channels - 1) / plan.split_channels;
  plan.softplus = dt_softplus;
  plan.zoh = zoh;
  plan.float64 = type == ScalarType::Double;
  plan.update_state = update_state;
  plan.held = operand(state, held);
  plan.x = operand(x, of_x);
  plan.dt = operand(dt, of_dt);
  plan.z = operand(z, of_z);
  plan.out = operand(result, of_out);
  plan.intermediate = operand(intermediate_states, intermediate);
  plan.A = operand(A, rates);
  plan.D = operand(D, skip);
  plan.dt_bias = operand(dt_bias, bias);
  plan.B = in.data_ptr();
  plan.C = read.data_ptr();
  plan.gate = gate ? gate->data_ptr() : nullptr;
  put_rows(state_batch_indices, plan.source, plan.source_stride);
  put_rows(dst_state_batch_indices, plan.target, plan.target_stride);
  put_rows(accepted_steps, plan.accepted, plan.accepted_stride);
  plan.pad_slot = pad_slot_id;
  // Sequences of one slot stay on one thread, so that even a repeated slot is updated in order.
  const int64_t items = s.empty() ? 0 : s.heads * plan.splits;
  const int64_t channels = s.dim < plan.split_channels ? s.dim : plan.split_channels;
  const int64_t work = s.batch * s.steps * channels * s.state * plan.parts;
  run_items(plan, items, work > 0 && work < kGrain ? kGrain / work : 1,
            pick_state_update_steps(plan.float64));
  return out ? absent_on(x) : result;
}

}  // namespace mamba_aot::cpu
