// state_update (one step of selective_scan): what its arguments must be, and the two implementations of it.
#pragma once

#include "ops/check.h"

namespace mamba_aot {

struct StateUpdateSizes {
  int64_t batch, channels, groups, state, slots;
  // A, B, C and the state are complex: pairs of reals in a last dimension of 2.
  bool complex;

  bool empty() const { return batch == 0 || channels == 0; }
};

namespace detail {

inline void check_update_matrix(const char* name, const Tensor& t, const Tensor& x,
                                const StateUpdateSizes& s) {
  const char* fn = "selective_state_update";
  const int64_t rank = s.complex ? 4 : 3;
  check(t.dim() == rank, fn, ": ", name, " must be ", s.complex ? "complex" : "real",
        " like A, and [batch, state] or [batch, groups, state]; got ", complex_shape(t, 3));
  const bool one_group = t.size(1) == 1;
  const char* dims = one_group ? "[batch, state]" : "[batch, groups, state]";
  Arg arg{fn, name, t, s.complex, one_group ? 1 : -1};
  arg.on_device_of(x, "x").is_float();
  if (s.complex) {
    arg.has_shape(dims, {s.batch, t.size(1), s.state, 2});
  } else {
    arg.has_shape(dims, {s.batch, t.size(1), s.state});
  }
  check(t.size(1) > 0 && s.channels % t.size(1) == 0, fn, ": ", name,
        " must have a number of groups that divides the ", s.channels, " channels of x, got ", t.size(1));
}

inline void check_update_like_x(const char* name, const Tensor& t, const Tensor& x,
                                const StateUpdateSizes& s) {
  Arg arg{"selective_state_update", name, t};
  arg.on_device_of(x, "x").has_shape("[batch, channels]", {s.batch, s.channels});
  arg.has_dtype(x.scalar_type(), "like x");
}

inline void check_update_vector(const char* name, const OptionalTensor& t, const Tensor& x,
                                int64_t channels) {
  if (!t) return;
  Arg{"selective_state_update", name, *t}.on_device_of(x, "x").is_float().has_shape("[channels]", {channels});
}

}  // namespace detail

// Checks every argument and returns the sizes. Throws std::invalid_argument.
inline StateUpdateSizes check_state_update(const Tensor& state, const Tensor& x, const Tensor& dt,
                                           const Tensor& A, const Tensor& B, const Tensor& C,
                                           const OptionalTensor& D, const OptionalTensor& z,
                                           const OptionalTensor& dt_bias, const OptionalTensor& decay_gate,
                                           const OptionalTensor& state_batch_indices) {
  const char* fn = "selective_state_update";
  Arg{fn, "x", x}.has_rank("[batch, channels]", 2).is_data_dtype();
  check(A.dim() == 2 || A.dim() == 3, fn, ": A must be [channels, state] (real or complex), got ", shape(A));
  StateUpdateSizes s{x.size(0), x.size(1), 1, A.size(1), 0, A.dim() == 3};
  Arg a{fn, "A", A, s.complex};
  a.on_device_of(x, "x").is_float();
  if (s.complex) {
    a.has_shape("[channels, state]", {s.channels, s.state, 2});
  } else {
    a.has_shape("[channels, state]", {s.channels, s.state});
  }
  check(state.dim() == A.dim() + 1, fn, ": state must be ", s.complex ? "complex" : "real",
        " like A, and [slots, channels, state]; got ", complex_shape(state, 3));
  s.slots = state.size(0);
  Arg held{fn, "state", state, s.complex};
  held.on_device_of(x, "x");
  if (s.complex) {
    held.has_shape("[slots, channels, state]", {s.slots, s.channels, s.state, 2});
    held.has_dtype(state_dtype(x.scalar_type()), "pairs (complex64, or complex128 if x is float64)");
  } else {
    held.has_shape("[slots, channels, state]", {s.slots, s.channels, s.state});
    held.is_data_dtype();
  }
  check((state.scalar_type() == ScalarType::Double) == (x.scalar_type() == ScalarType::Double), fn,
        ": state must be float64 exactly if x is, got ", dtype(state), " with x ", dtype(x));
  held.is_writable();
  detail::check_update_like_x("dt", dt, x, s);
  detail::check_update_matrix("B", B, x, s);
  detail::check_update_matrix("C", C, x, s);
  s.groups = B.size(1);
  check(C.size(1) == s.groups, fn, ": C must have as many groups as B, which is ", s.groups, ", got ",
        C.size(1));
  detail::check_update_vector("D", D, x, s.channels);
  if (z) detail::check_update_like_x("z", *z, x, s);
  detail::check_update_vector("dt_bias", dt_bias, x, s.channels);
  if (decay_gate) {
    Arg gate{fn, "decay_gate", *decay_gate};
    gate.on_device_of(x, "x").is_float().has_shape("[batch, state]", {s.batch, s.state});
  }
  if (state_batch_indices) {
    Arg indices{fn, "state_batch_indices", *state_batch_indices};
    indices.on_device_of(x, "x").has_shape("[batch]", {s.batch});
    indices.has_dtype(ScalarType::Int, "(one slot per sequence)");
  } else {
    check(s.slots == s.batch, fn, ": state must have one slot per sequence of x, which is ", s.batch,
          ", when state_batch_indices is None, got ", s.slots);
  }
  return s;
}

// Both namespaces implement the schema of library.cpp, argument for argument.
namespace cpu {
Tensor state_update(Tensor state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, OptionalTensor D,
                    OptionalTensor z, OptionalTensor dt_bias, OptionalTensor decay_gate,
                    OptionalTensor state_batch_indices, bool dt_softplus, bool zoh);
}  // namespace cpu

namespace cuda {
Tensor state_update(Tensor state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, OptionalTensor D,
                    OptionalTensor z, OptionalTensor dt_bias, OptionalTensor decay_gate,
                    OptionalTensor state_batch_indices, bool dt_softplus, bool zoh);
}  // namespace cuda

}  // namespace mamba_aot
