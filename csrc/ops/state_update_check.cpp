// What state_update checks of its arguments, on every device.
#include "ops/state_update.h"

namespace mamba_aot {
namespace detail {
namespace {

constexpr const char* kStateUpdate = "selective_state_update";

void check_update_shape(const Arg& arg, const char* letters, const StateUpdateSizes& s) {
  std::array<int64_t, 6> want{};
  int64_t rank = 0;
  each_dim(letters, s, [&](Dim, const char*, int64_t size) { want[static_cast<size_t>(rank++)] = size; });
  const Tensor& t = arg.tensor;
  const auto got = t.sizes();
  if (static_cast<int64_t>(got.size()) == rank && std::equal(got.begin(), got.end(), want.begin())) return;
  // The parts of a complex number are not what the user wrote.
  const int64_t parts = arg.complex ? 1 : 0;
  std::ostringstream names;
  const char* separator = "";
  each_dim(letters, s, [&](Dim dim, const char* name, int64_t) {
    if (dim == Dim::part) return;
    names << separator << name;
    separator = ", ";
  });
  fail(arg.fn, ": ", arg.name, " must be ", parts ? "complex " : "", "[", names.str(),
       "] = ", Shape{want.data(), rank - parts}, ", got ",
       Shape{got.data(), t.dim() == rank ? t.dim() - parts : t.dim()});
}

// What A says of states and weights; complex ones come as pairs.
void check_update_kind(const Arg& arg, const StateUpdateSizes& s) {
  check(s.complex || !is_complex_dtype(type_of(arg.tensor)), kStateUpdate, ": ", arg.name,
        " must be real because A is, got ", dtype(arg.tensor));
}

int64_t groups_of(const Tensor& weight, const StateUpdateSizes& s) {
  return has_groups(weight, s) ? weight.size(s.has_steps ? 2 : 1) : 1;
}

void check_update_weight(const char* name, const Tensor& t, const Tensor& x, const StateUpdateSizes& s) {
  Arg arg{kStateUpdate, name, t, s.complex};
  check_update_kind(arg, s);
  arg.on_device_of(x, "x").is_float();
  const int64_t rank = 2 + s.has_steps, parts = s.complex ? 1 : 0;
  check(t.dim() == rank + parts || has_groups(t, s), kStateUpdate, ": ", name, " must be ",
        s.has_steps ? "[batch, steps, state] or [batch, steps, groups, state]"
                    : "[batch, state] or [batch, groups, state]",
        ", got ", Shape{t.sizes().data(), t.dim() - parts});
  StateUpdateSizes own = s;
  own.groups = groups_of(t, s);
  check_update_shape(arg, has_groups(t, s) ? kWeight : kOneWeight, own);
  check(own.groups > 0 && s.heads % own.groups == 0, kStateUpdate, ": ", name,
        " must have a number of groups that divides the ", s.heads, s.has_heads ? " heads" : " channels",
        " of x, got ", own.groups);
}

Arg check_update_sequence(const char* name, const Tensor& t, const Tensor& x, const StateUpdateSizes& s) {
  Arg arg{kStateUpdate, name, t};
  arg.on_device_of(x, "x");
  check_update_shape(arg, kData, s);
  return arg;
}

void check_update_vector(const char* name, const OptionalTensor& t, const Tensor& x,
                         const StateUpdateSizes& s) {
  if (!t) return;
  Arg arg{kStateUpdate, name, *t};
  arg.on_device_of(x, "x").is_float();
  check_update_shape(arg, kVector, s);
}

void check_update_rows(const char* name, const OptionalTensor& t, const Tensor& x, const StateUpdateSizes& s,
                       const char* meaning) {
  if (!t) return;
  Arg arg{kStateUpdate, name, *t};
  arg.on_device_of(x, "x").has_shape("[batch]", {s.batch}).has_dtype(ScalarType::Int, meaning);
}

// A result that the caller gives is memory of its own: kernels read their arguments while they write it.
void check_update_apart(const char* name, const Tensor& result, const StateUpdateTensors& t) {
  const auto apart = [&](const char* other_name, const Tensor* other) {
    if (other) Arg{kStateUpdate, name, result}.shares_no_memory_with(*other, other_name);
  };
  const auto given = [](const OptionalTensor& tensor) { return tensor ? &*tensor : nullptr; };
  apart("state", &t.state);
  apart("x", &t.x);
  apart("dt", &t.dt);
  apart("A", &t.A);
  apart("B", &t.B);
  apart("C", &t.C);
  apart("D", given(t.D));
  apart("z", given(t.z));
  apart("dt_bias", given(t.dt_bias));
  apart("decay_gate", given(t.decay_gate));
}

void check_update_results(const StateUpdateTensors& t, const StateUpdateSizes& s) {
  if (t.out) {
    check_update_sequence("out", *t.out, t.x, s).has_dtype(type_of(t.x), "like x").is_writable();
    check_update_apart("out", *t.out, t);
  }
  if (!t.intermediate_states) return;
  Arg arg{kStateUpdate, "intermediate_states", *t.intermediate_states, s.complex};
  check_update_kind(arg, s);
  arg.on_device_of(t.x, "x");
  check_update_shape(arg, kIntermediate, s);
  arg.has_dtype(type_of(t.state), "like state").is_writable();
  check_update_apart("intermediate_states", *t.intermediate_states, t);
  if (t.out) arg.shares_no_memory_with(*t.out, "out");
}

}  // namespace
}  // namespace detail

StateUpdateSizes check_state_update(const StateUpdateTensors& t, bool is_complex) {
  const char* fn = detail::kStateUpdate;
  const Tensor &state = t.state, &x = t.x, &A = t.A;
  const int64_t parts = is_complex ? 1 : 0, rank = state.dim() - parts;
  check(rank == 3 || rank == 4, fn,
        ": state must be [slots, channels, state] or [slots, heads, dim, state], got ", shape(state));
  StateUpdateSizes s{};
  s.complex = is_complex;
  s.has_heads = rank == 4;
  const int64_t plain = s.has_heads ? 3 : 2;
  s.has_steps = x.dim() == plain + 1;
  Arg{fn, "x", x}.is_data_dtype();
  check(x.dim() == plain || s.has_steps, fn, ": x must be ",
        s.has_heads ? "[batch, heads, dim] or [batch, steps, heads, dim], as state has heads"
                    : "[batch, channels] or [batch, steps, channels], as state has no heads",
        ", got ", shape(x));
  check(A.dim() == plain + parts, fn, ": A must be ",
        s.has_heads ? "[heads, dim, state], as state has heads" : "[channels, state]", ", got ", shape(A));
  s.batch = x.size(0);
  s.steps = s.has_steps ? x.size(1) : 1;
  s.heads = x.size(s.has_steps ? 2 : 1);
  s.dim = s.has_heads ? x.size(x.dim() - 1) : 1;
  s.state = A.size(plain - 1);
  s.slots = state.size(0);
  Arg rates{fn, "A", A, s.complex};
  rates.on_device_of(x, "x").is_float();
  detail::check_update_shape(rates, detail::kRates, s);
  Arg held{fn, "state", state, s.complex};
  detail::check_update_kind(held, s);
  held.on_device_of(x, "x");
  detail::check_update_shape(held, detail::kState, s);
  if (s.complex) {
    held.has_dtype(state_dtype(type_of(x)), "pairs (complex64, or complex128 if x is float64)");
  } else {
    held.is_data_dtype();
  }
  check((type_of(state) == ScalarType::Double) == (type_of(x) == ScalarType::Double), fn,
        ": state must be float64 exactly if x is, got ", dtype(state), " with x ", dtype(x));
  held.is_writable();
  detail::check_update_sequence("dt", t.dt, x, s).is_data_dtype_beside(x, "x");
  detail::check_update_weight("B", t.B, x, s);
  detail::check_update_weight("C", t.C, x, s);
  s.groups = detail::groups_of(t.B, s);
  const int64_t groups_of_C = detail::groups_of(t.C, s);
  check(groups_of_C == s.groups, fn, ": C must have as many groups as B, which is ", s.groups, ", got ",
        groups_of_C);
  detail::check_update_vector("D", t.D, x, s);
  if (t.z) detail::check_update_sequence("z", *t.z, x, s).is_data_dtype_beside(x, "x");
  held.shares_no_memory_with(x, "x").shares_no_memory_with(t.dt, "dt");
  if (t.z) held.shares_no_memory_with(*t.z, "z");
  detail::check_update_vector("dt_bias", t.dt_bias, x, s);
  if (t.decay_gate) {
    Arg gate{fn, "decay_gate", *t.decay_gate};
    gate.on_device_of(x, "x").is_float();
    detail::check_update_shape(gate, detail::kGate, s);
  }
  detail::check_update_rows("state_batch_indices", t.state_batch_indices, x, s, "(one slot per sequence)");
  detail::check_update_rows("dst_state_batch_indices", t.dst_state_batch_indices, x, s,
                            "(one slot per sequence)");
  detail::check_update_rows("accepted_steps", t.accepted_steps, x, s, "(a number of steps per sequence)");
  check(t.state_batch_indices || s.slots == s.batch, fn,
        ": state must have one slot per sequence of x, which is ", s.batch,
        ", when state_batch_indices is None, got ", s.slots);
  detail::check_update_results(t, s);
  return s;
}

}  // namespace mamba_aot
