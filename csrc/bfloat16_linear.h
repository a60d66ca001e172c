// bfloat16_linear: rows times a weight, both in bfloat16. See ragvl/ops/bfloat16_linear.py.
#pragma once

#include <cstdint>

#include "isa.h"
#include "params.h"
#include "types.h"

namespace ragvl {

// All contiguous and in bfloat16; the caller has checked everything. Rows are read from `scratch`
// where x cannot be read in whole tiles: all of them, or those after the last whole 16.
#define RAGVL_BFLOAT16_LINEAR_FIELDS(F)                                                            \
  F(const void*, x)      /* [rows, dim] */                                                         \
  F(void*, scratch)      /* [rows up to a multiple of 16, less first_copied, padded_dim] */        \
  F(const void*, weight) /* [columns, dim] */                                                      \
  F(const void*, bias)   /* [columns], or null */                                                  \
  F(void*, out)          /* [rows, columns] */                                                     \
  F(int64_t, rows)                                                                                 \
  F(int64_t, dim)                                                                                  \
  F(int64_t, padded_dim)   /* a multiple of 32 */                                                  \
  F(int64_t, first_copied) /* the first row that is read from `scratch`: 0, or a multiple of 16 */ \
  F(int64_t, columns)
RAGVL_PARAMS(BFloat16LinearParams, RAGVL_BFLOAT16_LINEAR_FIELDS)

RAGVL_DECLARE_CPU_KERNEL(bfloat16_linear, BFloat16LinearParams)

}  // namespace ragvl
