// diffusion_noise on CUDA: a thread takes four neighbouring elements, whose numbers one counter
// gives.
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda_status.h"
#include "diffusion_noise.h"
#include "pack.h"

namespace ragvl {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 20;  // beyond that a thread takes more than one counter

// The four elements are of one row and one item, and the pointers are aligned to four.
template <class T>
__device__ void four_at_once(const DiffusionNoiseParams& p, int64_t first) {
  Pack<T, 4> x = load<4>(static_cast<const T*>(p.x), first);
  if (p.rows == nullptr || p.rows[first / p.dim]) {
    const int64_t item = first / p.item_size;
    const float signal = p.signal[item], scale = p.scale[item];
    float n[4];
    if (p.noise) {
      const auto given = load<4>(static_cast<const T*>(p.noise), first);
      for (int i = 0; i < 4; ++i) n[i] = to_float(given.item[i]);
    } else {
      four_normals(p.seed, static_cast<uint64_t>(first) / 4, n, n + 1, n + 2, n + 3);
    }
    for (int i = 0; i < 4; ++i) {
      from_float(signal * to_float(x.item[i]) + scale * n[i], &x.item[i]);
    }
  }
  *reinterpret_cast<Pack<T, 4>*>(static_cast<T*>(p.out) + first) = x;
}

template <class T>
__device__ void one_by_one(const DiffusionNoiseParams& p, int64_t first) {
  float n[4];
  if (!p.noise) four_normals(p.seed, static_cast<uint64_t>(first) / 4, n, n + 1, n + 2, n + 3);
  for (int i = 0; i < 4 && first + i < p.size; ++i) {
    const int64_t element = first + i, item = element / p.item_size;
    T x = static_cast<const T*>(p.x)[element];
    if (p.rows == nullptr || p.rows[element / p.dim]) {
      const float noise = p.noise ? to_float(static_cast<const T*>(p.noise)[element]) : n[i];
      from_float(p.signal[item] * to_float(x) + p.scale[item] * noise, &x);
    }
    static_cast<T*>(p.out)[element] = x;
  }
}

template <class T, bool packed>
__global__ void diffusion_noise_kernel(const DiffusionNoiseParams p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * 4;
  int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * 4;
  for (; first < p.size; first += step) {
    if constexpr (packed) {
      four_at_once<T>(p, first);
    } else {
      one_by_one<T>(p, first);
    }
  }
}

template <class T>
void launch(const DiffusionNoiseParams& p, cudaStream_t stream) {
  const bool packed =
      p.dim % 4 == 0 && aligned<T, 4>(p.x) && aligned<T, 4>(p.noise) && aligned<T, 4>(p.out);
  const auto kernel = packed ? diffusion_noise_kernel<T, true> : diffusion_noise_kernel<T, false>;
  const int64_t blocks = (p.size + 4 * kThreads - 1) / (4 * kThreads);
  kernel<<<static_cast<unsigned>(std::min(blocks, kMaxBlocks)), kThreads, 0, stream>>>(p);
}

}  // namespace

const char* diffusion_noise_cuda(const DiffusionNoiseParams& p, void* stream) {
  if (p.size == 0) return nullptr;  // a grid of no blocks is an error
  dispatch(p.dtype,
           [&](auto zero) { launch<decltype(zero)>(p, static_cast<cudaStream_t>(stream)); });
  return launch_problem();
}

}  // namespace ragvl
