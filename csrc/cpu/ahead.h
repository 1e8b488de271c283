// Lines of a tile asked for ahead of its loads or stores: between the rows of a tile no hardware prefetcher
// finds its way.
#pragma once

#include "cpu/simd.h"
#include "cpu/views.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {

// The lines of a tile of 64 steps, one in each ask(i), for a loop over steps that has other work. A tile in
// any other order than channels or steps side by side has none.
struct Ahead {
  static constexpr int kLine = 64;
  const char* first = nullptr;
  // From one row of `mask + 1` lines to the next.
  int64_t row_bytes = 0;
  int shift = 0, mask = 0;

  Ahead() = default;
  MAMBA_AOT_INLINE Ahead(const View& x, int64_t offset, int64_t channel_stride, int64_t step_stride) {
    if (!x.data || (channel_stride != 1 && step_stride != 1)) return;
    shift = x.dtype == DType::f64 ? 3 : x.dtype == DType::f32 ? 2 : 1;
    first = static_cast<const char*>(x.data) + (offset << shift);
    // Along time a row of 64 steps takes as many lines as a number has bytes, along channels one.
    row_bytes = (step_stride == 1 ? channel_stride : step_stride) << shift;
    mask = step_stride == 1 ? (1 << shift) - 1 : 0;
    if (mask == 0) shift = 0;
  }

  MAMBA_AOT_INLINE void ask(int64_t i) const {
    if (first) __builtin_prefetch(first + (i >> shift) * row_bytes + (i & mask) * kLine);
  }
};

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
