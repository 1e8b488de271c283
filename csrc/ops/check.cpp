// Sentences about arguments, and the tensors that ops make.
#include "ops/check.h"

#include <utility>

namespace mamba_aot {

Shape complex_shape(const Tensor& t, int64_t real_rank) {
  const bool pairs = t.dim() == real_rank + 1 && t.size(real_rank) == 2;
  return {t.sizes().data(), pairs ? real_rank : t.dim(), -1,
          pairs                  ? "complex "
          : t.dim() == real_rank ? "real "
                                 : ""};
}

std::ostream& operator<<(std::ostream& out, const Shape& s) {
  out << s.kind << "[";
  const char* separator = "";
  for (int64_t i = 0; i < s.count; ++i) {
    if (i == s.skip) continue;
    out << separator << s.sizes[i];
    separator = ", ";
  }
  return out << "]";
}

std::ostream& operator<<(std::ostream& out, const DTypeName& name) {
  switch (name.type) {
    case ScalarType::Float:
      return out << "float32";
    case ScalarType::Double:
      return out << "float64";
    case ScalarType::Half:
      return out << "float16";
    case ScalarType::BFloat16:
      return out << "bfloat16";
    case ScalarType::Byte:
      return out << "uint8";
    case ScalarType::Char:
      return out << "int8";
    case ScalarType::Short:
      return out << "int16";
    case ScalarType::Int:
      return out << "int32";
    case ScalarType::Long:
      return out << "int64";
    case ScalarType::Bool:
      return out << "bool";
    case ScalarType::ComplexFloat:
      return out << "complex64";
    case ScalarType::ComplexDouble:
      return out << "complex128";
    default:
      return out << torch::headeronly::toString(name.type);
  }
}

std::ostream& operator<<(std::ostream& out, const DeviceName& name) {
  if (name.type == aoti_torch_device_type_cpu()) return out << "cpu";
  return out << (name.type == aoti_torch_device_type_cuda() ? "cuda:" : "device ") << name.index;
}

bool overlap(const Tensor& one, const Tensor& other) {
  // From the first byte to the one behind the last; nothing of what is empty.
  const auto range = [](const Tensor& t) {
    const auto sizes = t.sizes(), strides = t.strides();
    const auto begin = reinterpret_cast<uintptr_t>(t.data_ptr());
    int64_t last = 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
      if (sizes[i] == 0) return std::pair{begin, begin};
      last += (sizes[i] - 1) * strides[i];
    }
    return std::pair{begin, begin + static_cast<uintptr_t>(last + 1) * t.element_size()};
  };
  const auto a = range(one), b = range(other);
  return a.first < a.second && b.first < b.second && a.first < b.second && b.first < a.second;
}

Tensor empty_strided_on(const Tensor& device_of, Dims sizes, const int64_t* strides, ScalarType type) {
  const DeviceName on = device(device_of);
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), strides,
                                                  static_cast<int32_t>(type), on.type, on.index, &handle));
  return Tensor(handle);
}

Tensor empty_on(const Tensor& device_of, Dims sizes, ScalarType type) {
  std::array<int64_t, 8> strides{};
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = step;
    step *= sizes.begin()[i] > 0 ? sizes.begin()[i] : 1;
  }
  return empty_strided_on(device_of, sizes, strides.data(), type);
}

Tensor layout_like(const Tensor& x, ScalarType type) {
  const int64_t b = x.size(0), d = x.size(1), l = x.size(2);
  if (x.stride(2) == 1 || x.stride(1) != 1) return empty_on(x, {b, d, l}, type);
  const int64_t row = d > 0 ? d : 1, sequence = (l > 0 ? l : 1) * row;
  const int64_t strides[] = {sequence, 1, row};
  return empty_strided_on(x, {b, d, l}, strides, type);
}

Tensor sequence_like(const Tensor& x, const Tensor& values) {
  Tensor copy = layout_like(x);
  torch::stable::copy_(copy, values);
  return copy;
}

Tensor to_state_dtype(const Tensor& t, ScalarType type) {
  Tensor same = type_of(t) == type ? t : torch::stable::to(t, type);
  return same.is_contiguous() ? same : torch::stable::contiguous(same);
}

OptionalTensor to_state_dtype(const OptionalTensor& t, ScalarType type) {
  if (!t.has_value()) return std::nullopt;
  return to_state_dtype(*t, type);
}

Tensor to_input_dtype(const Tensor& gradient, const Tensor& input) {
  return type_of(gradient) == type_of(input) ? gradient : torch::stable::to(gradient, type_of(input));
}

void check_gradient_out(const char* fn, const char* name, const Tensor& out, const char* of_name,
                        const Tensor& of, std::initializer_list<const Tensor*> read) {
  Arg arg{fn, name, out};
  arg.on_device_of(of, of_name).has_shape("[batch, channels, length]", {of.size(0), of.size(1), of.size(2)});
  arg.has_dtype(type_of(of), (std::string("like ") + of_name).c_str()).is_writable();
  for (const Tensor* other : read) arg.shares_no_memory_with(*other, "what the gradient is computed from");
}

}  // namespace mamba_aot
