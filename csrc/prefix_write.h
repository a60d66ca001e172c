// prefix_write: keys and values of new prefixes go into pages; see ragvl/ops/prefix_write.py for
// the equation.
#pragma once

#include <cstdint>

#include "isa.h"
#include "params.h"
#include "types.h"

namespace ragvl {

// The caller has checked everything (ragvl/ops/prefix_write.py), the tables' values too.
// Pages hold `dtype`; with scales int8; with scales and minima int4, two numbers in a byte.
#define RAGVL_PREFIX_WRITE_FIELDS(F)                                                           \
  F(View<3>, k)          /* [batch, kv_heads, tokens, dim] */                                  \
  F(View<3>, v)          /* [batch, kv_heads, tokens, dim] */                                  \
  F(void*, key_pages)    /* [pages, kv_heads, dim, page_size]; int4: half of dim */            \
  F(void*, value_pages)  /* [pages, kv_heads, page_size, dim]; int4: half of dim */            \
  F(void*, key_scales)   /* float [pages, kv_heads, page_size]; int4: Float16 [.., .., dim] */ \
  F(void*, value_scales) /* float, int4: Float16 [pages, kv_heads, page_size] */               \
  F(void*, key_minima)   /* int4: Float16 [pages, kv_heads, dim] */                            \
  F(void*, value_minima) /* int4: Float16 [pages, kv_heads, page_size] */                      \
  F(const int32_t*, page_table)     /* [batch, table_width] */                                 \
  F(const int32_t*, prefix_lengths) /* [batch] */                                              \
  F(int64_t, batch)                                                                            \
  F(int64_t, kv_heads)                                                                         \
  F(int64_t, dim)                                                                              \
  F(int64_t, page_size)                                                                        \
  F(int64_t, table_width)                                                                      \
  F(DType, dtype)
RAGVL_PARAMS(PrefixWriteParams, RAGVL_PREFIX_WRITE_FIELDS)

RAGVL_DECLARE_CPU_KERNEL(prefix_write, PrefixWriteParams)

}  // namespace ragvl
