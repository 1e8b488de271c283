// B and C of selective_scan as its CUDA kernels read them: rows along time of fp32, or of words that hold
// both, padded to whole tiles.
#pragma once

#include <array>
#include <optional>

#include "generated/selective_scan.gen.h"
#include "ops/launch_arguments.h"
#include "ops/selective_scan.h"
#include "ops/selective_scan_passes.h"

namespace mamba_aot::cuda {

// Rows of B, C and the gate are padded to whole tiles, so that kernels load them without a mask.
inline constexpr int64_t kRowMultiple = 128;

inline int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

// [batch, groups, state, length(, 2)] or a gate ([batch, state, length]) in rows of fp32, and what is behind.
inline Tensor pack_rows(const Tensor& x, bool complex, int64_t padded_length, double padding) {
  Tensor rows = complex ? torch::stable::transpose(x, 3, 4) : x;
  const int64_t last = rows.dim() - 1, length = rows.size(last);
  std::array<int64_t, 5> sizes{};
  for (int64_t i = 0; i < last; ++i) sizes[i] = rows.size(i);
  sizes[last] = padded_length;
  const torch::headeronly::IntHeaderOnlyArrayRef shape{sizes.data(), static_cast<size_t>(rows.dim())};
  Tensor packed = torch::stable::new_empty(x, shape, ScalarType::Float);
  if (length != padded_length) torch::stable::fill_(packed, padding);
  Tensor inside = torch::stable::narrow(packed, last, 0, length);
  torch::stable::copy_(inside, rows);
  return packed;
}

// B and C, and the memory that they lie in.
class PackedWeights {
 public:
  PackedWeights(const Tensor& B, const Tensor& C, const SelectiveScanSizes& s, int64_t padded_length,
                bool pairs) {
    if (pairs) {
      pair(B, C, s, padded_length);
      return;
    }
    const bool vary = !s.constant_B && !s.constant_C;
    if (vary && type_of(B) != ScalarType::Double && type_of(C) != ScalarType::Double) {
      pack_both(B, C, s, padded_length);
    } else {
      first_ = pack(B, s, s.constant_B, padded_length);
      second_ = pack(C, s, s.constant_C, padded_length);
      B_ = first_->data_ptr();
      C_ = second_->data_ptr();
    }
  }

  // Or both, in pairs.
  void* B() const { return B_; }
  void* C() const { return C_; }

 private:
  using Kernel = generated::SelectiveScanPack;

  // One launch: through torch, whose copies come one by one, it takes the host most of a whole call.
  void pack_both(const Tensor& B, const Tensor& C, const SelectiveScanSizes& s, int64_t padded_length) {
    const int64_t rows = s.batch * s.groups * s.state * s.parts();
    first_ = empty_on(B, {2, rows, padded_length}, ScalarType::Float);
    float* memory = static_cast<float*>(first_->data_ptr());
    B_ = memory;
    C_ = memory + rows * padded_length;
    Kernel::Args args{};
    args.B = pointer(B);
    args.C = pointer(C);
    args.out = memory;
    args.parts = static_cast<int32_t>(s.parts());
    args.rows = static_cast<int32_t>(rows);
    args.flags = code_of(B) | code_of(C) << 2;
    args.B_part = s.complex ? B.stride(4) : 0;
    args.C_part = s.complex ? C.stride(4) : 0;
    put_rows(args, B, C, s, padded_length);
    const auto& config = Kernel::pick({}, {});
    const int64_t blocks = padded_length / config.STEPS;
    args.blocks = static_cast<int32_t>(blocks);
    Kernel::launch({}, config, B.get_device_index(), 2 * ceil_div(rows, config.ROWS) * blocks, args);
  }

  // Both bfloat16.
  void pair(const Tensor& B, const Tensor& C, const SelectiveScanSizes& s, int64_t padded_length) {
    using Pair = generated::SelectiveScanPair;
    const int64_t rows = s.batch * s.groups * s.state;
    first_ = empty_on(B, {rows, padded_length}, ScalarType::Int);
    B_ = first_->data_ptr();
    Pair::Args args{};
    args.B = pointer(B);
    args.C = pointer(C);
    args.out = B_;
    args.rows = static_cast<int32_t>(rows);
    put_rows(args, B, C, s, padded_length);
    const auto& config = Pair::pick({}, {});
    const int64_t blocks = padded_length / config.STEPS;
    args.blocks = static_cast<int32_t>(blocks);
    Pair::launch({}, config, B.get_device_index(), ceil_div(rows, config.ROWS) * blocks, args);
  }

  template <class Args>
  static void put_rows(Args& args, const Tensor& B, const Tensor& C, const SelectiveScanSizes& s,
                       int64_t padded_length) {
    args.L = static_cast<int32_t>(s.length);
    args.N = static_cast<int32_t>(s.state);
    args.groups = static_cast<int32_t>(s.groups);
    args.padded_length = padded_length;
    args.B_batch = B.stride(0);
    args.B_group = B.stride(1);
    args.B_state = B.stride(2);
    args.B_time = B.stride(3);
    args.C_batch = C.stride(0);
    args.C_group = C.stride(1);
    args.C_state = C.stride(2);
    args.C_time = C.stride(3);
  }

  // Constants ([channels, state(, 2)]) keep their shape.
  static Tensor pack(const Tensor& x, const SelectiveScanSizes& s, bool constant, int64_t padded_length) {
    if (!constant) return pack_rows(x, s.complex, padded_length, 0.0);
    Tensor packed = torch::stable::new_empty(x, x.sizes(), ScalarType::Float);
    torch::stable::copy_(packed, x);
    return packed;
  }

  std::optional<Tensor> first_, second_;
  void *B_ = nullptr, *C_ = nullptr;
};

}  // namespace mamba_aot::cuda
