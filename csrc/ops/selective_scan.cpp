// selective_scan on CUDA: check, allocate, pick a variant, launch. The kernels are
// csrc/kernels/selective_scan.py.
#include "ops/selective_scan.h"

#include <algorithm>

#include "generated/selective_scan.gen.h"
#include "ops/launch_arguments.h"
#include "ops/selective_scan_operands.h"
#include "ops/selective_scan_passes.h"
#include "ops/selective_scan_spans.h"
#include "ops/selective_scan_specialized.h"
#include "ops/selective_scan_states.h"
#include "ops/selective_scan_sums.h"
#include "ops/sequence_runs.h"

namespace mamba_aot::cuda {
namespace {

using generated::SelectiveScanBwd;
using generated::SelectiveScanFwd;
using generated::SelectiveScanPlainBwd;
using generated::SelectiveScanPlainFwd;

Tensor state_on(const Tensor& u, const SelectiveScanSizes& s) {
  return s.complex ? empty_on(u, {s.rows, s.channels, s.state, 2}, ScalarType::Float)
                   : empty_on(u, {s.rows, s.channels, s.state}, ScalarType::Float);
}

void check_limits(const SelectiveScanSizes& s) {
  constexpr int64_t kLimit = INT32_MAX - kRowMultiple;
  check(s.length < kLimit && s.channels < kLimit && s.state < kLimit,
        "selective_scan_fn: on CUDA each of channels, state and length must be below 2^31 - 128, got ",
        s.channels, ", ", s.state, " and ", s.length,
        ". Split the sequence and carry the state with initial_state.");
}

}  // namespace

SelectiveScanOutputs selective_scan_fwd(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C,
                                        OptionalTensor D, OptionalTensor z, OptionalTensor delta_bias,
                                        OptionalTensor decay_gate, OptionalTensor initial_state,
                                        OptionalTensor runs, OptionalTensor cu_seqlens, bool delta_softplus,
                                        bool zoh, bool save_states) {
  const SelectiveScanInputs in{u, delta, A, B, C, D, z, delta_bias, decay_gate};
  const SelectiveScanSizes s = check_selective_scan(in, initial_state, runs, cu_seqlens);
  if (!of_one_dtype(u, delta, z)) {
    auto wide =
        selective_scan_fwd(in_float32(u), in_float32(delta), A, B, C, D, in_float32(z), delta_bias,
                           decay_gate, initial_state, runs, cu_seqlens, delta_softplus, zoh, save_states);
    std::get<0>(wide) = sequence_like(u, std::get<0>(wide));
    return wide;
  }
  check_limits(s);
  Tensor out = layout_like(u), last_state = state_on(u, s);
  if (s.empty() || s.packed() || s.state == 0) fill_state(last_state, initial_state, s);
  const int64_t state_parts = s.state * s.parts();
  Tensor chunk_states =
      save_states ? empty_on(u, {s.batch, s.saved_rows(), state_parts, s.channels}, ScalarType::Float)
                  : empty_on(u, {0}, ScalarType::Float);
  const OptionalTensor state = to_state_dtype(initial_state, ScalarType::Float);
  if (save_states) fill_begun_states(chunk_states, state, s);
  if (s.empty()) {
    torch::stable::zero_(out);
    return {out, last_state, chunk_states};
  }

  const Strides os(out);
  const auto plan = specialized::plan_of(s, in, os, flags_of(s, in, delta_softplus, zoh));
  const Operands with(s, in, runs, cu_seqlens, delta_softplus, zoh, plan && plan->config->PAIRED);
  const auto put_results = [&](auto& args) {
    args.out = pointer(out);
    args.initial_state = pointer(state);
    args.last_state = pointer(last_state);
    args.chunk_states = pointer(chunk_states);
    os.put(args.out_batch, args.out_channel, args.out_time);
    args.flags = with.flags | (state ? kHasState : 0) | (save_states ? kSaveChunks : 0);
  };
  if (plan) {
    specialized::Forward::Args args{};
    put_sequences(args, s, in, with);
    args.B = with.weights.B();
    args.C = with.weights.C();
    put_results(args);
    const int64_t blocks = s.groups * ceil_div(s.channels / s.groups, plan->config->CHANNELS);
    specialized::Forward::launch(plan->key, *plan->config, u.get_device_index(), s.batch * blocks, args);
    return {out, last_state, chunk_states};
  }
  const bool rows = in_rows(s, {Strides(u), Strides(delta), Strides(z), os});
  const bool general = with.general || s.state <= kFewStates;
  using Layout = SelectiveScanPlainFwd::Layout;
  SelectiveScanPlainFwd::Key plain_key{storage_of(u), rows ? Layout::seq : Layout::strided, s.complex, true,
                                       s.packed()};
  const int32_t device = u.get_device_index();
  const Spans spans = general ? Spans{1, 0} : forward_spans(s, plain_key, device);
  Tensor carry = empty_on(u, {spans.count * s.rows, state_parts, s.channels}, ScalarType::Float);
  // A program takes some channels of a group, of one row of work.
  const auto launch = [&](auto kernel, const auto& key, auto& args, int64_t work) {
    using Kernel = decltype(kernel);
    const auto& config =
        Kernel::pick(key, {spans.count * rows_to_choose_by(s), s.channels, s.length, device});
    put_common(args, s, in, with);
    put_results(args);
    args.carry = pointer(carry);
    const int64_t blocks = s.groups * ceil_div(s.channels / s.groups, config.CHANNELS);
    Kernel::launch(key, config, device, work * blocks, args);
  };
  if (general) {
    SelectiveScanFwd::Args args{};
    put_general(args, s, with, with.ends);
    const SelectiveScanFwd::Key key{storage_of(u), s.complex};
    launch(SelectiveScanFwd{}, key, args, s.rows);
  } else {
    OptionalTensor span_ends, span_times, span_gates;
    if (spans.count > 1) {
      span_ends = empty_on(u, {spans.count - 1, s.rows, state_parts, s.channels}, ScalarType::Float);
      span_times = empty_on(u, {spans.count - 1, s.rows, s.channels}, ScalarType::Float);
      if (with.gate) span_gates = empty_on(u, {spans.count - 1, s.rows, s.state}, ScalarType::Float);
    }
    SelectiveScanPlainFwd::Args args{};
    args.span_ends = pointer(span_ends);
    args.span_times = pointer(span_times);
    args.span_gates = pointer(span_gates);
    args.spans = static_cast<int32_t>(spans.count);
    args.span_steps = static_cast<int32_t>(spans.steps);
    args.runs = with.sequences_or(with.starts);
    if (spans.count > 1) launch(SelectiveScanPlainFwd{}, plain_key, args, (spans.count - 1) * s.rows);
    plain_key.ENDS = false;
    launch(SelectiveScanPlainFwd{}, plain_key, args, spans.count * s.rows);
  }
  // What sequences by ends leave out, if the values are wrong, is padding.
  if (with.sequences) zero_outside(out, *with.sequences, s);
  return {out, last_state, chunk_states};
}

namespace {

// Both ops: the gradients of delta and z go into what is given for them, or into tensors like delta and z.
SelectiveScanGradients backward(const Tensor& dout, const OptionalTensor& dlast_state, const Tensor& u,
                                const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
                                const OptionalTensor& D, const OptionalTensor& z,
                                const OptionalTensor& delta_bias, const OptionalTensor& decay_gate,
                                const OptionalTensor& runs, const OptionalTensor& cu_seqlens,
                                const Tensor& chunk_states, bool delta_softplus, bool zoh, bool from_state,
                                const OptionalTensor& ddelta_out, const OptionalTensor& dz_out) {
  const SelectiveScanInputs in{u, delta, A, B, C, D, z, delta_bias, decay_gate};
  const SelectiveScanSizes s =
      check_selective_scan_backward(dout, dlast_state, in, runs, cu_seqlens, chunk_states);
  if (dz_out) check_selective_scan_gradients_out(dout, in, *ddelta_out, *dz_out);
  // The gradient of a head is a sum over its channels, which half precision would round one by one.
  const bool rounds_channels = s.heads != s.channels && type_of(u) != ScalarType::Float;
  if (rounds_channels || !of_one_dtype(u, delta, z)) {
    auto wide = backward(in_float32(dout), dlast_state, in_float32(u), in_float32(delta), A, B, C, D,
                         in_float32(z), delta_bias, decay_gate, runs, cu_seqlens, chunk_states,
                         delta_softplus, zoh, from_state, std::nullopt, std::nullopt);
    std::get<0>(wide) = sequence_like(u, std::get<0>(wide));
    if (dz_out) {
      Tensor own_delta = *ddelta_out, own_z = *dz_out;
      torch::stable::copy_(own_delta, std::get<1>(wide));
      torch::stable::copy_(own_z, std::get<6>(wide));
      return wide;
    }
    std::get<1>(wide) = sequence_like(delta, std::get<1>(wide));
    if (z) std::get<6>(wide) = sequence_like(*z, std::get<6>(wide));
    return wide;
  }
  check_limits(s);
  // Of packed sequences the states that few of them save are the general forward's.
  const bool plain =
      !is_general(s, in, flags_of(s, in, delta_softplus, zoh)) && (!s.packed() || s.state > kFewStates);
  if (plain && !from_state && !dlast_state && walks_as_row(s, in)) {
    const Tensor ends = torch::stable::contiguous(*cu_seqlens);
    // The states that sequences begin with are all zero: a row saves one.
    Tensor all_states = chunk_states;
    const Tensor states = torch::stable::narrow(all_states, 1, 0, s.chunks() + 1);
    SelectiveScanGradients gradients =
        backward(dout, std::nullopt, u, delta, A, inside_alone(B, ends, s), inside_alone(C, ends, s), D, z,
                 delta_bias, decay_gate, sequence_runs_by_ends(ends, s.length), std::nullopt, states,
                 delta_softplus, zoh, false, ddelta_out, dz_out);
    std::get<9>(gradients) = state_on(u, s);
    torch::stable::zero_(std::get<9>(gradients));
    return gradients;
  }
  constexpr ScalarType kFloat = ScalarType::Float;
  Tensor du = layout_like(u);
  Tensor ddelta = ddelta_out ? *ddelta_out : layout_like(s.heads == s.channels ? delta : u);
  Tensor dz = dz_out ? *dz_out : z ? layout_like(*z) : absent_on(chunk_states);
  Tensor dinitial_state = state_on(u, s);
  const Operands with(s, in, runs, cu_seqlens, delta_softplus, zoh);
  const Strides gs(dout), dus(du), dds(ddelta), dzs(z ? OptionalTensor(dz) : std::nullopt);
  const std::initializer_list<Strides> sequences = {gs,  Strides(u), Strides(delta), Strides(z), dus,
                                                    dds, dzs};
  const bool rows = in_rows(s, sequences);
  using Layout = SelectiveScanPlainBwd::Layout;
  const int32_t device = u.get_device_index();
  SelectiveScanPlainBwd::Key plain_key{storage_of(u), rows ? Layout::seq : Layout::strided, s.complex,
                                       s.packed(), true};
  plain_key.APART =
      plain && type_of(u) != ScalarType::Float && has_room(runtime::arch_of(device)) &&
      SelectiveScanPlainBwd::is_for(plain_key, SelectiveScanPlainBwd::pick(plain_key, {}), device);
  const auto specialized_key = plain ? specialized::backward_key_of(s, in, sequences) : std::nullopt;
  const SelectiveScanBwd::Key key{storage_of(u), s.complex};
  const int64_t block_channels =
      plain ? SelectiveScanPlainBwd::pick(plain_key, {}).CHANNELS : SelectiveScanBwd::pick(key, {}).CHANNELS;
  const int64_t blocks_per_group = ceil_div(s.channels / s.groups, block_channels);
  const int64_t blocks = s.groups * blocks_per_group;
  const int64_t most_chunks = chunks_in_a_launch(s, u, blocks, with.gate.has_value());
  const Launches time = plain && !s.empty() ? backward_launches(s, most_chunks, blocks, device)
                                            : Launches{most_chunks, most_chunks};
  const int64_t spans = time.spans(), state_parts = s.state * s.parts();
  const bool sparse = s.packed() && !plain;
  // By ends the programs that have steps, in the order of time, each take the next sequence or the next span.
  const bool in_steps = plain && s.packing == Packing::by_ends;
  const SumRows sum_rows{sparse, in_steps,
                         sparse ? ceil_div(s.chunks(), time.chunks) : time.parts(s.chunks())};
  RowSums dA(s, with.A, sum_rows, state_parts, s.channels);
  // Blocks are whole in these rows, also where a group's channels end inside one.
  RowSums dD(s, with.A, sum_rows, s.groups, blocks_per_group * block_channels);
  RowSums dbias(s, with.A, sum_rows, s.groups, blocks_per_group * block_channels);
  RowSums constant_dB(s, with.A, sum_rows, state_parts, s.channels, s.constant_B);
  RowSums constant_dC(s, with.A, sum_rows, state_parts, s.channels, s.constant_C);
  const bool variable = !s.constant_B || !s.constant_C;
  const int64_t weight_rows = variable ? state_parts : 0, gate_rows = with.gate ? s.state : 0;
  Tensor whole_dA = empty_gradient_of(A), whole_dB = empty_gradient_of(B), whole_dC = empty_gradient_of(C);
  const auto gradient_if = [](const OptionalTensor& input) {
    return input ? OptionalTensor(empty_gradient_of(*input)) : std::nullopt;
  };
  OptionalTensor whole_dD = gradient_if(D), whole_dbias = gradient_if(delta_bias);
  OptionalTensor dgate = gradient_if(decay_gate);

  if (s.empty()) {
    for (Tensor* written : {&du, &ddelta, &dz, &whole_dA, &whole_dB, &whole_dC})
      torch::stable::zero_(*written);
    for (OptionalTensor* written : {&whole_dD, &whole_dbias, &dgate}) {
      if (*written) torch::stable::zero_(**written);
    }
    fill_state(dinitial_state, dlast_state, s);
  } else {
    // One buffer for all launches, or with spans one for each, two launches' by turns: the first span's holds
    // what the launch passes on. Channels lie last in the kernel's carry, first in a state.
    const bool split = spans > 1;
    Tensor carry = empty_on(u, {split ? 2 * spans : 1, s.rows, state_parts, s.channels}, kFloat);
    const auto first_of = [&](int64_t launch) { return split ? launch % 2 * spans : 0; };
    const auto carry_of = [&](int64_t launch) { return torch::stable::select(carry, 0, first_of(launch)); };
    const auto carry_at = [&](int64_t launch) {
      return static_cast<float*>(carry.data_ptr()) + first_of(launch) * carry.stride(0);
    };
    const auto adjoint_of = [&](int64_t launch) { return torch::stable::transpose(carry_of(launch), 1, 2); };
    OptionalTensor span_ends, span_times, span_gates;
    if (split) {
      // Of two pieces each span at most; see pieces_of_spans().
      const int64_t pieces = specialized_key ? 2 * spans : spans;
      span_ends = empty_on(u, {pieces, s.rows, state_parts, s.channels}, kFloat);
      span_times = empty_on(u, {pieces, s.rows, s.channels}, kFloat);
      if (with.gate) span_gates = empty_on(u, {pieces, s.rows, s.state, s.channels}, kFloat);
    }
    if (dlast_state) {
      const Tensor last = torch::stable::contiguous(*dlast_state);
      Tensor adjoint = adjoint_of(1);
      torch::stable::copy_(adjoint, by_channel(last, s));
    } else if (s.packed()) {
      torch::stable::zero_(carry);
    }
    const int64_t partial_length = time.chunks * kChunk;
    Tensor dBC_planes =
        empty_on(u, {blocks_per_group, 2, s.batch, s.groups, weight_rows, partial_length}, kFloat);
    OptionalTensor dgate_planes;
    if (with.gate) dgate_planes = empty_on(u, {blocks, s.batch, gate_rows, partial_length}, kFloat);

    float* planes = static_cast<float*>(dBC_planes.data_ptr());
    int32_t flags = with.flags | (dlast_state || s.packed() ? kHasState : 0);
    int64_t launch = 0, part = 0;
    // What both kernels take of a launch of chunks [begin, end).
    const auto put = [&](auto& args, int64_t begin, int64_t end, int64_t parts_here) {
      put_sequences(args, s, in, with);
      args.B = with.weights.B();
      args.C = with.weights.C();
      args.dout = pointer(dout);
      args.chunk_states = pointer(chunk_states);
      args.du = pointer(du);
      args.ddelta = pointer(ddelta);
      args.dz = pointer(dz);
      args.partial_length = partial_length;
      gs.put(args.dout_batch, args.dout_channel, args.dout_time);
      dus.put(args.du_batch, args.du_channel, args.du_time);
      dds.put(args.ddelta_batch, args.ddelta_channel, args.ddelta_time);
      dzs.put(args.dz_batch, args.dz_channel, args.dz_time);
      args.dA = dA.start(part, parts_here);
      args.dD = dD.start(part, parts_here);
      args.ddelta_bias = dbias.start(part, parts_here);
      args.dB = s.constant_B ? constant_dB.start(part, parts_here) : planes;
      args.dC = s.constant_C ? constant_dC.start(part, parts_here) : planes + dBC_planes.stride(1);
      args.chunk_begin = static_cast<int32_t>(begin);
      args.chunk_end = static_cast<int32_t>(end);
      args.carry = carry_at(launch);
      args.flags = flags;
    };
    for (int64_t end = s.chunks(); end > 0; ++launch) {
      const int64_t begin = std::max<int64_t>(0, end - time.chunks);
      const int64_t parts_here = split ? ceil_div(end - begin, time.span) : 1;
      const int64_t programs = parts_here * s.rows * blocks;
      if (plain) {
        SelectiveScanPlainBwd::Args args{};
        put(args, begin, end, parts_here);
        args.gate = pointer(with.gate);
        args.dgate = pointer(dgate_planes);
        args.flags |= (split ? kSpans : 0) | (fills_gpu(programs, device) ? kNextFillsGpu : 0);
        args.spans = static_cast<int32_t>(parts_here);
        args.span_ends = pointer(span_ends);
        args.span_times = pointer(span_times);
        args.span_gates = pointer(span_gates);
        args.incoming = carry_at(launch + 1);
        args.runs = with.sequences_or(with.starts);
        if (split && s.packing == Packing::by_ends) {
          // The adjoints of sequences without a step in this launch wait for the next one.
          Tensor waiting = carry_of(launch);
          torch::stable::copy_(waiting, carry_of(launch + 1));
        }
        const int32_t pieces =
            specialized_key ? pieces_of_spans(s, blocks, end - begin, time.span, device) : 1;
        if (parts_here > 1) launch_adjoint(args, s, u, rows, pieces);
        if (specialized_key) {
          using Kernel = specialized::Backward;
          Kernel::Args own{};
          put(own, begin, end, parts_here);
          own.flags = args.flags;
          own.spans = args.spans;
          own.pieces = pieces;
          own.span_ends = args.span_ends;
          own.span_times = args.span_times;
          own.incoming = args.incoming;
          Kernel::launch(*specialized_key, Kernel::pick(*specialized_key, {}), device, programs, own);
        } else {
          SelectiveScanPlainBwd::launch(plain_key, SelectiveScanPlainBwd::pick(plain_key, {}), device,
                                        programs, args);
        }
      } else {
        SelectiveScanBwd::Args args{};
        put(args, begin, end, parts_here);
        args.gate = pointer(with.gate);
        args.dgate = pointer(dgate_planes);
        put_general(args, s, with, with.starts);
        SelectiveScanBwd::launch(key, SelectiveScanBwd::pick(key, {}), device, programs, args);
      }
      for (RowSums* of : {&dA, &dD, &dbias, &constant_dB, &constant_dC}) of->finish(part);
      flags |= kHasState;
      part += parts_here;
      if (variable) {
        add_planes(dBC_planes, s.constant_B ? std::nullopt : OptionalTensor(whole_dB),
                   s.constant_C ? std::nullopt : OptionalTensor(whole_dC), s.batch * s.groups * state_parts,
                   s.parts(), s, begin, end);
      }
      if (with.gate) add_planes(*dgate_planes, dgate, std::nullopt, s.batch * s.state, 1, s, begin, end);
      end = begin;
    }
    Totals totals(s, dA, whole_dA);
    totals.add_channels(dD, whole_dD, dbias, whole_dbias, blocks_per_group * block_channels);
    totals.add_states(carry_at(launch - 1), dinitial_state);
    totals.launch();
    if (s.constant_B) Totals(s, constant_dB, whole_dB).launch();
    if (s.constant_C) Totals(s, constant_dC, whole_dC).launch();
    if (with.sequences) {
      for (const Tensor* written : {&du, &ddelta, &dz}) zero_outside(*written, *with.sequences, s);
      if (!s.constant_B) zero_rows_outside(whole_dB, s.parts(), *with.sequences, s);
      if (!s.constant_C) zero_rows_outside(whole_dC, s.parts(), *with.sequences, s);
      if (dgate) zero_rows_outside(*dgate, 1, *with.sequences, s);
    }
  }

  const auto like = [&](const OptionalTensor& gradient, const OptionalTensor& input) {
    return gradient ? to_input_dtype(*gradient, *input) : absent_on(chunk_states);
  };
  return {du,
          gradient_of_heads(ddelta, delta, s),
          to_input_dtype(whole_dA, A),
          to_input_dtype(whole_dB, B),
          to_input_dtype(whole_dC, C),
          like(whole_dD, D),
          dz,
          like(whole_dbias, delta_bias),
          like(dgate, decay_gate),
          dinitial_state};
}

}  // namespace

SelectiveScanGradients selective_scan_bwd(Tensor dout, OptionalTensor dlast_state, Tensor u, Tensor delta,
                                          Tensor A, Tensor B, Tensor C, OptionalTensor D, OptionalTensor z,
                                          OptionalTensor delta_bias, OptionalTensor decay_gate,
                                          OptionalTensor runs, OptionalTensor cu_seqlens, Tensor chunk_states,
                                          bool delta_softplus, bool zoh, bool from_state) {
  return backward(dout, dlast_state, u, delta, A, B, C, D, z, delta_bias, decay_gate, runs, cu_seqlens,
                  chunk_states, delta_softplus, zoh, from_state, std::nullopt, std::nullopt);
}

SelectiveScanOtherGradients selective_scan_bwd_into(Tensor dout, OptionalTensor dlast_state, Tensor u,
                                                    Tensor delta, Tensor A, Tensor B, Tensor C,
                                                    OptionalTensor D, Tensor z, OptionalTensor delta_bias,
                                                    OptionalTensor decay_gate, OptionalTensor runs,
                                                    OptionalTensor cu_seqlens, Tensor chunk_states,
                                                    bool delta_softplus, bool zoh, Tensor ddelta, Tensor dz) {
  return others(backward(dout, dlast_state, u, delta, A, B, C, D, z, delta_bias, decay_gate, runs, cu_seqlens,
                         chunk_states, delta_softplus, zoh, true, ddelta, dz));
}

}  // namespace mamba_aot::cuda
