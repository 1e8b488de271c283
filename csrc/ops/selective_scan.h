// selective_scan: what its arguments must be, and the two implementations of it.
#pragma once

#include "ops/check.h"

namespace mamba_aot {

// States are saved at the start of every chunk of this many steps.
inline constexpr int64_t kChunk = 64;

struct SelectiveScanSizes {
  int64_t batch, channels, length, groups, state;
  // A, B, C and the states are complex: pairs of reals in a last dimension of 2.
  bool complex;

  int64_t parts() const { return complex ? 2 : 1; }
  int64_t chunks() const { return (length + kChunk - 1) / kChunk; }
  bool empty() const { return batch == 0 || channels == 0 || length == 0; }
};

namespace detail {

inline void check_scan_matrix(const char* name, const Tensor& t, const Tensor& u,
                              const SelectiveScanSizes& s) {
  const char* fn = "selective_scan_fn";
  const int64_t rank = s.complex ? 5 : 4;
  check(t.dim() == rank, fn, ": ", name, " must be ", s.complex ? "complex" : "real",
        " like A, and [batch, state, length] or [batch, groups, state, length]; got ", complex_shape(t, 4));
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

inline void check_scan_vector(const char* name, const OptionalTensor& t, const Tensor& u, int64_t channels) {
  if (!t) return;
  Arg{"selective_scan_fn", name, *t}.on_device_of(u, "u").is_float().has_shape("[channels]", {channels});
}

inline void check_scan_like_u(const char* name, const Tensor& t, const Tensor& u,
                              const SelectiveScanSizes& s) {
  Arg arg{"selective_scan_fn", name, t};
  arg.on_device_of(u, "u").has_shape("[batch, channels, length]", {s.batch, s.channels, s.length});
  arg.has_dtype(u.scalar_type(), "like u");
}

inline void check_scan_state(const char* name, const Tensor& t, const Tensor& u,
                             const SelectiveScanSizes& s) {
  Arg arg{"selective_scan_fn", name, t, s.complex};
  arg.on_device_of(u, "u");
  if (s.complex) {
    arg.has_shape("[batch, channels, state]", {s.batch, s.channels, s.state, 2});
  } else {
    arg.has_shape("[batch, channels, state]", {s.batch, s.channels, s.state});
  }
  arg.has_dtype(state_dtype(u.scalar_type()),
                s.complex ? "pairs (the state's dtype)" : "(the state's dtype)");
}

}  // namespace detail

// Checks every argument of the forward op and returns the sizes. Throws std::invalid_argument.
inline SelectiveScanSizes check_selective_scan(const Tensor& u, const Tensor& delta, const Tensor& A,
                                               const Tensor& B, const Tensor& C, const OptionalTensor& D,
                                               const OptionalTensor& z, const OptionalTensor& delta_bias,
                                               const OptionalTensor& decay_gate,
                                               const OptionalTensor& initial_state) {
  const char* fn = "selective_scan_fn";
  Arg{fn, "u", u}.has_rank("[batch, channels, length]", 3).is_data_dtype();
  check(A.dim() == 2 || A.dim() == 3, fn, ": A must be [channels, state] (real or complex), got ", shape(A));
  SelectiveScanSizes s{u.size(0), u.size(1), u.size(2), 1, A.size(1), A.dim() == 3};
  Arg a{fn, "A", A, s.complex};
  a.on_device_of(u, "u").is_float();
  if (s.complex) {
    a.has_shape("[channels, state]", {s.channels, s.state, 2});
  } else {
    a.has_shape("[channels, state]", {s.channels, s.state});
  }
  detail::check_scan_like_u("delta", delta, u, s);
  detail::check_scan_matrix("B", B, u, s);
  detail::check_scan_matrix("C", C, u, s);
  s.groups = B.size(1);
  check(C.size(1) == s.groups, fn, ": C must have as many groups as B, which is ", s.groups, ", got ",
        C.size(1));
  if (z) detail::check_scan_like_u("z", *z, u, s);
  detail::check_scan_vector("D", D, u, s.channels);
  detail::check_scan_vector("delta_bias", delta_bias, u, s.channels);
  if (decay_gate) {
    Arg gate{fn, "decay_gate", *decay_gate};
    gate.on_device_of(u, "u").is_float();
    gate.has_shape("[batch, state, length]", {s.batch, s.state, s.length});
  }
  if (initial_state) detail::check_scan_state("initial_state", *initial_state, u, s);
  return s;
}

// Checks every argument of the backward op and returns the sizes. Throws std::invalid_argument.
inline SelectiveScanSizes check_selective_scan_backward(
    const Tensor& dout, const OptionalTensor& dlast_state, const Tensor& u, const Tensor& delta,
    const Tensor& A, const Tensor& B, const Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
    const OptionalTensor& delta_bias, const OptionalTensor& decay_gate, const Tensor& chunk_states) {
  SelectiveScanSizes s = check_selective_scan(u, delta, A, B, C, D, z, delta_bias, decay_gate, std::nullopt);
  detail::check_scan_like_u("dout", dout, u, s);
  if (dlast_state) detail::check_scan_state("dlast_state", *dlast_state, u, s);
  Arg states{"selective_scan_fn", "chunk_states", chunk_states};
  states.on_device_of(u, "u").has_dtype(state_dtype(u.scalar_type()), "(the state's dtype)");
  states.has_shape("[batch, chunks, state parts, channels]",
                   {s.batch, s.chunks(), s.state * s.parts(), s.channels});
  check(chunk_states.is_contiguous(), "selective_scan_fn: chunk_states must be contiguous as the forward op ",
        "made it (run it with save_states)");
  return s;
}

using SelectiveScanOutputs = std::tuple<Tensor, Tensor, Tensor>;
using SelectiveScanGradients =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Both namespaces implement the two schemas of library.cpp, argument for argument.
namespace cpu {
SelectiveScanOutputs selective_scan_fwd(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C,
                                        OptionalTensor D, OptionalTensor z, OptionalTensor delta_bias,
                                        OptionalTensor decay_gate, OptionalTensor initial_state,
                                        bool delta_softplus, bool zoh, bool save_states);
SelectiveScanGradients selective_scan_bwd(Tensor dout, OptionalTensor dlast_state, Tensor u, Tensor delta,
                                          Tensor A, Tensor B, Tensor C, OptionalTensor D, OptionalTensor z,
                                          OptionalTensor delta_bias, OptionalTensor decay_gate,
                                          Tensor chunk_states, bool delta_softplus, bool zoh);
}  // namespace cpu

namespace cuda {
SelectiveScanOutputs selective_scan_fwd(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C,
                                        OptionalTensor D, OptionalTensor z, OptionalTensor delta_bias,
                                        OptionalTensor decay_gate, OptionalTensor initial_state,
                                        bool delta_softplus, bool zoh, bool save_states);
SelectiveScanGradients selective_scan_bwd(Tensor dout, OptionalTensor dlast_state, Tensor u, Tensor delta,
                                          Tensor A, Tensor B, Tensor C, OptionalTensor D, OptionalTensor z,
                                          OptionalTensor delta_bias, OptionalTensor decay_gate,
                                          Tensor chunk_states, bool delta_softplus, bool zoh);
}  // namespace cuda

}  // namespace mamba_aot
