// rotary_embedding: rotates queries and keys by their positions; see
// ragvl/ops/rotary_embedding.py for the equation.
#pragma once

#include <cstdint>

#include "isa.h"
#include "params.h"
#include "types.h"

namespace ragvl {

// All of `dtype`; the elements of a head lie side by side. The caller has checked everything.
#define RAGVL_ROTARY_EMBEDDING_FIELDS(F)                                           \
  F(View<3>, q)            /* [batch, heads, length, dim] */                       \
  F(View<3>, k)            /* [batch, kv_heads, length, dim] */                    \
  F(const void*, cos)      /* [batch, length, dim] */                              \
  F(const void*, sin)      /* [batch, length, dim] */                              \
  F(int64_t, angle_stride) /* of cos and sin, from item to item; 0 if it is one */ \
  F(void*, q_out)          /* [batch, length, heads, dim], contiguous */           \
  F(void*, k_out)          /* [batch, length, kv_heads, dim], contiguous */        \
  F(int64_t, batch)                                                                \
  F(int64_t, heads)                                                                \
  F(int64_t, kv_heads)                                                             \
  F(int64_t, length)                                                               \
  F(int64_t, dim) /* even */                                                       \
  F(DType, dtype)
RAGVL_PARAMS(RotaryEmbeddingParams, RAGVL_ROTARY_EMBEDDING_FIELDS)

RAGVL_DECLARE_CPU_KERNEL(rotary_embedding, RotaryEmbeddingParams)

}  // namespace ragvl
