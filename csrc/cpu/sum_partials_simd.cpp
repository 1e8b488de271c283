// Adds up what work items summed apart, always in the order of the items. Compiled once per instruction set.
#include "cpu/simd.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {
namespace {

template <class S>
void sum_rows(const S* parts, int64_t count, int64_t size, int64_t begin, int64_t end, S* out) {
  for (int64_t i = begin; i < end; ++i) {
    double sum = 0;
    for (int64_t p = 0; p < count; ++p) sum += parts[p * size + i];
    out[i] = static_cast<S>(sum);
  }
}

}  // namespace

// out[o, i] = sum over p < count of parts[o, p, i], for the flat range [begin, end) of [outer, size].
void sum_partials(const void* parts, int64_t count, int64_t size, int64_t begin, int64_t end, bool float64,
                  void* out) {
  while (begin < end) {
    const int64_t o = begin / size, first = begin - o * size;
    const int64_t last = end - o * size < size ? end - o * size : size;
    with_lane_type(float64, [&](auto lane) {
      using S = decltype(lane);
      sum_rows(static_cast<const S*>(parts) + o * count * size, count, size, first, last,
               static_cast<S*>(out) + o * size);
    });
    begin = o * size + last;
  }
}

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
