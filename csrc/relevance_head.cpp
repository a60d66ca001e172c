// relevance_head on the CPU: prompts in parallel, vectors along the hidden size.
#include "relevance_head.h"

namespace ragvl {
namespace {

// head . normed(x). What is absent is known when compiling: a test of it inside the loop would keep
// the compiler from vectorising.
template <class T, bool has_weight, bool has_bias>
float product(const RelevanceHeadParams& p, const T* x, const float* head, float mean,
              float inv_std) {
  const float* weight = p.norm_weight;
  const float* bias = p.norm_bias;
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < p.dim; ++i) {
    sum += head[i] * normed(to_float(x[i]), mean, inv_std, has_weight ? weight[i] : 1.0f,
                            has_bias ? bias[i] : 0.0f);
  }
  return sum;
}

template <class T>
void one_prompt(const RelevanceHeadParams& p, int64_t prompt) {
  const int64_t row = p.last_index[prompt];
  if (row < 0 || row >= p.rows) {
    write_prompt(p, prompt, NAN, NAN);
    return;
  }
  const T* x = static_cast<const T*>(p.hidden) + row * p.row_stride;
  const int64_t dim = p.dim;

  float mean = 0.0f;
  if (p.norm == Norm::layer) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < dim; ++i) sum += to_float(x[i]);
    mean = sum / static_cast<float>(dim);
  }

  float inv_std = 1.0f;
  if (p.norm != Norm::none) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < dim; ++i) {
      const float centred = to_float(x[i]) - mean;
      sum += centred * centred;
    }
    inv_std = inverse_std(sum, dim, p.eps);
  }

  const auto head_product =
      p.norm_weight ? (p.norm_bias ? product<T, true, true> : product<T, true, false>)
                    : (p.norm_bias ? product<T, false, true> : product<T, false, false>);
  LogSumExp yes, no;
  for (int64_t r = 0; r < p.num_head_rows; ++r) {
    float logit = head_product(p, x, p.head_rows + r * dim, mean, inv_std);
    if (p.head_bias) logit += p.head_bias[r];
    logit = capped(logit, p.softcap);
    if (r < p.num_yes) {
      yes.add(logit);
    } else {
      no.add(logit);
    }
  }
  write_prompt(p, prompt, yes.value(), no.value());
}

template <class T>
void all_prompts(const RelevanceHeadParams& p, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t prompt = 0; prompt < p.batch; ++prompt) one_prompt<T>(p, prompt);
}

}  // namespace

namespace RAGVL_ISA {

void relevance_head(const RelevanceHeadParams& p, int threads) {
  dispatch(p.dtype, [&](auto zero) { all_prompts<decltype(zero)>(p, threads); });
}

}  // namespace RAGVL_ISA
}  // namespace ragvl
