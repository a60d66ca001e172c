// diffusion_noise on CUDA: a thread takes four neighbouring elements, whose numbers one counter
// gives.
#include <cuda_runtime.h>

#include <algorithm>

#include "diffusion_noise.h"

namespace ragvl {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 20;  // beyond that a thread takes more than one counter

template <class T>
struct alignas(sizeof(T) * 4) Four {
  T item[4];
};

// The four elements are of one row and one item, and the pointers are aligned to four.
template <class T>
__device__ void four_at_once(const DiffusionNoiseParams& p, int64_t first) {
  Four<T> x = *reinterpret_cast<const Four<T>*>(static_cast<const T*>(p.x) + first);
  if (p.rows == nullptr || p.rows[first / p.dim]) {
    const int64_t item = first / p.item_size;
    const float signal = p.signal[item], scale = p.scale[item];
    float n[4];
    if (p.noise) {
      const auto given = *reinterpret_cast<const Four<T>*>(static_cast<const T*>(p.noise) + first);
      for (int i = 0; i < 4; ++i) n[i] = to_float(given.item[i]);
    } else {
      four_normals(p.seed, static_cast<uint64_t>(first) / 4, n, n + 1, n + 2, n + 3);
    }
    for (int i = 0; i < 4; ++i) {
      from_float(signal * to_float(x.item[i]) + scale * n[i], &x.item[i]);
    }
  }
  *reinterpret_cast<Four<T>*>(static_cast<T*>(p.out) + first) = x;
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

bool aligned(const void* pointer, size_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

template <class T>
void launch(const DiffusionNoiseParams& p, cudaStream_t stream) {
  const bool packed = p.dim % 4 == 0 && aligned(p.x, sizeof(Four<T>)) &&
                      aligned(p.noise, sizeof(Four<T>)) && aligned(p.out, sizeof(Four<T>));
  const auto kernel = packed ? diffusion_noise_kernel<T, true> : diffusion_noise_kernel<T, false>;
  const int64_t blocks = (p.size + 4 * kThreads - 1) / (4 * kThreads);
  kernel<<<static_cast<unsigned>(std::min(blocks, kMaxBlocks)), kThreads, 0, stream>>>(p);
}

}  // namespace

const char* diffusion_noise_cuda(const DiffusionNoiseParams& p, void* stream) {
  if (p.size == 0) return nullptr;  // a grid of no blocks is an error
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  switch (p.dtype) {
    case DType::float32:
      launch<float>(p, cuda_stream);
      break;
    case DType::bfloat16:
      launch<BFloat16>(p, cuda_stream);
      break;
    case DType::float16:
      launch<Float16>(p, cuda_stream);
      break;
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace ragvl
