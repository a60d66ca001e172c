// Element types and conversions shared by the CPU and the CUDA kernels.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define RAGVL_HD __host__ __device__
#else
#define RAGVL_HD
#endif

namespace ragvl {

enum class DType { float32, bfloat16, float16 };

// A tensor of N + 1 dimensions, of which the last is contiguous.
template <int N>
struct View {
  const void* data;
  int64_t stride[N];  // elements from one place of a dimension to the next
};

// Unnamed on purpose, here and around every function that a kernel header defines: the CPU kernels
// are compiled once per instruction set, and of equal inline functions the linker keeps just one.
// Were that the AVX-512 one, the baseline kernels would crash on an older CPU.
namespace {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

RAGVL_HD inline float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

RAGVL_HD inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

RAGVL_HD inline float to_float(float value) { return value; }

RAGVL_HD inline float to_float(BFloat16 value) { return float_of_bits(uint32_t{value.bits} << 16); }

// Branch-free, so that it vectorises without F16C: move the bits to float32's places, correct the
// exponent's bias (15 there, 127 here) by a product, and restore what was infinite or NaN.
RAGVL_HD inline float to_float(Float16 value) {
  const uint32_t magnitude = (value.bits & 0x7fffu) << 13;
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  const uint32_t not_finite = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  const float rebiased = float_of_bits(magnitude) * 0x1p112f;
  return float_of_bits(bits_of_float(rebiased) | not_finite | sign);
}

RAGVL_HD inline float to_float(int8_t value) { return value; }

// Two numbers from 0 to 15 in a byte: the first in its low half.
struct Nibbles {
  uint8_t bits;
};

RAGVL_HD inline float low(Nibbles pair) { return static_cast<float>(pair.bits & 15); }

RAGVL_HD inline float high(Nibbles pair) { return static_cast<float>(pair.bits >> 4); }

// from_float(value, to) rounds to the nearest, of two as near to the even one, as torch does.
RAGVL_HD inline void from_float(float value, float* to) { *to = value; }

RAGVL_HD inline void from_float(float value, BFloat16* to) {
  const uint32_t bits = bits_of_float(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to->bits = static_cast<uint16_t>(value == value ? rounded : 0x7fc0u);
}

RAGVL_HD inline void from_float(float value, Float16* to) {
  const uint32_t magnitude = bits_of_float(value) & 0x7fffffffu;
  const uint32_t sign = (bits_of_float(value) & 0x80000000u) >> 16;
  uint32_t bits;
  if (magnitude >= 0x47800000u) {  // 2^16 and more, or NaN
    bits = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: the sum's last place is a subnormal's
    bits = bits_of_float(float_of_bits(magnitude) + 0.5f) - bits_of_float(0.5f);
  } else {  // rebias the exponent and round what is cut off
    bits = (magnitude - (112u << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  to->bits = static_cast<uint16_t>(bits | sign);
}

// Where the elements with these indices of the first dimensions begin.
template <class T, int N, class... Indices>
const T* at(const View<N>& view, Indices... indices) {
  const T* pointer = static_cast<const T*>(view.data);
  int dimension = 0;
  ((pointer += indices * view.stride[dimension++]), ...);
  return pointer;
}

// f(T{}) with the type T that `dtype` names.
template <class F>
void dispatch(DType dtype, F f) {
  switch (dtype) {
    case DType::float32:
      return f(float{});
    case DType::bfloat16:
      return f(BFloat16{});
    case DType::float16:
      return f(Float16{});
  }
}

}  // namespace
}  // namespace ragvl
