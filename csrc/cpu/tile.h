// Moves [channels, steps] tiles between tensors of any dtype and strides and vectors over channels.
#pragma once

#include "cpu/simd.h"
#include "cpu/views.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {

// A contiguous tensor of dtype S.
template <class S>
View flat_view(const void* data) {
  return {const_cast<void*>(data), sizeof(S) == 8 ? DType::f64 : DType::f32, {}};
}

// tile[t][lane] = x[offset + lane * channel_stride + t * step_stride]; lanes beyond `lanes` are 0. Defined in
// tile_simd.cpp: every kernel moves tiles, of every dtype.
template <class S>
void load_tile(const View& x, int64_t offset, int64_t channel_stride, int64_t step_stride, int lanes,
               int64_t steps, Vec<S>* tile);

// The other way, rounded to the dtype.
template <class S>
void store_tile(const View& x, int64_t offset, int64_t channel_stride, int64_t step_stride, int lanes,
                int64_t steps, const Vec<S>* tile);

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
