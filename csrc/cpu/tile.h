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

// A tile for each kLanes channels, `apart` vectors from one to the next: tile[t][lane] = x[offset + channel *
// channel_stride + t * step_stride]; lanes beyond the last channel are 0. Channels that lie side by side are
// read step by step, as memory likes it. Defined in tile_simd.cpp: every kernel moves tiles, of every dtype.
template <class S>
void load_tiles(const View& x, int64_t offset, int64_t channel_stride, int64_t step_stride, int64_t channels,
                int64_t steps, Vec<S>* tiles, int64_t apart);

// The other way, rounded to the dtype.
template <class S>
void store_tiles(const View& x, int64_t offset, int64_t channel_stride, int64_t step_stride, int64_t channels,
                 int64_t steps, const Vec<S>* tiles, int64_t apart);

// One tile, of at most kLanes channels.
template <class S>
MAMBA_AOT_INLINE void load_tile(const View& x, int64_t offset, int64_t channel_stride, int64_t step_stride,
                                int lanes, int64_t steps, Vec<S>* tile) {
  load_tiles<S>(x, offset, channel_stride, step_stride, lanes, steps, tile, 0);
}

template <class S>
MAMBA_AOT_INLINE void store_tile(const View& x, int64_t offset, int64_t channel_stride, int64_t step_stride,
                                 int lanes, int64_t steps, const Vec<S>* tile) {
  store_tiles<S>(x, offset, channel_stride, step_stride, lanes, steps, tile, 0);
}

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
