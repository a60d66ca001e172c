// residual_rms_norm on the CPU: rows in parallel, vectors along them.
#include "residual_rms_norm.h"

#include <cmath>

namespace ragvl {
namespace {

template <class T>
void one_row(const ResidualRmsNormParams& p, int64_t row) {
  const int64_t dim = p.dim, first = row * dim;
  const T* x = static_cast<const T*>(p.x) + first;
  const T* weight = static_cast<const T*>(p.weight);
  T* normed = static_cast<T*>(p.normed) + first;
  if (p.residual) {
    const T* residual = static_cast<const T*>(p.residual) + first;
    T* summed = static_cast<T*>(p.summed) + first;
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) {
      from_float(to_float(x[i]) + to_float(residual[i]), summed + i);
    }
    x = summed;
  }
  float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < dim; ++i) squares += to_float(x[i]) * to_float(x[i]);
  const float scale = 1.0f / sqrtf(squares / static_cast<float>(dim) + p.eps);
#pragma omp simd
  for (int64_t i = 0; i < dim; ++i) {
    from_float(to_float(x[i]) * scale * (p.offset + to_float(weight[i])), normed + i);
  }
}

template <class T>
void all_rows(const ResidualRmsNormParams& p, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t row = 0; row < p.rows; ++row) one_row<T>(p, row);
}

}  // namespace

namespace RAGVL_ISA {

void residual_rms_norm(const ResidualRmsNormParams& p, int threads) {
  dispatch(p.dtype, [&](auto zero) { all_rows<decltype(zero)>(p, threads); });
}

}  // namespace RAGVL_ISA
}  // namespace ragvl
