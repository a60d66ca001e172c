// prefix_attention: suffixes attend to cached prefixes that lie in pages; see
// ragvl/ops/prefix_attention.py for the equation.
#pragma once

#include <cstdint>

#include "isa.h"
#include "params.h"
#include "types.h"

namespace ragvl {

// The caller has checked everything (ragvl/ops/prefix_attention.py), the tables' values too.
// Pages hold `dtype`; with scales int8; with scales and minima int4, two numbers in a byte.
#define RAGVL_PREFIX_ATTENTION_FIELDS(F)                                                           \
  F(View<2>, q)               /* [rows, heads, dim], or [batch, heads, dim] with last_only */      \
  F(View<2>, k)               /* [rows, kv_heads, dim] */                                          \
  F(View<2>, v)               /* [rows, kv_heads, dim] */                                          \
  F(const void*, key_pages)   /* [pages, kv_heads, dim, page_size]; int4: half of dim */           \
  F(const void*, value_pages) /* [pages, kv_heads, page_size, dim]; int4: half of dim */           \
  F(const void*, key_scales) /* float [pages, kv_heads, page_size]; int4: Float16 [.., .., dim] */ \
  F(const void*, value_scales)      /* float, int4: Float16 [pages, kv_heads, page_size] */        \
  F(const void*, key_minima)        /* int4: Float16 [pages, kv_heads, dim] */                     \
  F(const void*, value_minima)      /* int4: Float16 [pages, kv_heads, page_size] */               \
  F(const int32_t*, page_table)     /* [batch, table_width] */                                     \
  F(const int32_t*, prefix_lengths) /* [batch] */                                                  \
  F(const int32_t*, suffix_starts)  /* [batch] */                                                  \
  F(const int32_t*, suffix_lengths) /* [batch] */                                                  \
  F(void*, out) /* shaped like q, contiguous; the caller has filled it with zeros */               \
  F(int64_t, batch)                                                                                \
  F(int64_t, heads)                                                                                \
  F(int64_t, kv_heads)                                                                             \
  F(int64_t, dim)                                                                                  \
  F(int64_t, page_size) /* a multiple of 16 */                                                     \
  F(int64_t, table_width)                                                                          \
  F(int64_t, sliding_window) /* at least 1; longer than anything where there is none */            \
  F(float, scale)                                                                                  \
  F(bool, last_only)                                                                               \
  F(DType, dtype)
RAGVL_PARAMS(PrefixAttentionParams, RAGVL_PREFIX_ATTENTION_FIELDS)

RAGVL_DECLARE_CPU_KERNEL(prefix_attention, PrefixAttentionParams)

}  // namespace ragvl
