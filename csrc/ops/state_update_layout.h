// The forms that the arguments of state_update take, and how both halves step through them.
//
// A kernel sees heads of channels, each head in one group. Channels without heads are one head per group, and
// so are heads that lie behind each other in every argument.
#pragma once

#include <initializer_list>

#include "ops/check.h"

namespace mamba_aot {

struct StateUpdateSizes {
  int64_t batch, steps, heads, dim, groups, state, slots;
  // A, B, C and the states are complex: pairs of reals in a last dimension of 2.
  bool complex;
  // Whether state is [slots, heads, dim, state], and x has a dimension of steps. Without heads `heads` is the
  // number of channels and `dim` is 1.
  bool has_heads, has_steps;

  bool empty() const { return batch == 0 || steps == 0 || heads == 0 || dim == 0; }
};

// Element strides of one argument; 0 along what it does not have.
struct StateUpdateStrides {
  int64_t batch = 0, step = 0, head = 0, channel = 0, group = 0, n = 0, part = 0;
};

namespace detail {

// The shape of an argument, a letter for each dimension: k slots, b batch, s steps if x has them, t steps, c
// channels (heads and dim if state has them), g groups, n state, p the parts of a complex number.
constexpr const char* kData = "bsc";
constexpr const char* kState = "kcnp";
constexpr const char* kIntermediate = "btcnp";
constexpr const char* kRates = "cnp";
constexpr const char* kWeight = "bsgnp";
constexpr const char* kOneWeight = "bsnp";
constexpr const char* kVector = "c";
constexpr const char* kGate = "bsn";

enum class Dim { batch, step, head, channel, group, n, part };

// Calls visit(dim, name, size) for every dimension that `letters` stand for.
template <class Visit>
void each_dim(const char* letters, const StateUpdateSizes& s, Visit visit) {
  for (; *letters; ++letters) {
    switch (*letters) {
      case 'k':
        visit(Dim::batch, "slots", s.slots);
        break;
      case 'b':
        visit(Dim::batch, "batch", s.batch);
        break;
      case 's':
        if (s.has_steps) visit(Dim::step, "steps", s.steps);
        break;
      case 't':
        visit(Dim::step, "steps", s.steps);
        break;
      case 'c':
        visit(Dim::head, s.has_heads ? "heads" : "channels", s.heads);
        if (s.has_heads) visit(Dim::channel, "dim", s.dim);
        break;
      case 'g':
        visit(Dim::group, "groups", s.groups);
        break;
      case 'n':
        visit(Dim::n, "state", s.state);
        break;
      default:
        if (s.complex) visit(Dim::part, "parts", int64_t{2});
    }
  }
}

// Strides of `t`, which has the shape of `letters`.
inline StateUpdateStrides strides_of(const Tensor& t, const char* letters, const StateUpdateSizes& s) {
  StateUpdateStrides strides;
  int64_t i = 0;
  each_dim(letters, s, [&](Dim dim, const char*, int64_t) {
    const int64_t stride = t.stride(i++);
    switch (dim) {
      case Dim::batch:
        strides.batch = stride;
        break;
      case Dim::step:
        strides.step = stride;
        break;
      case Dim::head:
        strides.head = stride;
        break;
      case Dim::channel:
        strides.channel = stride;
        break;
      case Dim::group:
        strides.group = stride;
        break;
      case Dim::n:
        strides.n = stride;
        break;
      case Dim::part:
        strides.part = stride;
        break;
    }
  });
  // A dimension of one element is never stepped along, so its stride may be what suits join_heads().
  if (s.dim == 1) strides.channel = strides.head;
  if (s.heads == 1) strides.head = s.dim * strides.channel;
  return strides;
}

inline StateUpdateStrides strides_of(const OptionalTensor& t, const char* letters,
                                     const StateUpdateSizes& s) {
  return t ? strides_of(*t, letters, s) : StateUpdateStrides{};
}

// Whether B or C has a dimension of groups; without it there is one.
inline bool has_groups(const Tensor& weight, const StateUpdateSizes& s) {
  return weight.dim() == 3 + s.has_steps + s.complex;
}

inline StateUpdateStrides strides_of_weight(const Tensor& weight, const StateUpdateSizes& s) {
  return strides_of(weight, has_groups(weight, s) ? kWeight : kOneWeight, s);
}

// Makes one head of all heads of a group if they lie behind each other in every one of `arguments`.
inline void join_heads(StateUpdateSizes& s, std::initializer_list<StateUpdateStrides*> arguments) {
  for (const StateUpdateStrides* strides : arguments) {
    if (strides->head != s.dim * strides->channel) return;
  }
  s.dim *= s.heads / s.groups;
  s.heads = s.groups;
  for (StateUpdateStrides* strides : arguments) strides->head = s.dim * strides->channel;
}

}  // namespace detail

// An uninitialised output: x's shape and dtype, contiguous.
inline Tensor empty_like_x(const Tensor& x) {
  const int64_t* n = x.sizes().data();
  if (x.dim() == 2) return empty_on(x, {n[0], n[1]}, type_of(x));
  if (x.dim() == 3) return empty_on(x, {n[0], n[1], n[2]}, type_of(x));
  return empty_on(x, {n[0], n[1], n[2], n[3]}, type_of(x));
}

}  // namespace mamba_aot
