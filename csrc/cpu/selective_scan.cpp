// The CPU half of selective_scan: checks, allocates, cuts the work into items and hands them to the kernels.
#include "ops/selective_scan.h"

#include <algorithm>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/selective_scan_plan.h"
#include "cpu/sum_partials.h"
#include "ops/selective_scan_states.h"

namespace mamba_aot::cpu {

MAMBA_AOT_PER_ISA(int64_t, selective_scan_forward,
                  (const ScanPlan& plan, int64_t begin, int64_t end, void* scratch))
MAMBA_AOT_PER_ISA(int64_t, selective_scan_backward,
                  (const ScanPlan& plan, int64_t begin, int64_t end, void* scratch))

namespace {

static_assert(kScanChunk == kChunk, "the saved states are part of the op's contract");

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The sequences of every row of work, on the host.
struct Runs {
  std::vector<ScanRun> runs;
  std::vector<int64_t> first;
};

// Throws unless cu_seqlens starts at 0, does not decrease and ends at the length.
Runs runs_by_ends(const Tensor& cu_seqlens, int64_t length) {
  const char* name = "selective_scan_fn: cu_seqlens must ";
  const int32_t* end = static_cast<const int32_t*>(cu_seqlens.data_ptr());
  const int64_t stride = cu_seqlens.stride(0), count = cu_seqlens.size(0) - 1;
  check(end[0] == 0, name, "start at 0, got ", end[0]);
  Runs found{{}, {0}};
  for (int64_t i = 1; i <= count; ++i) {
    const int32_t from = end[(i - 1) * stride], to = end[i * stride];
    check(to >= from, name, "not decrease, got ", to, " after ", from, " at position ", i);
    check(to <= length, name, "end at the length of u, which is ", length, ", got ", to);
    if (to > from) found.runs.push_back({from, to});
    found.first.push_back(static_cast<int64_t>(found.runs.size()));
  }
  check(end[count * stride] == length, name, "end at the length of u, which is ", length, ", got ",
        end[count * stride]);
  return found;
}

Runs runs_by_index(const Tensor& runs, int64_t batch, int64_t length) {
  const int32_t* ends = static_cast<const int32_t*>(runs.data_ptr()) + batch * length;
  Runs found{{}, {0}};
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t t = 0; t < length;) {
      const int64_t entry = ends[b * length + t], end = entry < 0 ? -entry : entry;
      check(end > t && end <= length, "selective_scan_fn: runs must name ends after their steps, got ", entry,
            " at step ", t);
      if (entry > 0) found.runs.push_back({t, end});
      t = end;
    }
    found.first.push_back(static_cast<int64_t>(found.runs.size()));
  }
  return found;
}

Runs find_runs(const SelectiveScanSizes& s, const OptionalTensor& runs, const OptionalTensor& cu_seqlens) {
  if (cu_seqlens) return runs_by_ends(*cu_seqlens, s.length);
  if (runs) return runs_by_index(*runs, s.batch, s.length);
  Runs found{{}, {0}};
  for (int64_t b = 0; b < s.batch; ++b) {
    if (s.length > 0) found.runs.push_back({0, s.length});
    found.first.push_back(static_cast<int64_t>(found.runs.size()));
  }
  return found;
}

ScanPlan make_plan(const SelectiveScanSizes& s, const Runs& runs, ScalarType state_type, bool softplus,
                   bool zoh) {
  ScanPlan plan{};
  plan.rows = s.rows;
  plan.channels = s.channels;
  plan.length = s.length;
  plan.groups = s.groups;
  plan.state = s.state;
  plan.parts = s.parts();
  plan.head_channels = s.heads > 0 ? s.channels / s.heads : 1;
  plan.softplus = softplus;
  plan.zoh = zoh;
  plan.float64 = state_type == ScalarType::Double;
  plan.runs = runs.runs.data();
  plan.first_run = runs.first.data();
  plan.by_ends = s.packing == Packing::by_ends;
  plan.saved_rows = s.saved_rows();
  // Enough items for many threads, but at least 64 channels each, as one packing of B and C serves them all;
  // and every item keeps its own sums over channels, which should not outgrow the size of u.
  const int64_t channels = s.channels / s.groups;
  const int64_t most =
      std::min(ceil_div(channels, 64), std::max(int64_t{8}, channels / (s.state * s.parts() + 1)));
  const int64_t splits = std::min(most, ceil_div(64, s.rows * s.groups + 1));
  plan.split_channels = channels > 0 ? ceil_div(ceil_div(channels, splits), 16) * 16 : 16;
  plan.splits = channels > 0 ? ceil_div(channels, plan.split_channels) : 0;
  return plan;
}

// Items worth a thread of their own: about 20 microseconds of work.
int64_t item_grain(const ScanPlan& plan) {
  const int64_t length = plan.by_ends ? plan.length / (plan.rows + 1) : plan.length;
  const int64_t work = plan.split_channels * length * plan.state * plan.parts;
  return work > 0 && work < 65536 ? 65536 / work : 1;
}

int64_t item_count(const ScanPlan& plan) { return plan.rows * plan.groups * plan.splits; }

// The arguments both directions share, in the form the plan wants them; keeps converted copies alive.
struct Operands {
  Tensor A;
  OptionalTensor B, C, D, delta_bias;

  Operands(ScanPlan& plan, const SelectiveScanSizes& s, const SelectiveScanInputs& in, ScalarType type)
      : A(to_state_dtype(in.A, type)),
        D(to_state_dtype(in.D, type)),
        delta_bias(to_state_dtype(in.delta_bias, type)) {
    plan.u = view(in.u);
    plan.delta = view(in.delta);
    plan.z = view(in.z);
    plan.gate = view(in.decay_gate);
    plan.A = A.data_ptr();
    if (s.constant_B) {
      B = to_state_dtype(in.B, type);
      plan.constant_B = B->data_ptr();
    } else {
      plan.B = view(in.B);
    }
    if (s.constant_C) {
      C = to_state_dtype(in.C, type);
      plan.constant_C = C->data_ptr();
    } else {
      plan.C = view(in.C);
    }
    plan.D = D ? D->data_ptr() : nullptr;
    plan.delta_bias = delta_bias ? delta_bias->data_ptr() : nullptr;
  }
};

Tensor state_on(const Tensor& u, const SelectiveScanSizes& s, ScalarType type) {
  return s.complex ? empty_on(u, {s.rows, s.channels, s.state, 2}, type)
                   : empty_on(u, {s.rows, s.channels, s.state}, type);
}

// Sums over time, one for each row of work.
Tensor constant_sums(const Tensor& on, const SelectiveScanSizes& s, ScalarType type) {
  return empty_on(on, {s.rows, s.channels, s.state, s.parts()}, type);
}

Tensor gradient_of_constant(const Tensor& sums, const Tensor& input, const SelectiveScanSizes& s) {
  Tensor total = s.complex ? sum_over_items(sums, 1, s.rows, {s.channels, s.state, 2})
                           : sum_over_items(sums, 1, s.rows, {s.channels, s.state});
  return to_input_dtype(total, input);
}

// Padding is not visited.
void zero_if_by_index(Tensor& written, const SelectiveScanSizes& s) {
  if (s.packing == Packing::by_index) torch::stable::zero_(written);
}

}  // namespace

SelectiveScanOutputs selective_scan_fwd(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C,
                                        OptionalTensor D, OptionalTensor z, OptionalTensor delta_bias,
                                        OptionalTensor decay_gate, OptionalTensor initial_state,
                                        OptionalTensor runs, OptionalTensor cu_seqlens, bool delta_softplus,
                                        bool zoh, bool save_states) {
  const SelectiveScanInputs in{u, delta, A, B, C, D, z, delta_bias, decay_gate};
  const SelectiveScanSizes s = check_selective_scan(in, initial_state, runs, cu_seqlens);
  const ScalarType type = state_dtype(type_of(u));
  const Runs found = find_runs(s, runs, cu_seqlens);
  ScanPlan plan = make_plan(s, found, type, delta_softplus, zoh);
  const Operands operands(plan, s, in, type);
  Tensor out = layout_like(u), last_state = state_on(u, s, type);
  zero_if_by_index(out, s);
  fill_state(last_state, initial_state, s);
  Tensor chunk_states = save_states
                            ? empty_on(u, {s.batch, s.saved_rows(), s.state * s.parts(), s.channels}, type)
                            : empty_on(u, {0}, type);
  if (save_states) fill_begun_states(chunk_states, initial_state, s);
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
                                          OptionalTensor runs, OptionalTensor cu_seqlens, Tensor chunk_states,
                                          bool delta_softplus, bool zoh, bool /*from_state*/) {
  const SelectiveScanInputs in{u, delta, A, B, C, D, z, delta_bias, decay_gate};
  const SelectiveScanSizes s =
      check_selective_scan_backward(dout, dlast_state, in, runs, cu_seqlens, chunk_states);
  const ScalarType type = state_dtype(type_of(u));
  const Runs found = find_runs(s, runs, cu_seqlens);
  ScanPlan plan = make_plan(s, found, type, delta_softplus, zoh);
  const Operands operands(plan, s, in, type);
  const int64_t items = plan.groups * plan.splits, parts = s.parts();
  Tensor du = layout_like(u), ddelta = s.heads == s.channels ? layout_like(delta) : layout_like(u, type);
  Tensor dz = z ? layout_like(*z) : absent_on(chunk_states);
  Tensor dinitial = state_on(u, s, type);
  fill_state(dinitial, dlast_state, s);
  const auto along_time = [&](bool constant) {
    return constant ? absent_on(chunk_states)
                    : empty_on(u, {s.batch, s.groups, plan.splits, s.state, s.length, parts}, type);
  };
  Tensor dB = along_time(s.constant_B), dC = along_time(s.constant_C);
  Tensor dgate =
      decay_gate ? empty_on(u, {s.batch, items, s.state, s.length}, type) : absent_on(chunk_states);
  Tensor dA = constant_sums(u, s, type);
  Tensor constant_dB = s.constant_B ? constant_sums(u, s, type) : absent_on(chunk_states);
  Tensor constant_dC = s.constant_C ? constant_sums(u, s, type) : absent_on(chunk_states);
  Tensor dD = D ? empty_on(u, {s.rows, s.channels}, type) : absent_on(chunk_states);
  Tensor dbias = delta_bias ? empty_on(u, {s.rows, s.channels}, type) : absent_on(chunk_states);
  for (Tensor* written : {&du, &ddelta, &dz, &dB, &dC, &dgate}) zero_if_by_index(*written, s);

  plan.dout = view(dout);
  plan.dlast_state = view(dlast_state);
  plan.chunk_states = chunk_states.data_ptr();
  plan.du = view(du);
  plan.ddelta = view(ddelta);
  plan.dz = view(dz);
  plan.dinitial_state = view(dinitial);
  plan.dB = s.constant_B ? nullptr : dB.data_ptr();
  plan.dC = s.constant_C ? nullptr : dC.data_ptr();
  plan.dgate = decay_gate ? dgate.data_ptr() : nullptr;
  plan.dA = dA.data_ptr();
  plan.constant_dB = s.constant_B ? constant_dB.data_ptr() : nullptr;
  plan.constant_dC = s.constant_C ? constant_dC.data_ptr() : nullptr;
  plan.dD = D ? dD.data_ptr() : nullptr;
  plan.ddelta_bias = delta_bias ? dbias.data_ptr() : nullptr;
  run_items(plan, item_count(plan), item_grain(plan), pick_selective_scan_backward(plan.float64));

  const auto matrix = [&](const Tensor& sums, const Tensor& input) {
    const int64_t outer = s.batch * s.groups;
    Tensor total = s.complex
                       ? sum_over_items(sums, outer, plan.splits, {s.batch, s.groups, s.state, s.length, 2})
                       : sum_over_items(sums, outer, plan.splits, {s.batch, s.groups, s.state, s.length});
    return to_input_dtype(total, input);
  };
  if (decay_gate)
    dgate = to_input_dtype(sum_over_items(dgate, s.batch, items, {s.batch, s.state, s.length}), *decay_gate);
  if (D) dD = to_input_dtype(sum_over_items(dD, 1, s.rows, {s.channels}), *D);
  if (delta_bias) dbias = to_input_dtype(sum_over_items(dbias, 1, s.rows, {s.channels}), *delta_bias);
  return {du,
          gradient_of_heads(ddelta, delta, s),
          gradient_of_constant(dA, A, s),
          s.constant_B ? gradient_of_constant(constant_dB, B, s) : matrix(dB, B),
          s.constant_C ? gradient_of_constant(constant_dC, C, s) : matrix(dC, C),
          dD,
          dz,
          dbias,
          dgate,
          dinitial};
}

SelectiveScanOtherGradients selective_scan_bwd_into(Tensor dout, OptionalTensor dlast_state, Tensor u,
                                                    Tensor delta, Tensor A, Tensor B, Tensor C,
                                                    OptionalTensor D, Tensor z, OptionalTensor delta_bias,
                                                    OptionalTensor decay_gate, OptionalTensor runs,
                                                    OptionalTensor cu_seqlens, Tensor chunk_states,
                                                    bool delta_softplus, bool zoh, Tensor ddelta, Tensor dz) {
  const SelectiveScanInputs in{u, delta, A, B, C, D, z, delta_bias, decay_gate};
  check_selective_scan_backward(dout, dlast_state, in, runs, cu_seqlens, chunk_states);
  check_selective_scan_gradients_out(dout, in, ddelta, dz);
  const auto all = selective_scan_bwd(dout, dlast_state, u, delta, A, B, C, D, z, delta_bias, decay_gate,
                                      runs, cu_seqlens, chunk_states, delta_softplus, zoh, true);
  torch::stable::copy_(ddelta, std::get<1>(all));
  torch::stable::copy_(dz, std::get<6>(all));
  return others(all);
}

}  // namespace mamba_aot::cpu
