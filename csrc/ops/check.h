// One way to say what must hold, what was got and what to do; and the few tensor helpers that every op needs.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <tuple>

namespace mamba_aot {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Dims = std::initializer_list<int64_t>;

// A shape as the user sees it: the first `count` dimensions, without `skip` (-1: none).
struct Shape {
  const int64_t* sizes;
  int64_t count;
  int64_t skip = -1;
  const char* kind = "";
};

inline Shape shape(const Tensor& t) { return {t.sizes().data(), t.dim()}; }
inline Shape shape(Dims dims) { return {dims.begin(), static_cast<int64_t>(dims.size())}; }

// The shape of something whose complex elements, if any, are pairs in a last dimension of 2 beyond
// `real_rank`.
Shape complex_shape(const Tensor& t, int64_t real_rank);

std::ostream& operator<<(std::ostream& out, const Shape& s);

// The tensor's own method asks the library for each dtype by a call, until it has found the one.
inline ScalarType type_of(const Tensor& t) {
  int32_t type;
  // The C shim numbers dtypes as ScalarType does.
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &type));
  return static_cast<ScalarType>(type);
}

// A dtype by its Python name.
struct DTypeName {
  ScalarType type;
};

std::ostream& operator<<(std::ostream& out, const DTypeName& name);

inline DTypeName dtype(const Tensor& t) { return {type_of(t)}; }

// A device by its Python name; its type is a number of the C shim's.
struct DeviceName {
  int32_t type, index;
};

std::ostream& operator<<(std::ostream& out, const DeviceName& name);

inline DeviceName device(const Tensor& t) {
  DeviceName name;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &name.type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &name.index));
  return name;
}

// Throws std::invalid_argument with the parts joined into one sentence. It has to begin with the name of a
// public function: that tells Python's raises_typed_errors that an argument is at fault.
template <class... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void fail(const Parts&... parts) {
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw std::invalid_argument(sentence.str());
}

// Parts are only formatted when the check fails, so keep them cheap to make (names, numbers, shape(t)).
template <class... Parts>
inline void check(bool holds, const Parts&... parts) {
  if (!holds) fail(parts...);
}

inline bool is_complex_dtype(ScalarType type) {
  return type == ScalarType::ComplexFloat || type == ScalarType::ComplexDouble ||
         type == ScalarType::ComplexHalf;
}

inline bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16 ||
         type == ScalarType::Double;
}

// Whether the ranges of memory from first to last element meet.
bool overlap(const Tensor& one, const Tensor& other);

// One named argument of one public function: every check on it starts with "<fn>: <name> must ...".
struct Arg {
  const char* fn;
  const char* name;
  const Tensor& tensor;
  // Complex tensors arrive as real views with a last dimension of 2, which the sentences leave out again.
  bool complex = false;
  // A dimension the user did not write (the group of [batch, state, length]); -1 for none.
  int64_t hidden = -1;

  // A real tensor where a complex one belongs is one dimension short, and is shown as it is.
  Shape seen(const int64_t* sizes, size_t count, size_t rank) const {
    const int64_t shown = static_cast<int64_t>(complex && count == rank ? count - 1 : count);
    return {sizes, shown, count == rank ? hidden : -1};
  }

  const Arg& on_device_of(const Tensor& other, const char* other_name) const {
    const DeviceName want = device(other), got = device(tensor);
    check(want.type == got.type && want.index == got.index, fn, ": ", name, " must be on ", want, " like ",
          other_name, ", got ", got, ". Move it with .to(", other_name, ".device).");
    return *this;
  }

  // `dims` names the dimensions ("[batch, state, length]"); `want` holds their sizes, with the last 2 if
  // complex.
  const Arg& has_shape(const char* dims, Dims want) const {
    auto got = tensor.sizes();
    bool equal = got.size() == want.size();
    for (size_t i = 0; equal && i < want.size(); ++i) equal = got[i] == want.begin()[i];
    check(equal, fn, ": ", name, " must be ", complex ? "complex " : "", dims, " = ",
          seen(want.begin(), want.size(), want.size()), ", got ",
          complex && got.size() + 1 == want.size() ? "real " : "", seen(got.data(), got.size(), want.size()));
    return *this;
  }

  const Arg& has_rank(const char* dims, int64_t rank) const {
    check(tensor.dim() == rank, fn, ": ", name, " must be ", dims, " (", rank, " dimensions), got ",
          shape(tensor));
    return *this;
  }

  const Arg& is_float() const {
    check(is_floating(type_of(tensor)), fn, ": ", name,
          " must be float32, float16, bfloat16 or float64, got ", dtype(tensor),
          ". Convert it with .float().");
    return *this;
  }

  // The dtype of the large tensors: float64 only where there is a kernel for it.
  const Arg& is_data_dtype() const {
    ScalarType type = type_of(tensor);
    check(is_floating(type), fn, ": ", name,
          " must be float32, float16, bfloat16 or (on the CPU) float64, got ", dtype(tensor),
          ". Convert it with .float().");
    check(type != ScalarType::Double || tensor.is_cpu(), fn, ": ", name,
          " must be float32, float16 or bfloat16 on ", device(tensor),
          ", got float64. Convert it with .float(), or run on the CPU.");
    return *this;
  }

  // A dtype of its own, but none wider than the arithmetic, which the dtype of `of` decides.
  const Arg& is_data_dtype_beside(const Tensor& of, const char* of_name) const {
    is_data_dtype();
    check(type_of(tensor) != ScalarType::Double || type_of(of) == ScalarType::Double, fn, ": ", name,
          " must not be wider than the arithmetic, which is float32 for ", of_name, " of ", dtype(of),
          ", got float64. Convert it with .float(), or ", of_name, " with .double().");
    return *this;
  }

  const Arg& has_dtype(ScalarType want, const char* reason) const {
    check(type_of(tensor) == want, fn, ": ", name, " must be ", DTypeName{want}, " ", reason, ", got ",
          dtype(tensor), ". Convert it with .to(torch.", DTypeName{want}, ").");
    return *this;
  }

  // What a kernel writes in place must not alias itself, or the result would depend on the order of writes.
  const Arg& is_writable() const {
    const auto sizes = tensor.sizes(), strides = tensor.strides();
    for (size_t i = 0; i < sizes.size(); ++i) {
      // A step along a dimension must lead past all that lies within it.
      int64_t within = 0;
      for (size_t j = 0; j < sizes.size(); ++j) {
        const bool inner = strides[j] < strides[i] || (strides[j] == strides[i] && j > i);
        if (inner && sizes[j] > 1) within += (sizes[j] - 1) * strides[j];
      }
      check(sizes[i] <= 1 || strides[i] > within || tensor.numel() == 0, fn, ": ", name,
            " is updated in place, so its elements must not share memory; got stride ", strides[i],
            " in dimension ", i, ". Pass ", name, ".contiguous() and keep it.");
    }
    return *this;
  }

  const Arg& shares_no_memory_with(const Tensor& other, const char* other_name) const {
    check(!overlap(tensor, other), fn, ": ", name, " must not share memory with ", other_name,
          ", but their ranges of memory overlap. Pass a tensor of its own.");
    return *this;
  }
};

// What a gradient of `of` is written into: like it, and memory of its own.
void check_gradient_out(const char* fn, const char* name, const Tensor& out, const char* of_name,
                        const Tensor& of, std::initializer_list<const Tensor*> read);

// The dtype that states are kept in and sums are computed in.
inline ScalarType state_dtype(ScalarType data) {
  return data == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// An uninitialised tensor on the device of `device_of`.
Tensor empty_strided_on(const Tensor& device_of, Dims sizes, const int64_t* strides, ScalarType type);

// The same, contiguous; at most eight dimensions.
Tensor empty_on(const Tensor& device_of, Dims sizes, ScalarType type);

// What stands for the gradient of an argument that was not given: an empty tensor [0] of this one's dtype.
inline Tensor absent_on(const Tensor& like) { return empty_on(like, {0}, type_of(like)); }

// An uninitialised tensor of x's shape [batch, channels, length]: channel-last memory ([batch, length,
// channels] transposed) if x has it, else contiguous.
Tensor layout_like(const Tensor& x, ScalarType type);
inline Tensor layout_like(const Tensor& x) { return layout_like(x, type_of(x)); }

// A copy of `values` with the memory order and dtype of x.
Tensor sequence_like(const Tensor& x, const Tensor& values);

// A contiguous `type` copy of a small tensor (A, D, bias, weight); the tensor itself if it is one already.
Tensor to_state_dtype(const Tensor& t, ScalarType type);

OptionalTensor to_state_dtype(const OptionalTensor& t, ScalarType type);

// The other direction, for a gradient computed in the state dtype.
Tensor to_input_dtype(const Tensor& gradient, const Tensor& input);

}  // namespace mamba_aot
