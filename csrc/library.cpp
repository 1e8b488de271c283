// The contract of the package: every schema, and which function answers it on which device.
#include <torch/csrc/stable/library.h>

#include "ops/causal_conv1d.h"
#include "ops/linear_recurrence.h"
#include "ops/mamba1_sequence.h"
#include "ops/mamba1_step.h"
#include "ops/rms_norm.h"
#include "ops/selective_scan.h"
#include "ops/sequence_runs.h"
#include "ops/state_update.h"

namespace mamba_aot {
namespace {

// Complex arguments are real views whose last dimension has size 2; "a!" marks what is written in place.
constexpr const char* kSchemas[] = {
    "selective_scan_fwd(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
    "Tensor? delta_bias, Tensor? decay_gate, Tensor? initial_state, Tensor? runs, Tensor? cu_seqlens, "
    "bool delta_softplus, bool zoh, bool save_states) "
    "-> (Tensor out, Tensor last_state, Tensor chunk_states)",

    "selective_scan_bwd(Tensor dout, Tensor? dlast_state, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor "
    "C, "
    "Tensor? D, Tensor? z, Tensor? delta_bias, Tensor? decay_gate, Tensor? runs, Tensor? cu_seqlens, "
    "Tensor chunk_states, bool delta_softplus, bool zoh, bool from_state) "
    "-> (Tensor du, Tensor ddelta, Tensor dA, Tensor dB, "
    "Tensor dC, Tensor dD, Tensor dz, "
    "Tensor ddelta_bias, Tensor ddecay_gate, Tensor dinitial_state)",

    "selective_scan_bwd_into(Tensor dout, Tensor? dlast_state, Tensor u, Tensor delta, Tensor A, Tensor B, "
    "Tensor C, Tensor? D, Tensor z, Tensor? delta_bias, Tensor? decay_gate, Tensor? runs, Tensor? "
    "cu_seqlens, "
    "Tensor chunk_states, bool delta_softplus, bool zoh, Tensor(a!) ddelta, Tensor(b!) dz) "
    "-> (Tensor du, Tensor dA, Tensor dB, Tensor dC, Tensor dD, Tensor ddelta_bias, Tensor ddecay_gate, "
    "Tensor dinitial_state)",

    "sequence_runs(Tensor seq_idx) -> Tensor",

    "causal_conv1d_sequences(Tensor x, Tensor weight, Tensor? seq_idx, Tensor? cu_seqlens, "
    "Tensor? initial_states) -> Tensor",

    "causal_conv1d_fwd(Tensor x, Tensor weight, Tensor? bias, Tensor? initial_states, Tensor? sequences, "
    "bool silu) -> Tensor",

    "causal_conv1d_bwd(Tensor dout, Tensor x, Tensor weight, Tensor? bias, Tensor? initial_states, "
    "Tensor? sequences, bool silu) "
    "-> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dinitial_states)",

    "causal_conv1d_bwd_into(Tensor dout, Tensor x, Tensor weight, Tensor? bias, Tensor? initial_states, "
    "Tensor? sequences, bool silu, Tensor(a!) dx) -> (Tensor dweight, Tensor dbias, Tensor dinitial_states)",

    "causal_conv1d_update(Tensor x, Tensor(a!) conv_state, Tensor weight, Tensor? bias, "
    "Tensor? cache_seqlens, Tensor? conv_state_indices, bool silu) -> Tensor",

    "state_update(Tensor(a!) state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
    "Tensor? dt_bias, Tensor? decay_gate, Tensor? state_batch_indices, Tensor? dst_state_batch_indices, "
    "Tensor? accepted_steps, Tensor(b!)? out, Tensor(c!)? intermediate_states, int pad_slot_id, "
    "bool dt_softplus, bool zoh, bool update_state, bool is_complex) -> Tensor",

    "mamba1_step(Tensor x, Tensor? residual, Tensor? norm_weight, Tensor in_proj, Tensor(a!) conv_state, "
    "Tensor conv_weight, Tensor? conv_bias, Tensor x_proj, Tensor dt_proj, Tensor dt_bias, Tensor A, Tensor "
    "D, "
    "Tensor(b!) ssm_state, Tensor out_proj, Tensor? next_norm_weight, float eps, float next_eps, "
    "bool wide_sum) -> (Tensor out, Tensor sum)",

    "mamba1_sequence(Tensor xz, Tensor conv_weight, Tensor? conv_bias, Tensor x_proj, Tensor dt_proj, "
    "Tensor? dt_bias, Tensor A, Tensor D, Tensor(a!)? conv_state, Tensor(b!)? ssm_state) -> Tensor",

    "few_rows_linear(Tensor x, Tensor weight, Tensor? norm_weight, Tensor? residual, float eps) -> Tensor",

    "argmax_rows(Tensor x) -> Tensor",

    "linear_recurrence_fwd(Tensor a, Tensor b, Tensor? initial_state, bool complex, bool reverse, "
    "bool save_states) -> (Tensor h, Tensor last_state, Tensor chunk_states)",

    "linear_recurrence_bwd(Tensor dh, Tensor? dlast_state, Tensor a, Tensor? b, Tensor? h, "
    "Tensor? initial_state, Tensor? chunk_states, bool complex, bool reverse) "
    "-> (Tensor da, Tensor db, Tensor dinitial_state)",

    "rms_norm_fwd(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? z, float eps, int "
    "group_size, "
    "bool centered, bool? norm_before_gate, bool keep_sum, bool wide_sum) "
    "-> (Tensor out, Tensor sum, Tensor mean, Tensor rstd)",

    "rms_norm_bwd(Tensor dout, Tensor? dsum, Tensor? x, Tensor weight, Tensor? bias, Tensor? residual, "
    "Tensor? z, "
    "Tensor mean, Tensor rstd, float eps, int group_size, bool centered, bool? norm_before_gate) "
    "-> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dresidual, Tensor dz)",
};

using Boxed = void (*)(StableIValue*, uint64_t, uint64_t);

struct Op {
  const char* name;
  Boxed cpu, cuda;
};

#define MAMBA_AOT_OP(name) {#name, TORCH_BOX(&cpu::name), TORCH_BOX(&cuda::name)}

constexpr Op kOps[] = {
    MAMBA_AOT_OP(selective_scan_fwd),
    MAMBA_AOT_OP(selective_scan_bwd),
    MAMBA_AOT_OP(selective_scan_bwd_into),
    MAMBA_AOT_OP(sequence_runs),
    MAMBA_AOT_OP(causal_conv1d_sequences),
    MAMBA_AOT_OP(causal_conv1d_fwd),
    MAMBA_AOT_OP(causal_conv1d_bwd),
    MAMBA_AOT_OP(causal_conv1d_bwd_into),
    MAMBA_AOT_OP(causal_conv1d_update),
    MAMBA_AOT_OP(state_update),
    MAMBA_AOT_OP(mamba1_step),
    MAMBA_AOT_OP(mamba1_sequence),
    MAMBA_AOT_OP(few_rows_linear),
    MAMBA_AOT_OP(argmax_rows),
    MAMBA_AOT_OP(linear_recurrence_fwd),
    MAMBA_AOT_OP(linear_recurrence_bwd),
    MAMBA_AOT_OP(rms_norm_fwd),
    MAMBA_AOT_OP(rms_norm_bwd),
};

#undef MAMBA_AOT_OP

// What the dispatcher reports as the place of registration; __FILE__ would put a build path into the binary.
constexpr const char* kFile = "csrc/library.cpp";

void register_implementations(const char* dispatch_key, Boxed Op::* function) {
  TorchLibraryHandle library = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_library_init_impl("mamba_aot", dispatch_key, kFile, __LINE__, &library));
  for (const Op& op : kOps) {
    TORCH_ERROR_CODE_CHECK(torch_library_impl(library, op.name, op.*function, TORCH_ABI_VERSION));
  }
}

// Registers once per process: a second copy of the library (a wheel beside an editable install) finds the
// namespace taken and leaves it alone. STABLE_TORCH_LIBRARY ignores that error and crashes.
// The handles are never deleted, so nothing depends on the order of static destruction.
bool register_ops() {
  TorchLibraryHandle library = nullptr;
  if (aoti_torch_library_init_def("mamba_aot", kFile, __LINE__, &library) != AOTI_TORCH_SUCCESS) return false;
  for (const char* schema : kSchemas) TORCH_ERROR_CODE_CHECK(aoti_torch_library_def(library, schema));
  register_implementations("CPU", &Op::cpu);
  register_implementations("CUDA", &Op::cuda);
  return true;
}

[[maybe_unused]] const bool registered = register_ops();

}  // namespace
}  // namespace mamba_aot
