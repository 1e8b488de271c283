// What linear_recurrence checks of its arguments, on every device.
#include "ops/linear_recurrence.h"

namespace mamba_aot {
namespace detail {
namespace {

void check_recurrence_argument(const char* name, const Tensor& t, const Tensor& b, const char* dims,
                               const std::vector<int64_t>& want, bool complex) {
  const char* fn = "linear_recurrence";
  Arg{fn, name, t}.on_device_of(b, "b");
  const auto got = t.sizes();
  check(got.size() == want.size() && std::equal(want.begin(), want.end(), got.begin()), fn, ": ", name,
        " must be ", dims, " = ", shown(want, complex), " beside b, got ",
        complex ? complex_shape(t, static_cast<int64_t>(want.size()) - 1) : shape(t));
}

void check_recurrence_sequence(const char* name, const Tensor& t, const Tensor& b,
                               const LinearRecurrenceSizes& s) {
  check_recurrence_argument(name, t, b, "[..., length]", s.shape(-1, s.length), s.complex);
  Arg{"linear_recurrence", name, t}.has_dtype(type_of(b), s.complex ? "pairs like b" : "like b");
  check(!s.complex || t.stride(t.dim() - 1) == 1, "linear_recurrence: ", name,
        " must hold its real and imaginary parts side by side (stride 1), got stride ", t.stride(t.dim() - 1),
        ". Pass a complex tensor.");
}

void check_recurrence_state(const char* name, const Tensor& t, const Tensor& b,
                            const LinearRecurrenceSizes& s) {
  check_recurrence_argument(name, t, b, "[...], the leading dimensions", s.shape(-1, -1), s.complex);
  Arg{"linear_recurrence", name, t}.has_dtype(
      state_dtype(type_of(b)), s.complex ? "pairs (the state's dtype)" : "(the state's dtype)");
}

}  // namespace
}  // namespace detail

LinearRecurrenceSizes check_linear_recurrence(const Tensor& a, const Tensor& b,
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

LinearRecurrenceSizes check_linear_recurrence_backward(const Tensor& dh, const OptionalTensor& dlast_state,
                                                       const Tensor& a, const OptionalTensor& b,
                                                       const OptionalTensor& h,
                                                       const OptionalTensor& initial_state,
                                                       const OptionalTensor& chunk_states, bool complex) {
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

Tensor ordered_like(const Tensor& x, bool complex) {
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
                                                  static_cast<int32_t>(type_of(x)), device_type,
                                                  x.get_device_index(), &handle));
  return Tensor(handle);
}

void pass_state_through(Tensor& result, const OptionalTensor& state) {
  if (state) {
    torch::stable::copy_(result, *state);
  } else {
    torch::stable::zero_(result);
  }
}

}  // namespace mamba_aot
