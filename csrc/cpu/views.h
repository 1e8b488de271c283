// Plain descriptions of tensors, handed from the torch side (csrc/cpu/<stem>.cpp) to the kernels
// (*_simd.cpp). Kernels are compiled once per instruction set, so nothing here may have code that a linker
// could share.
#pragma once

#include <cstdint>

namespace mamba_aot::cpu {

enum class DType : int32_t { f32, f64, f16, bf16 };

// Elements at data + sum(index * stride), strides in elements; a null `data` is an argument that was not
// given.
struct View {
  void* data;
  DType dtype;
  int64_t stride[5];
};

}  // namespace mamba_aot::cpu
