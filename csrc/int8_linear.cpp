// int8_linear on the CPU, before the product: rows in parallel, vectors along them.
#include "int8_linear.h"

namespace ragvl {
namespace {

// Added to a number of at most 2^22, it rounds it to the nearest whole one, of two as near to the
// even one, and leaves that in the lowest bits. Unlike rintf it vectorises everywhere.
constexpr float rounder = 0x1.8p23f + 128.0f;

template <class T>
void one_row(const Int8LinearParams& p, int64_t row) {
  const T* x = static_cast<const T*>(p.x) + row * p.dim;
  uint8_t* codes = p.codes + row * p.dim;
  // Magnitudes are compared as whole numbers, which have the same order, and NaN above infinity
  uint32_t largest = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < p.dim; ++i) {
    const uint32_t magnitude = bits_of_float(to_float(x[i])) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  const float scale = float_of_bits(largest) / 127.0f;
  const bool is_finite = largest < 0x7f800000u;
  const bool is_normal = is_finite && scale >= 0x1p-126f;  // else there is no inverse
  p.scales[row] = is_normal ? scale : is_finite ? 0.0f : float_of_bits(0x7fc00000u);
  const float inverse = is_normal ? 1.0f / scale : 0.0f;
#pragma omp simd
  for (int64_t i = 0; i < p.dim; ++i) {
    codes[i] = static_cast<uint8_t>(bits_of_float(to_float(x[i]) * inverse + rounder));
  }
}

template <class T>
void all_rows(const Int8LinearParams& p, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t row = 0; row < p.rows; ++row) one_row<T>(p, row);
}

}  // namespace

namespace RAGVL_ISA {

void int8_linear(const Int8LinearParams& p, int threads) {
  dispatch(p.dtype, [&](auto zero) { all_rows<decltype(zero)>(p, threads); });
}

}  // namespace RAGVL_ISA
}  // namespace ragvl
