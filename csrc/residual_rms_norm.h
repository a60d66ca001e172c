// residual_rms_norm: a residual connection and the RMS norm behind it; see
// ragvl/ops/residual_rms_norm.py for the equation.
#pragma once

#include <cstdint>

#include "isa.h"
#include "params.h"
#include "types.h"

namespace ragvl {

// All of `dtype` and contiguous; the caller has checked everything.
#define RAGVL_RESIDUAL_RMS_NORM_FIELDS(F)                                 \
  F(const void*, x)        /* [rows, dim] */                              \
  F(const void*, residual) /* [rows, dim] or null */                      \
  F(const void*, weight)   /* [dim] */                                    \
  F(void*, summed)         /* [rows, dim] out, where there is residual */ \
  F(void*, normed)         /* [rows, dim] out */                          \
  F(int64_t, rows)                                                        \
  F(int64_t, dim)                                                         \
  F(float, eps)                                                           \
  F(float, offset) /* of the weight */                                    \
  F(DType, dtype)
RAGVL_PARAMS(ResidualRmsNormParams, RAGVL_RESIDUAL_RMS_NORM_FIELDS)

RAGVL_DECLARE_CPU_KERNEL(residual_rms_norm, ResidualRmsNormParams)

}  // namespace ragvl
