// From tensors to what a kernel's argument struct holds.
#pragma once

#include "ops/check.h"
#include "runtime/variant.h"

namespace mamba_aot {

inline DType dtype_of(const Tensor& t) {
  switch (type_of(t)) {
    case ScalarType::Half:
      return DType::f16;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Double:
      return DType::f64;
    default:
      return DType::f32;
  }
}

// For kernels whose one image serves both sixteen-bit formats, with the bit of `flags` that says which.
constexpr int32_t kFloat16 = 1 << 30;

inline DType storage_of(const Tensor& t) {
  const DType dtype = dtype_of(t);
  return dtype == DType::f16 || dtype == DType::bf16 ? DType::half : dtype;
}

inline int32_t format_flag(const Tensor& t) { return type_of(t) == ScalarType::Half ? kFloat16 : 0; }

// The dtype of what has no variants for it, in two bits: csrc/kernels/_by_code.py reads and writes it.
// Nothing is written by the last one.
constexpr int32_t kNobody = 3;

inline int32_t code_of(const Tensor& t) {
  const ScalarType type = type_of(t);
  return type == ScalarType::Half ? 1 : type == ScalarType::BFloat16 ? 2 : 0;
}

inline int32_t code_of(const OptionalTensor& t) { return t ? code_of(*t) : kNobody; }

// Kernels read sequences of one dtype. Several go through float32, which holds what any of them holds.
inline bool of_one_dtype(const Tensor& x, const Tensor& step, const OptionalTensor& z) {
  const ScalarType type = type_of(x);
  return type_of(step) == type && (!z || type_of(*z) == type);
}

inline Tensor in_float32(const Tensor& t) {
  return type_of(t) == ScalarType::Float ? t : torch::stable::to(t, ScalarType::Float);
}

inline OptionalTensor in_float32(const OptionalTensor& t) {
  if (!t) return std::nullopt;
  return in_float32(*t);
}

constexpr int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }

inline void* pointer(const Tensor& t) { return t.data_ptr(); }
inline void* pointer(const OptionalTensor& t) { return t ? t->data_ptr() : nullptr; }

// A contiguous copy of `values` in the shape and dtype of `input`; its strides are canonical even in
// dimensions of size 1, unlike those of a view that only happens to be contiguous.
inline Tensor gradient_of(const Tensor& input, const Tensor& values) {
  Tensor gradient = torch::stable::new_empty(input, input.sizes());
  torch::stable::copy_(gradient, values);
  return gradient;
}

// Memory for such a gradient, which kernels write that know no float64.
inline Tensor empty_gradient_of(const Tensor& input) {
  const ScalarType type = type_of(input);
  return torch::stable::new_empty(input, input.sizes(),
                                  type == ScalarType::Double ? ScalarType::Float : type);
}

// Element strides of a [batch, channels, length] tensor; those of a missing one are 0 and fit any layout.
struct Strides {
  int64_t batch = 0, channel = 0, time = 0;
  bool present = false;
  bool aligned = true;

  explicit Strides(const Tensor& t) : present(t.numel() > 0) {
    if (!present) return;
    // A dimension of one element is never stepped along, so its stride means nothing.
    batch = t.size(0) > 1 ? t.stride(0) : 0;
    channel = t.size(1) > 1 ? t.stride(1) : 0;
    time = t.size(2) > 1 ? t.stride(2) : 1;
    aligned = reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0;
  }
  explicit Strides(const OptionalTensor& t) : Strides(t ? Strides(*t) : Strides()) {}

  // Contiguous along time, each row on a 16-element boundary: what the "seq" variants are compiled for.
  bool rows() const { return !present || (time == 1 && aligned && batch % 16 == 0 && channel % 16 == 0); }

  // Contiguous along channels, each step on a 16-element boundary: what the "last" variants are compiled for.
  bool columns() const {
    return !present || (channel == 1 && aligned && batch % 16 == 0 && (time % 16 == 0 || time == 1));
  }

  void put(int64_t& to_batch, int64_t& to_channel, int64_t& to_time) const {
    to_batch = batch;
    to_channel = channel;
    to_time = time;
  }

 private:
  Strides() = default;
};

}  // namespace mamba_aot
