// Moves tiles, between each dtype and the lanes. Compiled once per instruction set.
#include "cpu/storage.h"
#include "cpu/tile.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {
namespace {

// tile[t][lane] = p[lane * channel_stride + t * step_stride]; lanes beyond `lanes` are 0.
template <class S, class T>
void load_tile_of(const T* p, int64_t channel_stride, int64_t step_stride, int lanes, int64_t steps,
                  Vec<S>* tile) {
  constexpr int kLanes = Simd<S>::kLanes;
  if (channel_stride == 1 && lanes == kLanes) {
    for (int64_t t = 0; t < steps; ++t) tile[t] = load_row<S, T>(p + t * step_stride);
    return;
  }
  int64_t t = 0;
  if (step_stride == 1) {
    for (; t + kLanes <= steps; t += kLanes) {
      Vec<S> rows[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        rows[i] = i < lanes ? load_row<S, T>(p + i * channel_stride + t) : Vec<S>{};
      }
      transpose<S>(rows);
      for (int i = 0; i < kLanes; ++i) tile[t + i] = rows[i];
    }
  }
  for (; t < steps; ++t) {
    Vec<S> v{};
    for (int i = 0; i < lanes; ++i) v[i] = static_cast<S>(widen(p[i * channel_stride + t * step_stride]));
    tile[t] = v;
  }
}

template <class S, class T>
void store_tile_of(T* p, int64_t channel_stride, int64_t step_stride, int lanes, int64_t steps,
                   const Vec<S>* tile) {
  constexpr int kLanes = Simd<S>::kLanes;
  if (channel_stride == 1 && lanes == kLanes) {
    for (int64_t t = 0; t < steps; ++t) store_row<S, T>(p + t * step_stride, tile[t]);
    return;
  }
  int64_t t = 0;
  if (step_stride == 1) {
    for (; t + kLanes <= steps; t += kLanes) {
      Vec<S> rows[kLanes];
      for (int i = 0; i < kLanes; ++i) rows[i] = tile[t + i];
      transpose<S>(rows);
      for (int i = 0; i < lanes; ++i) store_row<S, T>(p + i * channel_stride + t, rows[i]);
    }
  }
  for (; t < steps; ++t) {
    for (int i = 0; i < lanes; ++i) p[i * channel_stride + t * step_stride] = Narrow<T>::from(tile[t][i]);
  }
}

}  // namespace

template <class S>
void load_tile(const View& x, int64_t offset, int64_t channel_stride, int64_t step_stride, int lanes,
               int64_t steps, Vec<S>* tile) {
  switch (x.dtype) {
    case DType::f32:
      return load_tile_of<S>(static_cast<const float*>(x.data) + offset, channel_stride, step_stride, lanes,
                             steps, tile);
    case DType::f64:
      return load_tile_of<S>(static_cast<const double*>(x.data) + offset, channel_stride, step_stride, lanes,
                             steps, tile);
    case DType::f16:
      return load_tile_of<S>(static_cast<const Half*>(x.data) + offset, channel_stride, step_stride, lanes,
                             steps, tile);
    case DType::bf16:
      return load_tile_of<S>(static_cast<const BFloat16*>(x.data) + offset, channel_stride, step_stride,
                             lanes, steps, tile);
  }
}

template <class S>
void store_tile(const View& x, int64_t offset, int64_t channel_stride, int64_t step_stride, int lanes,
                int64_t steps, const Vec<S>* tile) {
  switch (x.dtype) {
    case DType::f32:
      return store_tile_of<S>(static_cast<float*>(x.data) + offset, channel_stride, step_stride, lanes, steps,
                              tile);
    case DType::f64:
      return store_tile_of<S>(static_cast<double*>(x.data) + offset, channel_stride, step_stride, lanes,
                              steps, tile);
    case DType::f16:
      return store_tile_of<S>(static_cast<Half*>(x.data) + offset, channel_stride, step_stride, lanes, steps,
                              tile);
    case DType::bf16:
      return store_tile_of<S>(static_cast<BFloat16*>(x.data) + offset, channel_stride, step_stride, lanes,
                              steps, tile);
  }
}

#define MAMBA_AOT_TILES_OF(S)                                                                \
  template void load_tile<S>(const View&, int64_t, int64_t, int64_t, int, int64_t, Vec<S>*); \
  template void store_tile<S>(const View&, int64_t, int64_t, int64_t, int, int64_t, const Vec<S>*);

MAMBA_AOT_TILES_OF(float)
// Where with_lane_type has it.
#if !defined(__AVX2__)
MAMBA_AOT_TILES_OF(double)
#endif

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
