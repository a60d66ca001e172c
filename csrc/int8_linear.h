// int8_linear: rows rounded to 8 bits, with a scale each, times a weight in 8 bits. See
// ragvl/ops/int8_linear.py.
#pragma once

#include <cstdint>

#include "isa.h"
#include "params.h"
#include "types.h"

namespace ragvl {

// All contiguous; the caller has checked everything. `weight` holds for each 16 columns, and of
// those for each 4 neighbours along the sum, the columns' numbers one after the other; it is filled
// up with zeros to `padded_dim`, a multiple of 64, and to a multiple of 32 columns.
#define RAGVL_INT8_LINEAR_FIELDS(F)                                                      \
  F(const void*, x)              /* [rows, dim] of `dtype` */                            \
  F(uint8_t*, codes)             /* [rows up to a multiple of 16, padded_dim] scratch */ \
  F(float*, scales)              /* [rows] scratch */                                    \
  F(const int8_t*, weight)       /* [padded columns / 16, padded_dim / 4, 16, 4] */      \
  F(const float*, weight_scales) /* [padded columns] */                                  \
  F(const int32_t*, offsets)     /* [padded columns]: -128 times a column's sum */       \
  F(const void*, bias)           /* [columns] of `dtype`, or null */                     \
  F(void*, out)                  /* [rows, columns] of `dtype` */                        \
  F(int64_t, rows)                                                                       \
  F(int64_t, dim)                                                                        \
  F(int64_t, padded_dim)                                                                 \
  F(int64_t, columns)                                                                    \
  F(DType, dtype)
RAGVL_PARAMS(Int8LinearParams, RAGVL_INT8_LINEAR_FIELDS)

RAGVL_DECLARE_CPU_KERNEL(int8_linear, Int8LinearParams)

}  // namespace ragvl
