// What selective_scan checks of its arguments, on every device.
#include "ops/selective_scan.h"

namespace mamba_aot {
namespace detail {
namespace {

void check_scan_matrix(const char* name, const Tensor& t, const Tensor& u, const SelectiveScanSizes& s) {
  const char* fn = "selective_scan_fn";
  if (is_constant(t, s)) {
    Arg arg{fn, name, t, s.complex};
    arg.on_device_of(u, "u").is_float();
    if (s.complex) return (void)arg.has_shape("[channels, state]", {s.channels, s.state, 2});
    return (void)arg.has_shape("[channels, state]", {s.channels, s.state});
  }
  const int64_t rank = s.complex ? 5 : 4;
  check(t.dim() == rank, fn, ": ", name, " must be ", s.complex ? "complex" : "real",
        " like A, and [batch, state, length], [batch, groups, state, length] or [channels, state]; got ",
        complex_shape(t, 4));
  const bool one_group = t.size(1) == 1;
  const char* dims = one_group ? "[batch, state, length]" : "[batch, groups, state, length]";
  Arg arg{fn, name, t, s.complex, one_group ? 1 : -1};
  arg.on_device_of(u, "u").is_float();
  if (s.complex) {
    arg.has_shape(dims, {s.batch, t.size(1), s.state, s.length, 2});
  } else {
    arg.has_shape(dims, {s.batch, t.size(1), s.state, s.length});
  }
  check(t.size(1) > 0 && s.channels % t.size(1) == 0, fn, ": ", name,
        " must have a number of groups that divides the ", s.channels, " channels of u, got ", t.size(1));
}

void check_scan_vector(const char* name, const OptionalTensor& t, const Tensor& u, int64_t channels) {
  if (!t) return;
  Arg{"selective_scan_fn", name, *t}.on_device_of(u, "u").is_float().has_shape("[channels]", {channels});
}

Arg check_scan_sequence(const char* name, const Tensor& t, const Tensor& u, const SelectiveScanSizes& s) {
  Arg arg{"selective_scan_fn", name, t};
  arg.on_device_of(u, "u").has_shape("[batch, channels, length]", {s.batch, s.channels, s.length});
  return arg;
}

void check_scan_state(const char* name, const Tensor& t, const Tensor& u, const SelectiveScanSizes& s) {
  Arg arg{"selective_scan_fn", name, t, s.complex};
  arg.on_device_of(u, "u");
  const char* dims =
      s.packing == Packing::by_ends ? "[sequences, channels, state]" : "[batch, channels, state]";
  if (s.complex) {
    arg.has_shape(dims, {s.rows, s.channels, s.state, 2});
  } else {
    arg.has_shape(dims, {s.rows, s.channels, s.state});
  }
  arg.has_dtype(state_dtype(type_of(u)), s.complex ? "pairs (the state's dtype)" : "(the state's dtype)");
}

void check_scan_delta(const Tensor& delta, const Tensor& u, SelectiveScanSizes& s) {
  s.heads = s.channels;
  if (delta.dim() == 3 && delta.size(1) > 0 && delta.size(1) < s.channels &&
      s.channels % delta.size(1) == 0) {
    s.heads = delta.size(1);
  }
  Arg arg{"selective_scan_fn", "delta", delta};
  arg.on_device_of(u, "u").has_shape(
      s.heads == s.channels ? "[batch, channels, length]" : "[batch, heads, length]",
      {s.batch, s.heads, s.length});
  arg.is_data_dtype_beside(u, "u");
}

// `runs`, int32 [2, batch, length], says of each step where its run of steps with one index starts, and where
// that ends; of padding, -1 - start and -end. The values of cu_seqlens are left to who can read them.
void check_scan_packing(const OptionalTensor& runs, const OptionalTensor& cu_seqlens, const Tensor& u,
                        SelectiveScanSizes& s) {
  const char* fn = "selective_scan_fn";
  s.rows = s.batch;
  check(!runs || !cu_seqlens, fn, ": seq_idx must be None when cu_seqlens is given, got both. Pass one of ",
        "them.");
  if (runs) {
    s.packing = Packing::by_index;
    Arg arg{fn, "runs", *runs};
    arg.on_device_of(u, "u").has_shape("[2, batch, length]", {2, s.batch, s.length});
    arg.has_dtype(ScalarType::Int, "(as selective_scan_fn makes it)");
    check(runs->is_contiguous(), fn, ": runs must be contiguous. Pass runs.contiguous().");
  } else if (cu_seqlens) {
    s.packing = Packing::by_ends;
    Arg ends{fn, "cu_seqlens", *cu_seqlens};
    ends.on_device_of(u, "u").has_dtype(ScalarType::Int, "(where each sequence ends, from 0 on)");
    ends.has_rank("[sequences + 1]", 1);
    check(cu_seqlens->size(0) > 0, fn, ": cu_seqlens must be [sequences + 1], so hold at least the 0 it ",
          "starts with, got ", shape(*cu_seqlens));
    check(s.batch == 1, fn, ": u must be [1, channels, total length] when cu_seqlens is given, got ",
          shape(u), ". Join the sequences along the length.");
    s.rows = cu_seqlens->size(0) - 1;
  }
  check(!s.packed() || s.length < INT32_MAX - 128, fn,
        ": packed sequences must be shorter than 2^31 - 128 steps together, got ", s.length);
}

}  // namespace
}  // namespace detail

SelectiveScanSizes check_selective_scan(const SelectiveScanInputs& in, const OptionalTensor& initial_state,
                                        const OptionalTensor& runs, const OptionalTensor& cu_seqlens) {
  const char* fn = "selective_scan_fn";
  const Tensor &u = in.u, &A = in.A;
  Arg{fn, "u", u}.has_rank("[batch, channels, length]", 3).is_data_dtype();
  check(A.dim() == 2 || A.dim() == 3, fn, ": A must be [channels, state] (real or complex), got ", shape(A));
  SelectiveScanSizes s{u.size(0), u.size(1), u.size(2), 1, A.size(1), A.dim() == 3, u.size(1)};
  Arg a{fn, "A", A, s.complex};
  a.on_device_of(u, "u").is_float();
  if (s.complex) {
    a.has_shape("[channels, state]", {s.channels, s.state, 2});
  } else {
    a.has_shape("[channels, state]", {s.channels, s.state});
  }
  detail::check_scan_packing(runs, cu_seqlens, u, s);
  detail::check_scan_delta(in.delta, u, s);
  detail::check_scan_matrix("B", in.B, u, s);
  detail::check_scan_matrix("C", in.C, u, s);
  s.constant_B = detail::is_constant(in.B, s);
  s.constant_C = detail::is_constant(in.C, s);
  if (!s.constant_B || !s.constant_C) s.groups = s.constant_B ? in.C.size(1) : in.B.size(1);
  check(s.constant_C || in.C.size(1) == s.groups, fn, ": C must have as many groups as B, which is ",
        s.groups, ", got ", s.constant_C ? 0 : in.C.size(1));
  if (in.z) detail::check_scan_sequence("z", *in.z, u, s).is_data_dtype_beside(u, "u");
  detail::check_scan_vector("D", in.D, u, s.channels);
  detail::check_scan_vector("delta_bias", in.delta_bias, u, s.channels);
  if (in.decay_gate) {
    Arg gate{fn, "decay_gate", *in.decay_gate};
    gate.on_device_of(u, "u").is_float();
    gate.has_shape("[batch, state, length]", {s.batch, s.state, s.length});
  }
  if (initial_state) detail::check_scan_state("initial_state", *initial_state, u, s);
  return s;
}

SelectiveScanSizes check_selective_scan_backward(const Tensor& dout, const OptionalTensor& dlast_state,
                                                 const SelectiveScanInputs& in, const OptionalTensor& runs,
                                                 const OptionalTensor& cu_seqlens,
                                                 const Tensor& chunk_states) {
  SelectiveScanSizes s = check_selective_scan(in, std::nullopt, runs, cu_seqlens);
  detail::check_scan_sequence("dout", dout, in.u, s).has_dtype(type_of(in.u), "like u");
  if (dlast_state) detail::check_scan_state("dlast_state", *dlast_state, in.u, s);
  Arg states{"selective_scan_fn", "chunk_states", chunk_states};
  states.on_device_of(in.u, "u").has_dtype(state_dtype(type_of(in.u)), "(the state's dtype)");
  states.has_shape("[batch, chunks, state parts, channels]",
                   {s.batch, s.saved_rows(), s.state * s.parts(), s.channels});
  check(chunk_states.is_contiguous(), "selective_scan_fn: chunk_states must be contiguous as the forward op ",
        "made it (run it with save_states)");
  return s;
}

void check_selective_scan_gradients_out(const Tensor& dout, const SelectiveScanInputs& in,
                                        const Tensor& ddelta, const Tensor& dz) {
  const char* fn = "selective_scan_fn";
  const Tensor& z = *in.z;
  check(in.delta.size(1) == in.u.size(1), fn,
        ": delta must have a row for each channel where its gradient is ", "written in place, got ",
        shape(in.delta));
  check_gradient_out(fn, "ddelta", ddelta, "delta", in.delta, {&dout, &in.u, &in.delta, &z});
  check_gradient_out(fn, "dz", dz, "z", z, {&dout, &in.u, &in.delta, &z});
}

}  // namespace mamba_aot
