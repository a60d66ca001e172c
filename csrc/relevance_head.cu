// relevance_head on CUDA: one block per prompt, one launch for gather, norm, products and softmax.
#include <cuda_runtime.h>

#include "cuda_status.h"
#include "pack.h"
#include "relevance_head.h"

namespace ragvl {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;

template <int N>
__device__ Pack<float, N> load_or(const float* pointer, int64_t i, float otherwise) {
  if (pointer) return load<N>(pointer, i);
  Pack<float, N> pack;
  for (float& item : pack.item) item = otherwise;
  return pack;
}

// The sum over the block, in every thread; always added in the same order.
__device__ float block_sum(float value) {
  __shared__ float of_warp[kThreads / kWarp];
  for (int step = kWarp / 2; step > 0; step /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, step);
  }
  __syncthreads();  // the last call's readers are done
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = value;
  __syncthreads();
  float sum = 0.0f;
  for (float part : of_warp) sum += part;
  return sum;
}

// N: elements a thread loads at once, 1 where alignment or an odd `dim` forbids more.
template <class T, int N>
__global__ void relevance_head_kernel(const RelevanceHeadParams p) {
  const int64_t prompt = blockIdx.x;
  const int64_t row = p.last_index[prompt];
  if (row < 0 || row >= p.rows) {
    if (threadIdx.x == 0) write_prompt(p, prompt, NAN, NAN);
    return;
  }
  const T* x = static_cast<const T*>(p.hidden) + row * p.row_stride;
  const int64_t first = static_cast<int64_t>(threadIdx.x) * N;
  constexpr int64_t step = kThreads * N;

  float mean = 0.0f;
  if (p.norm == Norm::layer) {
    float sum = 0.0f;
    for (int64_t i = first; i < p.dim; i += step) {
      const Pack<T, N> xs = load<N>(x, i);
      for (int j = 0; j < N; ++j) sum += to_float(xs.item[j]);
    }
    mean = block_sum(sum) / static_cast<float>(p.dim);
  }

  float inv_std = 1.0f;
  if (p.norm != Norm::none) {
    float sum = 0.0f;
    for (int64_t i = first; i < p.dim; i += step) {
      const Pack<T, N> xs = load<N>(x, i);
      for (int j = 0; j < N; ++j) {
        const float centred = to_float(xs.item[j]) - mean;
        sum += centred * centred;
      }
    }
    inv_std = inverse_std(block_sum(sum), p.dim, p.eps);
  }

  LogSumExp yes, no;
  for (int64_t r = 0; r < p.num_head_rows; ++r) {
    float logit = 0.0f;
    for (int64_t i = first; i < p.dim; i += step) {
      const Pack<T, N> xs = load<N>(x, i);
      const Pack<float, N> head = load<N>(p.head_rows + r * p.dim, i);
      const Pack<float, N> weight = load_or<N>(p.norm_weight, i, 1.0f);
      const Pack<float, N> bias = load_or<N>(p.norm_bias, i, 0.0f);
      for (int j = 0; j < N; ++j) {
        const float x_normed =
            normed(to_float(xs.item[j]), mean, inv_std, weight.item[j], bias.item[j]);
        logit += head.item[j] * x_normed;
      }
    }
    logit = block_sum(logit);
    if (p.head_bias) logit += p.head_bias[r];
    logit = capped(logit, p.softcap);
    if (r < p.num_yes) {
      yes.add(logit);
    } else {
      no.add(logit);
    }
  }
  if (threadIdx.x == 0) write_prompt(p, prompt, yes.value(), no.value());
}

template <class T>
void launch(const RelevanceHeadParams& p, cudaStream_t stream) {
  constexpr int N = 4;
  const bool packed = p.dim % N == 0 && p.row_stride % N == 0 && aligned<T, N>(p.hidden) &&
                      aligned<float, N>(p.head_rows) && aligned<float, N>(p.norm_weight) &&
                      aligned<float, N>(p.norm_bias);
  const auto kernel = packed ? relevance_head_kernel<T, N> : relevance_head_kernel<T, 1>;
  kernel<<<static_cast<unsigned>(p.batch), kThreads, 0, stream>>>(p);
}

}  // namespace

const char* relevance_head_cuda(const RelevanceHeadParams& p, void* stream) {
  if (p.batch == 0) return nullptr;  // a grid of no blocks is an error
  dispatch(p.dtype,
           [&](auto zero) { launch<decltype(zero)>(p, static_cast<cudaStream_t>(stream)); });
  return launch_problem();
}

}  // namespace ragvl
