// The CPU half of selective_scan: checks, allocates, cuts the work into items and hands them to the kernels.
#include "ops/selective_scan.h"

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/selective_scan_plan.h"
#include "cpu/sum_partials.h"

namespace mamba_aot::cpu {

MAMBA_AOT_PER_ISA(int64_t, selective_scan_forward,
                  (const ScanPlan& plan, int64_t begin, int64_t end, void* scratch))
MAMBA_AOT_PER_ISA(int64_t, selective_scan_backward,
                  (const ScanPlan& plan, int64_t begin, int64_t end, void* scratch))

namespace {

static_assert(kScanChunk == kChunk, "the saved states are part of the op's contract");

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

ScanPlan make_plan(const SelectiveScanSizes& s, ScalarType state_type, bool softplus, bool zoh) {
  ScanPlan plan{};
  plan.batch = s.batch;
  plan.channels = s.channels;
  plan.length = s.length;
  plan.groups = s.groups;
  plan.state = s.state;
  plan.parts = s.parts();
  plan.softplus = softplus;
  plan.zoh = zoh;
  plan.float64 = state_type == ScalarType::Double;
  // Enough items for many threads, but at least 64 channels each, as one packing of B and C serves them all;
  // and every item keeps its own sums over channels, which should not outgrow the size of u.
  const int64_t channels = s.channels / s.groups;
  const int64_t most =
      std::min(ceil_div(channels, 64), std::max(int64_t{8}, channels / (s.state * s.parts() + 1)));
  const int64_t splits = std::min(most, ceil_div(64, s.batch * s.groups + 1));
  plan.split_channels = channels > 0 ? ceil_div(ceil_div(channels, splits), 16) * 16 : 16;
  plan.splits = channels > 0 ? ceil_div(channels, plan.split_channels) : 0;
  return plan;
}

// Items worth a thread of their own: about 20 microseconds of work.
int64_t item_grain(const ScanPlan& plan) {
  const int64_t work = plan.split_channels * plan.length * plan.state * plan.parts;
  return work > 0 && work < 65536 ? 65536 / work : 1;
}

int64_t item_count(const ScanPlan& plan) { return plan.batch * plan.groups * plan.splits; }

// The arguments both directions share, in the form the plan wants them; keeps converted copies alive.
struct Inputs {
  Tensor A;
  OptionalTensor D, delta_bias;

  Inputs(ScanPlan& plan, const Tensor& u, const Tensor& delta, const Tensor& A_in, const Tensor& B,
         const Tensor& C, const OptionalTensor& D_in, const OptionalTensor& z, const OptionalTensor& bias_in,
         const OptionalTensor& decay_gate, ScalarType type)
      : A(to_state_dtype(A_in, type)),
        D(to_state_dtype(D_in, type)),
        delta_bias(to_state_dtype(bias_in, type)) {
    plan.u = view(u);
    plan.delta = view(delta);
    plan.z = view(z);
    plan.B = view(B);
    plan.C = view(C);
    plan.gate = view(decay_gate);
    plan.A = A.data_ptr();
    plan.D = D ? D->data_ptr() : nullptr;
    plan.delta_bias = delta_bias ? delta_bias->data_ptr() : nullptr;
  }
};

Tensor empty_state(const Tensor& u, const SelectiveScanSizes& s, ScalarType type) {
  return s.complex ? empty_on(u, {s.batch, s.channels, s.state, 2}, type)
                   : empty_on(u, {s.batch, s.channels, s.state}, type);
}

}  // namespace

SelectiveScanOutputs selective_scan_fwd(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C,
                                        OptionalTensor D, OptionalTensor z, OptionalTensor delta_bias,
                                        OptionalTensor decay_gate, OptionalTensor initial_state,
                                        bool delta_softplus, bool zoh, bool save_states) {
  const SelectiveScanSizes s =
      check_selective_scan(u, delta, A, B, C, D, z, delta_bias, decay_gate, initial_state);
  const ScalarType type = state_dtype(u.scalar_type());
  ScanPlan plan = make_plan(s, type, delta_softplus, zoh);
  const Inputs inputs(plan, u, delta, A, B, C, D, z, delta_bias, decay_gate, type);
  Tensor out = layout_like(u), last_state = empty_state(u, s, type);
  Tensor chunk_states = save_states
                            ? empty_on(u, {s.batch, s.chunks(), s.state * s.parts(), s.channels}, type)
                            : empty_on(u, {0}, type);
  plan.out = view(out);
  plan.initial_state = view(initial_state);
  plan.last_state = view(last_state);
  plan.chunk_states = save_states ? chunk_states.data_ptr() : nullptr;
  run_items(plan, item_count(plan), item_grain(plan), pick_selective_scan_forward(plan.float64));
  return {out, last_state, chunk_states};
}

SelectiveScanGradients selective_scan_bwd(Tensor dout, OptionalTensor dlast_state, Tensor u, Tensor delta,
                                          Tensor A, Tensor B, Tensor C, OptionalTensor D, OptionalTensor z,
                                          OptionalTensor delta_bias, OptionalTensor decay_gate,
                                          Tensor chunk_states, bool delta_softplus, bool zoh) {
  const SelectiveScanSizes s = check_selective_scan_backward(dout, dlast_state, u, delta, A, B, C, D, z,
                                                             delta_bias, decay_gate, chunk_states);
  const ScalarType type = state_dtype(u.scalar_type());
  ScanPlan plan = make_plan(s, type, delta_softplus, zoh);
  const Inputs inputs(plan, u, delta, A, B, C, D, z, delta_bias, decay_gate, type);
  const int64_t items = plan.groups * plan.splits, parts = s.parts();
  Tensor du = layout_like(u), ddelta = layout_like(delta);
  Tensor dz = z ? layout_like(*z) : absent_on(u);
  Tensor dinitial = empty_state(u, s, type);
  Tensor dB = empty_on(u, {s.batch, s.groups, plan.splits, s.state, s.length, parts}, type);
  Tensor dC = empty_on(u, {s.batch, s.groups, plan.splits, s.state, s.length, parts}, type);
  Tensor dgate = decay_gate ? empty_on(u, {s.batch, items, s.state, s.length}, type) : absent_on(u);
  Tensor dA = empty_on(u, {s.batch, s.channels, s.state, parts}, type);
  Tensor dD = D ? empty_on(u, {s.batch, s.channels}, type) : absent_on(u);
  Tensor dbias = delta_bias ? empty_on(u, {s.batch, s.channels}, type) : absent_on(u);

  plan.dout = view(dout);
  plan.dlast_state = view(dlast_state);
  plan.chunk_states = chunk_states.data_ptr();
  plan.du = view(du);
  plan.ddelta = view(ddelta);
  plan.dz = view(dz);
  plan.dinitial_state = view(dinitial);
  plan.dB = dB.data_ptr();
  plan.dC = dC.data_ptr();
  plan.dgate = dgate.data_ptr();
  plan.dA = dA.data_ptr();
  plan.dD = D ? dD.data_ptr() : nullptr;
  plan.ddelta_bias = delta_bias ? dbias.data_ptr() : nullptr;
  run_items(plan, item_count(plan), item_grain(plan), pick_selective_scan_backward(plan.float64));

  const int64_t sequences = s.batch * s.groups;
  dB = s.complex ? sum_over_items(dB, sequences, plan.splits, {s.batch, s.groups, s.state, s.length, 2})
                 : sum_over_items(dB, sequences, plan.splits, {s.batch, s.groups, s.state, s.length});
  dC = s.complex ? sum_over_items(dC, sequences, plan.splits, {s.batch, s.groups, s.state, s.length, 2})
                 : sum_over_items(dC, sequences, plan.splits, {s.batch, s.groups, s.state, s.length});
  dA = s.complex ? sum_over_items(dA, 1, s.batch, {s.channels, s.state, 2})
                 : sum_over_items(dA, 1, s.batch, {s.channels, s.state});
  if (decay_gate)
    dgate = to_input_dtype(sum_over_items(dgate, s.batch, items, {s.batch, s.state, s.length}), *decay_gate);
  if (D) dD = to_input_dtype(sum_over_items(dD, 1, s.batch, {s.channels}), *D);
  if (delta_bias) dbias = to_input_dtype(sum_over_items(dbias, 1, s.batch, {s.channels}), *delta_bias);
  return {du,    ddelta,  to_input_dtype(dA, A), to_input_dtype(dB, B), to_input_dtype(dC, C), dD, dz, dbias,
          dgate, dinitial};
}

}  // namespace mamba_aot::cpu
