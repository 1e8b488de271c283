// Products of a few vectors with a matrix in half precision, which take the time to read the matrix. Compiled
// once per instruction set.
#include "cpu/storage.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {
namespace {

// Rows of the matrix that are read side by side, so that what is loaded of a vector meets all of them.
constexpr int kRows = 4;
constexpr int kLanes = Simd<float>::kLanes;

// out[i] = row i . x for kCount rows of `width` numbers. Two sums a row, each in one order.
template <int kCount, class T>
MAMBA_AOT_INLINE void multiply(const T* matrix, const T* x, int64_t width, T* out) {
  VecF sums[kCount][2] = {};
  int64_t k = 0;
  for (; k + 2 * kLanes <= width; k += 2 * kLanes) {
    const VecF first = load_row<float>(x + k), second = load_row<float>(x + k + kLanes);
#pragma GCC unroll 4
    for (int row = 0; row < kCount; ++row) {
      // The next rows: a row is too short for the machine to see a pattern before it ends.
      __builtin_prefetch(matrix + (kCount + row) * width + k);
      sums[row][0] = fma(load_row<float>(matrix + row * width + k), first, sums[row][0]);
      sums[row][1] = fma(load_row<float>(matrix + row * width + k + kLanes), second, sums[row][1]);
    }
  }
  // Unrolled too, or the sums would live in memory.
#pragma GCC unroll 4
  for (int row = 0; row < kCount; ++row) {
    const VecF lanes = sums[row][0] + sums[row][1];
    float sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
    for (int64_t rest = k; rest < width; ++rest) sum += widen(matrix[row * width + rest]) * widen(x[rest]);
    out[row] = Narrow<T>::from(sum);
  }
}

template <class T>
void multiply_rows(const T* matrix, const T* x, int64_t x_row, int64_t batch, int64_t rows, int64_t width,
                   int64_t begin, int64_t end, T* out) {
  int64_t row = begin;
  for (; row + kRows <= end; row += kRows) {
    for (int64_t b = 0; b < batch; ++b) {
      multiply<kRows>(matrix + row * width, x + b * x_row, width, out + b * rows + row);
    }
  }
  for (; row < end; ++row) {
    for (int64_t b = 0; b < batch; ++b) {
      multiply<1>(matrix + row * width, x + b * x_row, width, out + b * rows + row);
    }
  }
}

}  // namespace

// out [batch, rows] = x [batch, width] times the rows [begin, end) of matrix [rows, width], float16 or
// bfloat16; x may have longer rows.
void few_rows_product(DType dtype, const void* matrix, const void* x, int64_t x_row, int64_t batch,
                      int64_t rows, int64_t width, int64_t begin, int64_t end, void* out) {
  if (dtype == DType::bf16) {
    multiply_rows(static_cast<const BFloat16*>(matrix), static_cast<const BFloat16*>(x), x_row, batch, rows,
                  width, begin, end, static_cast<BFloat16*>(out));
  } else {
    multiply_rows(static_cast<const Half*>(matrix), static_cast<const Half*>(x), x_row, batch, rows, width,
                  begin, end, static_cast<Half*>(out));
  }
}

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
