// From torch tensors to the plain views the kernels take, and from the machine to the kernels built for it.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "cpu/views.h"
#include "ops/check.h"

namespace mamba_aot::cpu {

enum class Isa { baseline, avx2, avx512 };

// The widest instruction set of this machine; MAMBA_AOT_CPU_ISA names a narrower one, for tests.
inline Isa machine_isa() {
  static const Isa isa = [] {
    Isa widest = Isa::baseline;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
      widest = Isa::avx2;
      if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        widest = Isa::avx512;
      }
    }
#endif
    const char* wanted = std::getenv("MAMBA_AOT_CPU_ISA");
    if (wanted && std::strcmp(wanted, "baseline") == 0) return Isa::baseline;
    if (wanted && std::strcmp(wanted, "avx2") == 0 && widest == Isa::avx512) return Isa::avx2;
    return widest;
  }();
  return isa;
}

// Declares `result fn arguments` for each instruction set, and `pick_<fn>(float64)`, which returns the one to
// call: the baseline's for double precision, which the others don't have.
#if defined(__x86_64__)
#define MAMBA_AOT_PER_ISA(result, fn, arguments)                                            \
  namespace baseline {                                                                      \
  result fn arguments;                                                                      \
  }                                                                                         \
  namespace avx2 {                                                                          \
  result fn arguments;                                                                      \
  }                                                                                         \
  namespace avx512 {                                                                        \
  result fn arguments;                                                                      \
  }                                                                                         \
  inline auto pick_##fn(bool float64) {                                                     \
    const Isa isa = float64 ? Isa::baseline : machine_isa();                                \
    return isa == Isa::avx512 ? &avx512::fn : isa == Isa::avx2 ? &avx2::fn : &baseline::fn; \
  }
#else
#define MAMBA_AOT_PER_ISA(result, fn, arguments) \
  namespace baseline {                           \
  result fn arguments;                           \
  }                                              \
  inline auto pick_##fn(bool) { return &baseline::fn; }
#endif

inline DType view_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::Half:
      return DType::f16;
    case ScalarType::BFloat16:
      return DType::bf16;
    default:
      return DType::f32;
  }
}

// Checked tensors have at most five dimensions.
inline View view(const Tensor& t) {
  View v{t.data_ptr(), view_dtype(type_of(t)), {}};
  auto strides = t.strides();
  for (size_t i = 0; i < strides.size(); ++i) v.stride[i] = strides[i];
  return v;
}

inline View view(const OptionalTensor& t) { return t ? view(*t) : View{}; }

// Slots are read on the CPU, so each can be checked: a wrong one would write outside the state.
inline void check_slots(const char* fn, const char* name, const OptionalTensor& indices, int64_t slots) {
  if (!indices) return;
  const int32_t* slot = static_cast<const int32_t*>(indices->data_ptr());
  for (int64_t i = 0; i < indices->size(0); ++i) {
    const int32_t got = slot[i * indices->stride(0)];
    check(got < slots, fn, ": ", name, " must be slots below ", slots, " (or negative, for padding), got ",
          got, " at position ", i);
  }
}

// Scratch memory of one thread, aligned for the widest vectors.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : memory_(new std::byte[static_cast<size_t>(bytes) + kAlignment]) {
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    data_ = reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
  }
  void* data() const { return data_; }

 private:
  static constexpr size_t kAlignment = 64;
  std::unique_ptr<std::byte[]> memory_;
  void* data_;
};

// Runs kernel(plan, begin, end, scratch) over all items on torch's threads; `grain` items are worth a thread.
template <class Plan, class Kernel>
void run_items(const Plan& plan, int64_t items, int64_t grain, Kernel* kernel) {
  if (items == 0) return;
  const int64_t bytes = kernel(plan, 0, 0, nullptr);
  torch::stable::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
    Scratch scratch(bytes);
    kernel(plan, begin, end, scratch.data());
  });
}

}  // namespace mamba_aot::cpu
