// Moves tiles, between each dtype and the lanes. Compiled once per instruction set.
#include "cpu/storage.h"
#include "cpu/tile.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {
namespace {

// One tile, where channels do not lie side by side or are fewer than lanes.
template <class S, class T>
void load_tile_of(const T* p, int64_t channel_stride, int64_t step_stride, int lanes, int64_t steps,
                  Vec<S>* tile) {
  constexpr int kLanes = Simd<S>::kLanes;
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

template <class S, class T>
void load_tiles_of(const T* p, int64_t channel_stride, int64_t step_stride, int64_t channels, int64_t steps,
                   Vec<S>* tiles, int64_t apart) {
  constexpr int kLanes = Simd<S>::kLanes;
  const int64_t whole = channel_stride == 1 ? channels / kLanes : 0;
  for (int64_t t = 0; whole && t < steps; ++t) {
    for (int64_t b = 0; b < whole; ++b) {
      tiles[b * apart + t] = load_row<S, T>(p + t * step_stride + b * kLanes);
    }
  }
  for (int64_t b = whole; b * kLanes < channels; ++b) {
    const int64_t rest = channels - b * kLanes;
    load_tile_of<S>(p + b * kLanes * channel_stride, channel_stride, step_stride,
                    static_cast<int>(rest < kLanes ? rest : kLanes), steps, tiles + b * apart);
  }
}

template <class S, class T>
void store_tiles_of(T* p, int64_t channel_stride, int64_t step_stride, int64_t channels, int64_t steps,
                    const Vec<S>* tiles, int64_t apart) {
  constexpr int kLanes = Simd<S>::kLanes;
  const int64_t whole = channel_stride == 1 ? channels / kLanes : 0;
  for (int64_t t = 0; whole && t < steps; ++t) {
    for (int64_t b = 0; b < whole; ++b) {
      store_row<S, T>(p + t * step_stride + b * kLanes, tiles[b * apart + t]);
    }
  }
  for (int64_t b = whole; b * kLanes < channels; ++b) {
    const int64_t rest = channels - b * kLanes;
    store_tile_of<S>(p + b * kLanes * channel_stride, channel_stride, step_stride,
                     static_cast<int>(rest < kLanes ? rest : kLanes), steps, tiles + b * apart);
  }
}

}  // namespace

template <class S>
void load_tiles(const View& x, int64_t offset, int64_t channel_stride, int64_t step_stride, int64_t channels,
                int64_t steps, Vec<S>* tiles, int64_t apart) {
  switch (x.dtype) {
    case DType::f32:
      return load_tiles_of<S>(static_cast<const float*>(x.data) + offset, channel_stride, step_stride,
                              channels, steps, tiles, apart);
    case DType::f64:
      return load_tiles_of<S>(static_cast<const double*>(x.data) + offset, channel_stride, step_stride,
                              channels, steps, tiles, apart);
    case DType::f16:
      return load_tiles_of<S>(static_cast<const Half*>(x.data) + offset, channel_stride, step_stride,
                              channels, steps, tiles, apart);
    case DType::bf16:
      return load_tiles_of<S>(static_cast<const BFloat16*>(x.data) + offset, channel_stride, step_stride,
                              channels, steps, tiles, apart);
  }
}

template <class S>
void store_tiles(const View& x, int64_t offset, int64_t channel_stride, int64_t step_stride, int64_t channels,
                 int64_t steps, const Vec<S>* tiles, int64_t apart) {
  switch (x.dtype) {
    case DType::f32:
      return store_tiles_of<S>(static_cast<float*>(x.data) + offset, channel_stride, step_stride, channels,
                               steps, tiles, apart);
    case DType::f64:
      return store_tiles_of<S>(static_cast<double*>(x.data) + offset, channel_stride, step_stride, channels,
                               steps, tiles, apart);
    case DType::f16:
      return store_tiles_of<S>(static_cast<Half*>(x.data) + offset, channel_stride, step_stride, channels,
                               steps, tiles, apart);
    case DType::bf16:
      return store_tiles_of<S>(static_cast<BFloat16*>(x.data) + offset, channel_stride, step_stride, channels,
                               steps, tiles, apart);
  }
}

#define MAMBA_AOT_TILES_OF(S)                                                                              \
  template void load_tiles<S>(const View&, int64_t, int64_t, int64_t, int64_t, int64_t, Vec<S>*, int64_t); \
  template void store_tiles<S>(const View&, int64_t, int64_t, int64_t, int64_t, int64_t, const Vec<S>*,    \
                               int64_t);

MAMBA_AOT_TILES_OF(float)
// Where with_lane_type has it.
#if !defined(__AVX2__)
MAMBA_AOT_TILES_OF(double)
#endif

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
