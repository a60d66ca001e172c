// int8_linear: its inputs as 8-bit numbers, a scale each row; oneDNN multiplies them. See
// ragvl/ops/int8_linear.py.
#pragma once

#include <cstdint>

#include "isa.h"
#include "params.h"
#include "types.h"

namespace ragvl {

// All contiguous; the caller has checked everything.
#define RAGVL_INT8_LINEAR_FIELDS(F)                             \
  F(const void*, x)  /* [rows, dim] of `dtype` */               \
  F(uint8_t*, codes) /* [rows, dim] out, 128 stands for zero */ \
  F(float*, scales)  /* [rows] out */                           \
  F(int64_t, rows)                                              \
  F(int64_t, dim)                                               \
  F(DType, dtype)
RAGVL_PARAMS(Int8LinearParams, RAGVL_INT8_LINEAR_FIELDS)

RAGVL_DECLARE_CPU_KERNEL(int8_linear, Int8LinearParams)

}  // namespace ragvl
