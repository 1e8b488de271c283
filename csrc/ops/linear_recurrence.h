// linear_recurrence: what its arguments must be, how its rows lie in memory, and the two implementations of
// it.
#pragma once

#include <algorithm>
#include <vector>

#include "ops/check.h"

namespace mamba_aot {

// For float16 and bfloat16, states are saved at the start of every chunk of this many steps.
inline constexpr int64_t kRecurrenceChunk = 64;

struct LinearRecurrenceSizes {
  // The leading dimensions; one recurrence runs in each of their `rows` elements.
  std::vector<int64_t> lead;
  int64_t rows, length;
  // Numbers are pairs of reals in a last dimension of 2.
  bool complex;

  int64_t parts() const { return complex ? 2 : 1; }
  int64_t chunks() const { return (length + kRecurrenceChunk - 1) / kRecurrenceChunk; }
  bool empty() const { return rows == 0 || length == 0; }

  // `first` (unless negative), the leading dimensions, `last` (unless negative), and the 2 of a complex
  // number.
  std::vector<int64_t> shape(int64_t first, int64_t last) const {
    std::vector<int64_t> sizes;
    if (first >= 0) sizes.push_back(first);
    sizes.insert(sizes.end(), lead.begin(), lead.end());
    if (last >= 0) sizes.push_back(last);
    if (complex) sizes.push_back(2);
    return sizes;
  }
};

namespace detail {

inline Shape shown(const std::vector<int64_t>& sizes, bool complex) {
  return {sizes.data(), static_cast<int64_t>(sizes.size()) - (complex ? 1 : 0)};
}

inline void check_recurrence_argument(const char* name, const Tensor& t, const Tensor& b, const char* dims,
                                      const std::vector<int64_t>& want, bool complex) {
  const char* fn = "linear_recurrence";
  Arg{fn, name, t}.on_device_of(b, "b");
  const auto got = t.sizes();
  check(got.size() == want.size() && std::equal(want.begin(), want.end(), got.begin()), fn, ": ", name,
        " must be ", dims, " = ", shown(want, complex), " beside b, got ",
        complex ? complex_shape(t, static_cast<int64_t>(want.size()) - 1) : shape(t));
}

inline void check_recurrence_sequence(const char* name, const Tensor& t, const Tensor& b,
                                      const LinearRecurrenceSizes& s) {
  check_recurrence_argument(name, t, b, "[..., length]", s.shape(-1, s.length), s.complex);
  Arg{"linear_recurrence", name, t}.has_dtype(b.scalar_type(), s.complex ? "pairs like b" : "like b");
  check(!s.complex || t.stride(t.dim() - 1) == 1, "linear_recurrence: ", name,
        " must hold its real and imaginary parts side by side (stride 1), got stride ", t.stride(t.dim() - 1),
        ". Pass a complex tensor.");
}

inline void check_recurrence_state(const char* name, const Tensor& t, const Tensor& b,
                                   const LinearRecurrenceSizes& s) {
  check_recurrence_argument(name, t, b, "[...], the leading dimensions", s.shape(-1, -1), s.complex);
  Arg{"linear_recurrence", name, t}.has_dtype(
      state_dtype(b.scalar_type()), s.complex ? "pairs (the state's dtype)" : "(the state's dtype)");
}

inline bool is_half(const Tensor& t) {
  return t.scalar_type() == ScalarType::Half || t.scalar_type() == ScalarType::BFloat16;
}

}  // namespace detail

// Checks every argument of the forward op and returns the sizes. Throws std::invalid_argument.
inline LinearRecurrenceSizes check_linear_recurrence(const Tensor& a, const Tensor& b,
                                                     const OptionalTensor& initial_state, bool complex,
                                                     bool save_states) {
  const char* fn = "linear_recurrence";
  const int64_t lead = b.dim() - (complex ? 2 : 1);
  check(lead >= 0 && (!complex || b.size(b.dim() - 1) == 2), fn,
        ": b must be [..., length] with at least one dimension, got ",
        complex ? complex_shape(b, b.dim() - 1) : shape(b));
  Arg{fn, "b", b}.is_data_dtype();
  check(!complex || !detail::is_half(b), fn,
        ": b must be complex64 or (on the CPU) complex128, got pairs of ", dtype(b),
        ". Convert it with .to(torch.complex64).");
  LinearRecurrenceSizes s{{}, 1, b.size(lead), complex};
  for (int64_t i = 0; i < lead; ++i) {
    s.lead.push_back(b.size(i));
    s.rows *= b.size(i);
  }
  detail::check_recurrence_sequence("b", b, b, s);
  detail::check_recurrence_sequence("a", a, b, s);
  if (initial_state) detail::check_recurrence_state("initial_state", *initial_state, b, s);
  check(!save_states || detail::is_half(b), fn, ": save_states must be false for ", dtype(b),
        ", whose backward reads the result h");
  return s;
}

// Checks every argument of the backward op and returns the sizes. Throws std::invalid_argument.
inline LinearRecurrenceSizes check_linear_recurrence_backward(
    const Tensor& dh, const OptionalTensor& dlast_state, const Tensor& a, const OptionalTensor& b,
    const OptionalTensor& h, const OptionalTensor& initial_state, const OptionalTensor& chunk_states,
    bool complex) {
  const char* fn = "linear_recurrence";
  const bool half = detail::is_half(a);
  check(half ? b && chunk_states : h.has_value(), fn, ": the backward must have ",
        half ? "b and chunk_states" : "h", " for ", dtype(a),
        ". Run the forward with save_states=", half ? "True." : "False.");
  const Tensor& values = half ? *b : *h;
  LinearRecurrenceSizes s = check_linear_recurrence(a, values, initial_state, complex, false);
  detail::check_recurrence_sequence("dh", dh, values, s);
  if (dlast_state) detail::check_recurrence_state("dlast_state", *dlast_state, values, s);
  if (half) {
    detail::check_recurrence_argument("chunk_states", *chunk_states, values, "[chunks, ...]",
                                      s.shape(s.chunks(), -1), false);
    Arg{fn, "chunk_states", *chunk_states}.has_dtype(ScalarType::Float, "(the state's dtype)");
    check(chunk_states->is_contiguous(), fn,
          ": chunk_states must be contiguous as the forward op made it (run it with save_states)");
  }
  return s;
}

// An uninitialised tensor of x's shape [..., length] and dtype, dense, with dimensions in the order that x
// has them in memory; those of stride 0 lie outside. Complex numbers stay pairs.
inline Tensor ordered_like(const Tensor& x, bool complex) {
  const size_t rank = static_cast<size_t>(x.dim()), sorted = rank - (complex ? 1 : 0);
  const auto sizes = x.sizes(), old = x.strides();
  std::vector<size_t> order;
  for (size_t i = 0; i < sorted; ++i) order.push_back(i);
  const auto reach = [&](size_t i) { return old[i] == 0 ? INT64_MAX : old[i]; };
  std::stable_sort(order.begin(), order.end(), [&](size_t i, size_t j) { return reach(i) > reach(j); });
  std::vector<int64_t> strides(rank, 1);
  int64_t step = complex ? 2 : 1;
  for (size_t i = sorted; i-- > 0;) {
    strides[order[i]] = step;
    step *= std::max<int64_t>(sizes[order[i]], 1);
  }
  int32_t device_type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &device_type));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(x.dim(), sizes.data(), strides.data(),
                                                  static_cast<int32_t>(x.scalar_type()), device_type,
                                                  x.get_device_index(), &handle));
  return Tensor(handle);
}

// An uninitialised contiguous tensor of these sizes in the dtype of the states of `like`.
inline Tensor states_on(const Tensor& like, const std::vector<int64_t>& sizes) {
  return torch::stable::new_empty(like, {sizes.data(), sizes.size()}, state_dtype(like.scalar_type()));
}

// The state before the first step (or the adjoint after the last one) as the result, where there is no step.
inline void pass_state_through(Tensor& result, const OptionalTensor& state) {
  if (state) {
    torch::stable::copy_(result, *state);
  } else {
    torch::stable::zero_(result);
  }
}

// Leading dimensions, merged where all tensors allow it and ordered by the memory of the first tensor: row
// (p, q, r) of tensor i starts at p * stride[i][0] + q * stride[i][1] + r * stride[i][2], its steps lie
// stride[i][3] apart. States have no steps.
struct RecurrenceRows {
  static constexpr size_t kMost = 6;
  int64_t size[3] = {1, 1, 1};
  int64_t stride[kMost][4] = {};

  RecurrenceRows(const LinearRecurrenceSizes& s, std::initializer_list<const Tensor*> tensors) {
    struct Dim {
      int64_t size;
      int64_t stride[kMost];
    };
    const size_t lead = s.lead.size(), count = tensors.size();
    std::vector<Dim> dims;
    for (size_t d = 0; d < lead; ++d) {
      if (s.lead[d] == 1) continue;
      Dim dim{s.lead[d], {}};
      for (size_t i = 0; i < count; ++i) dim.stride[i] = tensors.begin()[i]->strides()[d];
      dims.push_back(dim);
    }
    std::stable_sort(dims.begin(), dims.end(),
                     [](const Dim& x, const Dim& y) { return x.stride[0] > y.stride[0]; });
    std::vector<Dim> merged;
    for (const Dim& dim : dims) {
      bool joins = !merged.empty();
      for (size_t i = 0; joins && i < count; ++i) joins = merged.back().stride[i] == dim.size * dim.stride[i];
      if (joins) {
        const int64_t size = merged.back().size * dim.size;
        merged.back() = dim;
        merged.back().size = size;
      } else {
        merged.push_back(dim);
      }
    }
    check(
        merged.size() <= 3 || s.empty(),
        "linear_recurrence: a and b must have leading dimensions that collapse to at most 3 in memory, got ",
        static_cast<int64_t>(merged.size()), ". Pass a.contiguous() and b.contiguous().");
    if (merged.size() > 3) return;
    for (size_t j = 0; j < merged.size(); ++j) {
      const size_t place = 3 - merged.size() + j;
      size[place] = merged[j].size;
      for (size_t i = 0; i < count; ++i) stride[i][place] = merged[j].stride[i];
    }
    for (size_t i = 0; i < count; ++i) {
      const Tensor& t = *tensors.begin()[i];
      const bool steps = t.dim() > static_cast<int64_t>(lead) + (s.complex ? 1 : 0);
      stride[i][3] = !steps ? 0 : s.length > 1 ? t.stride(static_cast<int64_t>(lead)) : s.parts();
    }
  }
};

using LinearRecurrenceOutputs = std::tuple<Tensor, Tensor, Tensor>;

// Both namespaces implement the two schemas of library.cpp, argument for argument.
namespace cpu {
LinearRecurrenceOutputs linear_recurrence_fwd(Tensor a, Tensor b, OptionalTensor initial_state, bool complex,
                                              bool reverse, bool save_states);
LinearRecurrenceOutputs linear_recurrence_bwd(Tensor dh, OptionalTensor dlast_state, Tensor a,
                                              OptionalTensor b, OptionalTensor h,
                                              OptionalTensor initial_state, OptionalTensor chunk_states,
                                              bool complex, bool reverse);
}  // namespace cpu

namespace cuda {
LinearRecurrenceOutputs linear_recurrence_fwd(Tensor a, Tensor b, OptionalTensor initial_state, bool complex,
                                              bool reverse, bool save_states);
LinearRecurrenceOutputs linear_recurrence_bwd(Tensor dh, OptionalTensor dlast_state, Tensor a,
                                              OptionalTensor b, OptionalTensor h,
                                              OptionalTensor initial_state, OptionalTensor chunk_states,
                                              bool complex, bool reverse);
}  // namespace cuda

}  // namespace mamba_aot
