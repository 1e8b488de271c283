// state_update on CUDA: check, allocate, pick a variant, launch. The kernel is csrc/kernels/state_update.py.
#include "ops/state_update.h"

#include "generated/state_update.gen.h"
#include "ops/launch_arguments.h"

namespace mamba_aot::cuda {
namespace {

using generated::StateUpdate;
using generated::StateUpdatePlain;

// Bits of the kernel's `flags`, the same as in csrc/kernels/_state_update_operands.py.
enum Flag : int32_t {
  kSoftplus = 1,
  kHasD = 2,
  kHasZ = 4,
  kHasBias = 8,
  kHasGate = 16,
  kHasSource = 32,
  kHasTarget = 64,
  kHasAccepted = 128,
  kHasIntermediate = 256,
  kUpdate = 512,
  kZoh = 1024,
  kTied = 2048,
};
constexpr int kDtypes = 12;
// How far the state's format lies below the format of x.
constexpr int kStateFormat = 1;

// The dtype of operand `position` (A, B, C, D, dt_bias, gate), as the kernel's loads read it from `flags`.
int32_t dtype_flag(const OptionalTensor& t, int position) {
  if (!t) return 0;
  const ScalarType type = type_of(*t);
  const int32_t code = type == ScalarType::Half ? 1 : type == ScalarType::BFloat16 ? 2 : 0;
  return code << (kDtypes + 2 * position);
}

Tensor loadable(const Tensor& t) {
  return type_of(t) == ScalarType::Double ? to_state_dtype(t, ScalarType::Float) : t;
}

OptionalTensor loadable(const OptionalTensor& t) { return t ? OptionalTensor(loadable(*t)) : std::nullopt; }

int64_t stride_of(const OptionalTensor& rows) { return rows ? rows->stride(0) : 0; }

// Contiguous along the states, each row of them on a 16-element boundary: what ROWS is compiled for.
bool rows(const OptionalTensor& t, const StateUpdateStrides& s) {
  if (!t) return true;
  return reinterpret_cast<uintptr_t>(t->data_ptr()) % 16 == 0 && s.n == 1 && s.batch % 16 == 0 &&
         s.step % 16 == 0 && s.head % 16 == 0 && s.channel % 16 == 0;
}

// Whether 32 bits hold the way from the first channel of a program to any other: ROWS counts on it.
bool near(std::initializer_list<const StateUpdateStrides*> arguments) {
  for (const StateUpdateStrides* strides : arguments) {
    if (strides->channel >= int64_t{1} << 23) return false;
  }
  return true;
}

void check_pairs(const char* name, const OptionalTensor& t, int64_t part) {
  check(!t || part == 1, "selective_state_update: ", name,
        " must hold its real and imaginary parts side by side (stride 1), got stride ", part,
        ". Pass a complex64 tensor.");
}

}  // namespace

Tensor state_update(Tensor state, Tensor x, Tensor dt, Tensor A_, Tensor B_, Tensor C_, OptionalTensor D_,
                    OptionalTensor z, OptionalTensor dt_bias, OptionalTensor decay_gate,
                    OptionalTensor state_batch_indices, OptionalTensor dst_state_batch_indices,
                    OptionalTensor accepted_steps, OptionalTensor out, OptionalTensor intermediate_states,
                    int64_t pad_slot_id, bool dt_softplus, bool zoh, bool update_state, bool is_complex) {
  StateUpdateSizes s =
      check_state_update({state, x, dt, A_, B_, C_, D_, z, dt_bias, decay_gate, state_batch_indices,
                          dst_state_batch_indices, accepted_steps, out, intermediate_states},
                         is_complex);
  if (!of_one_dtype(x, dt, z)) {
    Tensor result = out ? *out : empty_like_x(x);
    Tensor wide =
        state_update(state, in_float32(x), in_float32(dt), A_, B_, C_, D_, in_float32(z), dt_bias, decay_gate,
                     state_batch_indices, dst_state_batch_indices, accepted_steps, std::nullopt,
                     intermediate_states, pad_slot_id, dt_softplus, zoh, update_state, is_complex);
    torch::stable::copy_(result, wide);
    return out ? absent_on(x) : result;
  }
  const Tensor A = loadable(A_), B = loadable(B_), C = loadable(C_);
  const OptionalTensor D = loadable(D_), bias = loadable(dt_bias), gate = loadable(decay_gate);
  check(s.heads * s.dim < INT32_MAX - 128 && s.state < INT32_MAX - 128 && s.steps < INT32_MAX,
        "selective_state_update: on CUDA channels, state and steps must each be below 2^31 - 128, got ",
        s.heads * s.dim, ", ", s.state, " and ", s.steps);

  auto held = detail::strides_of(state, detail::kState, s);
  auto intermediate = detail::strides_of(intermediate_states, detail::kIntermediate, s);
  if (s.complex) {
    check_pairs("state", state, held.part);
    check_pairs("intermediate_states", intermediate_states, intermediate.part);
  }
  Tensor result = out ? *out : empty_like_x(x);
  auto of_x = detail::strides_of(x, detail::kData, s), of_dt = detail::strides_of(dt, detail::kData, s);
  auto of_z = detail::strides_of(z, detail::kData, s), of_out = detail::strides_of(result, detail::kData, s);
  auto rates = detail::strides_of(A, detail::kRates, s), skip = detail::strides_of(D, detail::kVector, s);
  auto of_bias = detail::strides_of(bias, detail::kVector, s);
  detail::join_heads(s, {&held, &of_x, &of_dt, &of_z, &of_out, &rates, &skip, &of_bias, &intermediate});
  const auto in = detail::strides_of_weight(B, s), read = detail::strides_of_weight(C, s);
  const auto of_gate = detail::strides_of(gate, detail::kGate, s);
  Tensor returned = out ? absent_on(x) : result;
  if (s.empty()) return returned;

  const bool tied = rates.n == 0 && rates.channel == 0;
  const bool in_rows = !s.complex && s.state > 0 && s.state % 16 == 0 && (s.steps == 1 || s.state > 16) &&
                       (type_of(state) == ScalarType::Float || storage_of(state) == storage_of(x)) &&
                       type_of(A) == ScalarType::Float && (tied || rows(A, rates)) && rows(state, held) &&
                       rows(intermediate_states, intermediate) && in.n == 1 && read.n == 1 &&
                       (!gate || of_gate.n == 1) &&
                       near({&held, &of_x, &of_dt, &of_z, &of_out, &rates, &skip, &of_bias, &intermediate});
  const int32_t flags =
      (dt_softplus ? kSoftplus : 0) | (D ? kHasD : 0) | (z ? kHasZ : 0) | (bias ? kHasBias : 0) |
      (gate ? kHasGate : 0) | (state_batch_indices ? kHasSource : 0) |
      (dst_state_batch_indices ? kHasTarget : 0) | (accepted_steps ? kHasAccepted : 0) |
      (intermediate_states ? kHasIntermediate : 0) | (update_state ? kUpdate : 0) | (zoh ? kZoh : 0) |
      (tied ? kTied : 0) | dtype_flag(A, 0) | dtype_flag(B, 1) | dtype_flag(C, 2) | dtype_flag(D, 3) |
      dtype_flag(bias, 4) | dtype_flag(gate, 5) | format_flag(x) | (format_flag(state) >> kStateFormat);
  const bool plain = in_rows && !tied && s.steps == 1 && s.state == 16 && s.heads == 1 && s.groups == 1 &&
                     type_of(state) == ScalarType::Float && !gate && !dst_state_batch_indices &&
                     !accepted_steps && !intermediate_states && update_state && !zoh && of_x.channel == 1 &&
                     of_dt.channel == 1 && of_out.channel == 1 && (!z || of_z.channel == 1) &&
                     (!D || skip.channel == 1) && (!bias || of_bias.channel == 1) &&
                     s.dim * held.channel < INT32_MAX && s.dim * rates.channel < INT32_MAX;
  if (plain) {
    StateUpdatePlain::Args args{};
    args.state = pointer(state);
    args.x = pointer(x);
    args.dt = pointer(dt);
    args.A = pointer(A);
    args.B = pointer(B);
    args.C = pointer(C);
    args.D_skip = pointer(D);
    args.z = pointer(z);
    args.dt_bias = pointer(bias);
    args.source = pointer(state_batch_indices);
    args.out = pointer(result);
    args.dim = static_cast<int32_t>(s.dim);
    args.slots = s.slots;
    args.pad = pad_slot_id;
    args.state_slot = held.batch;
    args.state_channel = static_cast<int32_t>(held.channel);
    args.x_batch = of_x.batch;
    args.dt_batch = of_dt.batch;
    args.z_batch = of_z.batch;
    args.out_batch = of_out.batch;
    args.A_channel = static_cast<int32_t>(rates.channel);
    args.B_batch = in.batch;
    args.C_batch = read.batch;
    args.source_batch = stride_of(state_batch_indices);
    args.flags = flags;
    const StateUpdatePlain::Key plain_key{storage_of(x)};
    const auto& config = StateUpdatePlain::pick(plain_key, {});
    const int64_t blocks = (s.dim + config.CHANNELS - 1) / config.CHANNELS;
    StateUpdatePlain::launch(plain_key, config, x.get_device_index(), s.batch * blocks, args);
    return returned;
  }
  const StateUpdate::Key key{storage_of(x), storage_of(state), s.complex, in_rows};
  const auto& config = StateUpdate::pick(key, {s.state, s.steps});
  // A pass over the steps takes STATES states; sums of several passes over several steps meet in memory.
  const bool passes = s.steps > 1 && s.state > config.STATES;
  OptionalTensor partial;
  if (passes) partial = empty_on(x, {s.batch, s.steps, s.heads * s.dim}, ScalarType::Float);

  StateUpdate::Args args{};
  args.state = pointer(state);
  args.x = pointer(x);
  args.dt = pointer(dt);
  args.A = pointer(A);
  args.B = pointer(B);
  args.C = pointer(C);
  args.D_skip = pointer(D);
  args.z = pointer(z);
  args.dt_bias = pointer(bias);
  args.gate = pointer(gate);
  args.source = pointer(state_batch_indices);
  args.target = pointer(dst_state_batch_indices);
  args.accepted = pointer(accepted_steps);
  args.out = pointer(result);
  args.intermediate = pointer(intermediate_states);
  args.partial = pointer(partial);
  args.heads = static_cast<int32_t>(s.heads);
  args.dim = static_cast<int32_t>(s.dim);
  args.N = static_cast<int32_t>(s.state);
  args.group_heads = static_cast<int32_t>(s.heads / s.groups);
  args.slots = s.slots;
  args.steps = static_cast<int32_t>(s.steps);
  args.pad = pad_slot_id;
  args.state_slot = held.batch;
  args.state_head = held.head;
  args.state_channel = held.channel;
  args.state_n = held.n;
  args.x_batch = of_x.batch;
  args.x_step = of_x.step;
  args.x_head = of_x.head;
  args.x_channel = of_x.channel;
  args.dt_batch = of_dt.batch;
  args.dt_step = of_dt.step;
  args.dt_head = of_dt.head;
  args.dt_channel = of_dt.channel;
  args.z_batch = of_z.batch;
  args.z_step = of_z.step;
  args.z_head = of_z.head;
  args.z_channel = of_z.channel;
  args.out_batch = of_out.batch;
  args.out_step = of_out.step;
  args.out_head = of_out.head;
  args.out_channel = of_out.channel;
  args.intermediate_batch = intermediate.batch;
  args.intermediate_step = intermediate.step;
  args.intermediate_head = intermediate.head;
  args.intermediate_channel = intermediate.channel;
  args.intermediate_n = intermediate.n;
  // Rows of a tied A are not read, so their strides keep the promise of alignment.
  args.A_head = in_rows && tied ? 0 : rates.head;
  args.A_channel = rates.channel;
  args.A_n = rates.n;
  args.A_part = rates.part;
  args.A_tied = rates.head;
  args.B_batch = in.batch;
  args.B_step = in.step;
  args.B_group = in.group;
  args.B_n = in.n;
  args.B_part = in.part;
  args.C_batch = read.batch;
  args.C_step = read.step;
  args.C_group = read.group;
  args.C_n = read.n;
  args.C_part = read.part;
  args.D_head = skip.head;
  args.D_channel = skip.channel;
  args.bias_head = of_bias.head;
  args.bias_channel = of_bias.channel;
  args.gate_batch = of_gate.batch;
  args.gate_step = of_gate.step;
  args.gate_n = of_gate.n;
  args.source_batch = stride_of(state_batch_indices);
  args.target_batch = stride_of(dst_state_batch_indices);
  args.accepted_batch = stride_of(accepted_steps);
  args.flags = flags;
  const int64_t blocks = (s.dim + config.CHANNELS - 1) / config.CHANNELS;
  StateUpdate::launch(key, config, x.get_device_index(), s.batch * s.heads * blocks, args);
  return returned;
}

}  // namespace mamba_aot::cuda
