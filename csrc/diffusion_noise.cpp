// diffusion_noise on the CPU: spans of elements in parallel, vectors along the counters.
#include "diffusion_noise.h"

#include <algorithm>

namespace ragvl {
namespace {

constexpr int64_t span_size = 1 << 13;  // elements that a thread takes at once
constexpr int64_t block_counters = 64;  // whose normals are drawn at once
constexpr int64_t block_size = 4 * block_counters;

// The normals of elements `first`, a multiple of 4, to first + block_size - 1. In two loops: in one
// the compiler finds no registers.
void draw(uint64_t seed, int64_t first, float* normals) {
  alignas(64) uint32_t words[4][block_counters];
  alignas(64) float n[4][block_counters];
  const uint64_t counter = static_cast<uint64_t>(first) / 4;
#pragma omp simd
  for (int64_t j = 0; j < block_counters; ++j) {
    const Bits bits = philox(seed, counter + j);
    for (int64_t i = 0; i < 4; ++i) words[i][j] = bits.word[i];
  }
  for (int64_t i = 0; i < 4; i += 2) {
#pragma omp simd
    for (int64_t j = 0; j < block_counters; ++j) {
      box_muller(words[i][j], words[i + 1][j], &n[i][j], &n[i + 1][j]);
    }
  }
  for (int64_t j = 0; j < block_counters; ++j) {
    for (int64_t i = 0; i < 4; ++i) normals[4 * j + i] = n[i][j];
  }
}

template <class T, class Noise>
void mix(const T* x, const Noise* noise, float signal, float scale, int64_t size, T* out) {
#pragma omp simd
  for (int64_t j = 0; j < size; ++j) {
    from_float(signal * to_float(x[j]) + scale * to_float(noise[j]), out + j);
  }
}

// Elements [begin, end), which have one signal and scale and are all to be noised.
template <class T>
void noise_run(const DiffusionNoiseParams& p, int64_t begin, int64_t end) {
  const T* x = static_cast<const T*>(p.x);
  T* out = static_cast<T*>(p.out);
  const float signal = p.signal[begin / p.item_size], scale = p.scale[begin / p.item_size];
  if (p.noise) {
    mix(x + begin, static_cast<const T*>(p.noise) + begin, signal, scale, end - begin, out + begin);
    return;
  }
  alignas(64) float normals[block_size];
  for (int64_t first = begin / 4 * 4; first < end; first += block_size) {
    draw(p.seed, first, normals);
    const int64_t from = std::max(first, begin), to = std::min(first + block_size, end);
    mix(x + from, normals + (from - first), signal, scale, to - from, out + from);
  }
}

template <class T>
void span(const DiffusionNoiseParams& p, int64_t begin, int64_t end) {
  const auto marked = [&](int64_t row) { return p.rows == nullptr || p.rows[row]; };
  while (begin < end) {
    // A run of elements alike: of rows marked or not, within one item.
    const bool noised = marked(begin / p.dim);
    int64_t stop = std::min(end, (begin / p.item_size + 1) * p.item_size);
    if (p.rows) {
      int64_t row = begin / p.dim + 1;
      while (row * p.dim < stop && marked(row) == noised) ++row;
      stop = std::min(stop, row * p.dim);
    }
    if (noised) {
      noise_run<T>(p, begin, stop);
    } else {
      std::copy_n(static_cast<const T*>(p.x) + begin, stop - begin, static_cast<T*>(p.out) + begin);
    }
    begin = stop;
  }
}

template <class T>
void all_spans(const DiffusionNoiseParams& p, int threads) {
  const int64_t spans = (p.size + span_size - 1) / span_size;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic)
  for (int64_t n = 0; n < spans; ++n) {
    span<T>(p, n * span_size, std::min(p.size, (n + 1) * span_size));
  }
}

}  // namespace

namespace RAGVL_ISA {

void diffusion_noise(const DiffusionNoiseParams& p, int threads) {
  dispatch(p.dtype, [&](auto zero) { all_spans<decltype(zero)>(p, threads); });
}

}  // namespace RAGVL_ISA
}  // namespace ragvl
