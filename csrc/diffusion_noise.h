// diffusion_noise: diffusion's forward process on marked rows; see ragvl/ops/diffusion_noise.py for
// the equation. The maths of four elements is here, the loops around it are in diffusion_noise.cpp
// (CPU) and diffusion_noise.cu (CUDA).
#pragma once

#include <cmath>
#include <cstdint>

#include "isa.h"
#include "params.h"
#include "types.h"

namespace ragvl {

// The caller has checked everything (ragvl/ops/diffusion_noise.py).
#define RAGVL_DIFFUSION_NOISE_FIELDS(F)                                            \
  F(const void*, x)       /* [size] of `dtype` */                                  \
  F(const bool*, rows)    /* [size / dim] which rows to noise, or null for all */  \
  F(const void*, noise)   /* [size] of `dtype`, or null to draw it */              \
  F(const float*, signal) /* [size / item_size] what x is multiplied by */         \
  F(const float*, scale)  /* [size / item_size] what the noise is multiplied by */ \
  F(void*, out)           /* [size] of `dtype` */                                  \
  F(int64_t, size)        /* elements */                                           \
  F(int64_t, dim)         /* of a row */                                           \
  F(int64_t, item_size)   /* elements with one signal and scale */                 \
  F(uint64_t, seed)                                                                \
  F(DType, dtype)
RAGVL_PARAMS(DiffusionNoiseParams, RAGVL_DIFFUSION_NOISE_FIELDS)

RAGVL_DECLARE_CPU_KERNEL(diffusion_noise, DiffusionNoiseParams)

// Launches on `stream` (a cudaStream_t) of the current device; returns an error message or null.
const char* diffusion_noise_cuda(const DiffusionNoiseParams& params, void* stream);

namespace {

struct Bits {
  uint32_t word[4];
};

// Philox4x32-10 (Salmon et al. 2011).
RAGVL_HD inline Bits philox(uint64_t seed, uint64_t counter) {
  uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32);
  uint32_t c2 = 0, c3 = 0;
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = static_cast<uint64_t>(c0) * 0xD2511F53u;
    const uint64_t second = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
    c0 = static_cast<uint32_t>(second >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(second);
    c2 = static_cast<uint32_t>(first >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(first);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// ln(a) for a in (0, 1], with a relative error under 3e-7. a = m 2^e with m in [sqrt(1/2),
// sqrt(2)), and ln(m) = 2 artanh((m - 1) / (m + 1)).
RAGVL_HD inline float log_of_unit(float a) {
  const uint32_t sqrt_half = 0x3f3504f3u;
  const uint32_t shifted = bits_of_float(a) - sqrt_half;
  const float e = static_cast<float>(static_cast<int32_t>(shifted) >> 23);
  const float m = float_of_bits((shifted & 0x7fffffu) + sqrt_half);
  const float s = (m - 1.0f) / (m + 1.0f), z = s * s;
  const float series = 1.0f + z * (1 / 3.0f + z * (1 / 5.0f + z * (1 / 7.0f + z * (1 / 9.0f))));
  return e * 0.693147181f + 2.0f * s * series;
}

// Two normals from two words: 24 bits of the first for the distance, 24 of the second for the
// angle.
RAGVL_HD inline void box_muller(uint32_t word0, uint32_t word1, float* cosine, float* sine) {
  const float a = static_cast<float>(static_cast<int32_t>((word0 >> 8) + 1)) * 0x1p-24f;
  const float radius = sqrtf(-2.0f * log_of_unit(a));
  // The angle is a quarter turn a few times, and an eighth of a turn at most to either side.
  const int32_t turns = static_cast<int32_t>(word1 >> 8);  // of 2^-24
  const int32_t quarters = (turns + (1 << 21)) >> 22;      // 0 to 4
  const float rest = static_cast<float>(turns - (quarters << 22)) * (1.57079633f * 0x1p-22f);
  const float z = rest * rest;
  const float s =
      rest * (1.0f + z * (-1 / 6.0f + z * (1 / 120.0f + z * (-1 / 5040.0f + z * (1 / 362880.0f)))));
  const float c = 1.0f + z * (-0.5f + z * (1 / 24.0f + z * (-1 / 720.0f + z * (1 / 40320.0f))));
  const bool swapped = quarters & 1;
  const float signed_cosine = (swapped ? s : c) * ((quarters + 1) & 2 ? -1.0f : 1.0f);
  const float signed_sine = (swapped ? c : s) * (quarters & 2 ? -1.0f : 1.0f);
  *cosine = radius * signed_cosine;
  *sine = radius * signed_sine;
}

// The normals of elements 4 * counter to 4 * counter + 3.
RAGVL_HD inline void four_normals(uint64_t seed, uint64_t counter, float* n0, float* n1, float* n2,
                                  float* n3) {
  const Bits bits = philox(seed, counter);
  box_muller(bits.word[0], bits.word[1], n0, n1);
  box_muller(bits.word[2], bits.word[3], n2, n3);
}

}  // namespace
}  // namespace ragvl
