// relevance_head: the relevance of each prompt from its last hidden state; see
// ragvl/ops/relevance_head.py for the equation. The maths of one element is here, the loops around
// it are in relevance_head.cpp (CPU) and relevance_head.cu (CUDA).
#pragma once

#include <cmath>
#include <cstdint>

#include "isa.h"
#include "params.h"
#include "types.h"

namespace ragvl {

enum class Norm { none, rms, layer };

// The caller has checked everything (ragvl/ops/relevance_head.py) but the values of last_index:
// a prompt whose index lies outside [0, rows) gets NaN.
#define RAGVL_RELEVANCE_HEAD_FIELDS(F)                                              \
  F(const void*, hidden)        /* [rows, dim] of `dtype`; a row is contiguous */   \
  F(int64_t, row_stride)        /* elements from one row of `hidden` to the next */ \
  F(const int64_t*, last_index) /* [batch] */                                       \
  F(const float*, norm_weight)  /* [dim] or null */                                 \
  F(const float*, norm_bias)    /* [dim] or null */                                 \
  F(const float*, head_rows)    /* [num_head_rows, dim] */                          \
  F(const float*, head_bias)    /* [num_head_rows] or null */                       \
  F(float*, logits)             /* [batch, 2] out: (yes, no) */                     \
  F(float*, relevance)          /* [batch] out */                                   \
  F(int64_t, rows)                                                                  \
  F(int64_t, batch)                                                                 \
  F(int64_t, dim)                                                                   \
  F(int64_t, num_head_rows)                                                         \
  F(int64_t, num_yes) /* the first `num_yes` head rows spell Yes, the rest No */    \
  F(float, eps)                                                                     \
  F(float, softcap) /* 0: none */                                                   \
  F(DType, dtype)                                                                   \
  F(Norm, norm)
RAGVL_PARAMS(RelevanceHeadParams, RAGVL_RELEVANCE_HEAD_FIELDS)

RAGVL_DECLARE_CPU_KERNEL(relevance_head, RelevanceHeadParams)

// Launches on `stream` (a cudaStream_t) of the current device; returns an error message or null.
const char* relevance_head_cuda(const RelevanceHeadParams& params, void* stream);

namespace {

RAGVL_HD inline float normed(float x, float mean, float inv_std, float weight, float bias) {
  return (x - mean) * inv_std * weight + bias;
}

RAGVL_HD inline float inverse_std(float sum_of_squares, int64_t dim, float eps) {
  return 1.0f / sqrtf(sum_of_squares / static_cast<float>(dim) + eps);
}

RAGVL_HD inline float capped(float logit, float softcap) {
  return softcap > 0.0f ? softcap * tanhf(logit / softcap) : logit;
}

// log(sum(exp(logits))), one logit at a time; exact for a single logit.
struct LogSumExp {
  float max = -INFINITY;
  float sum = 0.0f;  // of exp(logit - max)

  RAGVL_HD void add(float logit) {
    if (logit == max) {  // on its own: the difference of two equal infinities is NaN
      sum += 1.0f;
    } else if (logit < max) {
      sum += expf(logit - max);
    } else {  // a new maximum, or NaN, which stays
      sum = sum * expf(max - logit) + 1.0f;
      max = logit;
    }
  }
  RAGVL_HD float value() const { return max + logf(sum); }
};

// softmax([yes, no])[0] without overflow on either side.
RAGVL_HD inline float relevance_of(float yes, float no) {
  const float log_odds = yes - no;
  const float tail = expf(-fabsf(log_odds));
  return (log_odds < 0.0f ? tail : 1.0f) / (1.0f + tail);
}

// Writes the results of one prompt.
RAGVL_HD inline void write_prompt(const RelevanceHeadParams& p, int64_t prompt, float yes,
                                  float no) {
  p.logits[2 * prompt] = yes;
  p.logits[2 * prompt + 1] = no;
  p.relevance[prompt] = relevance_of(yes, no);
}

}  // namespace
}  // namespace ragvl
