// rotary_embedding on the CPU: positions in parallel, vectors along half a head.
#include "rotary_embedding.h"

namespace ragvl {
namespace {

// All heads of one position; `out` has them side by side.
template <class T>
void rotate(const T* x, int64_t head_stride, const T* cos, const T* sin, int64_t heads, int64_t dim,
            T* out) {
  const int64_t half = dim / 2;
  for (int64_t head = 0; head < heads; ++head, x += head_stride, out += dim) {
#pragma omp simd
    for (int64_t i = 0; i < half; ++i) {
      const float first = to_float(x[i]), second = to_float(x[half + i]);
      from_float(first * to_float(cos[i]) - second * to_float(sin[i]), out + i);
      from_float(second * to_float(cos[half + i]) + first * to_float(sin[half + i]),
                 out + half + i);
    }
  }
}

template <class T>
void all_positions(const RotaryEmbeddingParams& p, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t position = 0; position < p.batch * p.length; ++position) {
    const int64_t item = position / p.length, token = position % p.length;
    const int64_t angle = item * p.angle_stride + token * p.dim;
    const T* cos = static_cast<const T*>(p.cos) + angle;
    const T* sin = static_cast<const T*>(p.sin) + angle;
    rotate(at<T>(p.q, item, 0, token), p.q.stride[1], cos, sin, p.heads, p.dim,
           static_cast<T*>(p.q_out) + position * p.heads * p.dim);
    rotate(at<T>(p.k, item, 0, token), p.k.stride[1], cos, sin, p.kv_heads, p.dim,
           static_cast<T*>(p.k_out) + position * p.kv_heads * p.dim);
  }
}

}  // namespace

namespace RAGVL_ISA {

void rotary_embedding(const RotaryEmbeddingParams& p, int threads) {
  dispatch(p.dtype, [&](auto zero) { all_positions<decltype(zero)>(p, threads); });
}

}  // namespace RAGVL_ISA
}  // namespace ragvl
