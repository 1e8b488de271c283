// Products of a few vectors with a matrix, which take the time to read the matrix. Compiled
// once per instruction set.
#include "cpu/storage.h"

namespace mamba_aot::cpu::MAMBA_AOT_ISA {
namespace {

constexpr int kLanes = Simd<float>::kLanes;
// Sums of a row, each in one order.
constexpr int kSums = 4;
// How far ahead the matrix is asked for: one row after the other, it is a single stream.
constexpr int64_t kAheadBytes = 2048;

// row . x for `width` numbers.
template <class T>
MAMBA_AOT_INLINE float multiply(const T* row, const float* x, int64_t width) {
  VecF sums[kSums] = {};
  int64_t k = 0;
  for (; k + kSums * kLanes <= width; k += kSums * kLanes) {
#pragma GCC unroll 4
    for (int i = 0; i < kSums; ++i) {
      const int64_t at = k + i * kLanes;
      // Once a cache line.
      if (at * sizeof(T) % 64 == 0) __builtin_prefetch(reinterpret_cast<const char*>(row + at) + kAheadBytes);
      sums[i] = fma(load_row<float>(row + at), load<float>(x + at), sums[i]);
    }
  }
  // Rows of a projection of low rank end here.
  for (; k + kLanes <= width; k += kLanes) {
    sums[0] = fma(load_row<float>(row + k), load<float>(x + k), sums[0]);
  }
  float sum = sum_of_lanes<float>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; k < width; ++k) sum += widen(row[k]) * x[k];
  return sum;
}

template <class T>
void multiply_rows(const T* matrix, const T* x, int64_t x_row, int64_t batch, int64_t rows, int64_t width,
                   int64_t begin, int64_t end, float* wide_x, T* out) {
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t k = 0; k < width; ++k) wide_x[b * width + k] = widen(x[b * x_row + k]);
  }
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t b = 0; b < batch; ++b) {
      out[b * rows + row] = Narrow<T>::from(multiply(matrix + row * width, wide_x + b * width, width));
    }
  }
}

// As torch orders them: NaN is greater than any number.
template <class T>
int64_t first_greatest(const T* row, int64_t size) {
  int64_t found = 0;
  auto greatest = widen(row[0]);
  for (int64_t k = 1; k < size && greatest == greatest; ++k) {
    const auto number = widen(row[k]);
    if (number <= greatest) continue;
    found = k;
    greatest = number;
  }
  return found;
}

template <class T>
void greatest_of(const T* x, int64_t stride, int64_t size, int64_t begin, int64_t end, int64_t* out) {
  for (int64_t row = begin; row < end; ++row) out[row] = first_greatest(x + row * stride, size);
}

}  // namespace

// out [batch, rows] = x [batch, width] times the rows [begin, end) of matrix [rows, width], none of
// them float64; x may have longer rows, and `wide_x` has room for it in float32.
void few_rows_product(DType dtype, const void* matrix, const void* x, int64_t x_row, int64_t batch,
                      int64_t rows, int64_t width, int64_t begin, int64_t end, float* wide_x, void* out) {
  if (dtype == DType::f32) {
    multiply_rows(static_cast<const float*>(matrix), static_cast<const float*>(x), x_row, batch, rows, width,
                  begin, end, wide_x, static_cast<float*>(out));
  } else if (dtype == DType::bf16) {
    multiply_rows(static_cast<const BFloat16*>(matrix), static_cast<const BFloat16*>(x), x_row, batch, rows,
                  width, begin, end, wide_x, static_cast<BFloat16*>(out));
  } else {
    multiply_rows(static_cast<const Half*>(matrix), static_cast<const Half*>(x), x_row, batch, rows, width,
                  begin, end, wide_x, static_cast<Half*>(out));
  }
}

// out[row] = where the first of the greatest numbers of a row of x [rows, size] is.
void greatest_of_rows(DType dtype, const void* x, int64_t stride, int64_t size, int64_t begin, int64_t end,
                      int64_t* out) {
  if (dtype == DType::f32) {
    greatest_of(static_cast<const float*>(x), stride, size, begin, end, out);
  } else if (dtype == DType::f64) {
    greatest_of(static_cast<const double*>(x), stride, size, begin, end, out);
  } else if (dtype == DType::bf16) {
    greatest_of(static_cast<const BFloat16*>(x), stride, size, begin, end, out);
  } else {
    greatest_of(static_cast<const Half*>(x), stride, size, begin, end, out);
  }
}

}  // namespace mamba_aot::cpu::MAMBA_AOT_ISA
