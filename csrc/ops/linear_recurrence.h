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

inline bool is_half(const Tensor& t) {
  return type_of(t) == ScalarType::Half || type_of(t) == ScalarType::BFloat16;
}

}  // namespace detail

// Checks every argument of the forward op and returns the sizes. Throws std::invalid_argument.
LinearRecurrenceSizes check_linear_recurrence(const Tensor& a, const Tensor& b,
                                              const OptionalTensor& initial_state, bool complex,
                                              bool save_states);

// Checks every argument of the backward op and returns the sizes. Throws std::invalid_argument.
LinearRecurrenceSizes check_linear_recurrence_backward(const Tensor& dh, const OptionalTensor& dlast_state,
                                                       const Tensor& a, const OptionalTensor& b,
                                                       const OptionalTensor& h,
                                                       const OptionalTensor& initial_state,
                                                       const OptionalTensor& chunk_states, bool complex);

// An uninitialised tensor of x's shape [..., length] and dtype, dense, with dimensions in the order that x
// has them in memory; those of stride 0 lie outside. Complex numbers stay pairs.
Tensor ordered_like(const Tensor& x, bool complex);

// An uninitialised contiguous tensor of these sizes in the dtype of the states of `like`.
inline Tensor states_on(const Tensor& like, const std::vector<int64_t>& sizes) {
  return torch::stable::new_empty(like, {sizes.data(), sizes.size()}, state_dtype(type_of(like)));
}

// The state before the first step (or the adjoint after the last one) as the result, where there is no step.
void pass_state_through(Tensor& result, const OptionalTensor& state);

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
