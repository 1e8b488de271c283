// state_update on CUDA: check, allocate, pick a variant, launch. The kernel is csrc/kernels/state_update.py.
#include "ops/state_update.h"

#include "generated/state_update.gen.h"
#include "ops/launch_arguments.h"

namespace mamba_aot::cuda {
namespace {

using generated::StateUpdate;

// Bits of the kernel's `flags`, the same as in csrc/kernels/state_update.py.
enum Flag : int32_t {
  kSoftplus = 1,
  kHasD = 2,
  kHasZ = 4,
  kHasBias = 8,
  kHasGate = 16,
  kHasIndices = 32,
  kZoh = 64,
};
constexpr int kDtypes = 8;

// The dtype of operand `position` (A, B, C, D, dt_bias, gate), as the kernel's loads read it from `flags`.
int32_t dtype_flag(const Tensor& t, int position) {
  const ScalarType type = t.scalar_type();
  const int32_t code = type == ScalarType::Half ? 1 : type == ScalarType::BFloat16 ? 2 : 0;
  return code << (kDtypes + 2 * position);
}

Tensor loadable(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? to_state_dtype(t, ScalarType::Float) : t;
}

OptionalTensor loadable(const OptionalTensor& t) { return t ? OptionalTensor(loadable(*t)) : std::nullopt; }

}  // namespace

Tensor state_update(Tensor state, Tensor x, Tensor dt, Tensor A_, Tensor B_, Tensor C_, OptionalTensor D_,
                    OptionalTensor z, OptionalTensor dt_bias, OptionalTensor decay_gate,
                    OptionalTensor state_batch_indices, bool dt_softplus, bool zoh) {
  const StateUpdateSizes s =
      check_state_update(state, x, dt, A_, B_, C_, D_, z, dt_bias, decay_gate, state_batch_indices);
  const Tensor A = loadable(A_), B = loadable(B_), C = loadable(C_);
  const OptionalTensor D = loadable(D_), bias = loadable(dt_bias), gate = loadable(decay_gate);
  check(s.channels < INT32_MAX - 128 && s.state < INT32_MAX - 128,
        "selective_state_update: on CUDA channels and state must each be below 2^31 - 128, got ", s.channels,
        " and ", s.state);
  if (s.complex) {
    check(state.stride(3) == 1,
          "selective_state_update: a complex state must hold its real and imaginary parts side by side "
          "(stride 1), ",
          "got stride ", state.stride(3), ". Pass a complex64 tensor.");
  }
  Tensor out = empty_on(x, {s.batch, s.channels}, x.scalar_type());
  if (s.empty()) return out;

  const StateUpdate::Key key{dtype_of(x), dtype_of(state), s.complex};
  const auto& config = StateUpdate::pick(key, {});
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
  args.indices = pointer(state_batch_indices);
  args.out = pointer(out);
  args.D = static_cast<int32_t>(s.channels);
  args.N = static_cast<int32_t>(s.state);
  args.groups = static_cast<int32_t>(s.groups);
  args.state_slot = state.stride(0);
  args.state_channel = state.stride(1);
  args.state_n = state.stride(2);
  args.x_batch = x.stride(0);
  args.x_channel = x.stride(1);
  args.dt_batch = dt.stride(0);
  args.dt_channel = dt.stride(1);
  args.z_batch = z ? z->stride(0) : 0;
  args.z_channel = z ? z->stride(1) : 0;
  args.A_channel = A.stride(0);
  args.A_n = A.stride(1);
  args.A_part = s.complex ? A.stride(2) : 0;
  args.B_batch = B.stride(0);
  args.B_group = B.stride(1);
  args.B_n = B.stride(2);
  args.B_part = s.complex ? B.stride(3) : 0;
  args.C_batch = C.stride(0);
  args.C_group = C.stride(1);
  args.C_n = C.stride(2);
  args.C_part = s.complex ? C.stride(3) : 0;
  args.D_channel = D ? D->stride(0) : 0;
  args.bias_channel = bias ? bias->stride(0) : 0;
  args.gate_batch = gate ? gate->stride(0) : 0;
  args.gate_n = gate ? gate->stride(1) : 0;
  args.indices_batch = state_batch_indices ? state_batch_indices->stride(0) : 0;
  args.flags = (dt_softplus ? kSoftplus : 0) | (D ? kHasD : 0) | (z ? kHasZ : 0) | (bias ? kHasBias : 0) |
               (gate ? kHasGate : 0) | (state_batch_indices ? kHasIndices : 0) | (zoh ? kZoh : 0) |
               dtype_flag(A, 0) | dtype_flag(B, 1) | dtype_flag(C, 2) | (D ? dtype_flag(*D, 3) : 0) |
               (bias ? dtype_flag(*bias, 4) : 0) | (gate ? dtype_flag(*gate, 5) : 0);
  const int64_t blocks = (s.channels + config.CHANNELS - 1) / config.CHANNELS;
  StateUpdate::launch(key, config, x.get_device_index(), s.batch * blocks, args);
  return out;
}

}  // namespace mamba_aot::cuda
