// prefix_write on the CPU: pages and heads in parallel, each one transposed or copied in the cache.
#include "prefix_write.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <vector>

namespace ragvl {
namespace {

// Where one page's tokens of one head come from, and how many there are; the page's rest is zero.
template <class T>
struct Tokens {
  const T* data;
  int64_t stride;
  int64_t size;

  const T* operator[](int64_t slot) const { return data + slot * stride; }
};

// max(abs(x)) / 127, or NaN if a number of x is.
template <class T>
float scale_of(const T* x, int64_t dim) {
  float largest = 0.0f;
  uint32_t nan = 0;  // a maximum would lose it, or not, by the order of its operands
#pragma omp simd reduction(max : largest) reduction(| : nan)
  for (int64_t i = 0; i < dim; ++i) {
    const float value = std::fabs(to_float(x[i]));
    largest = value > largest ? value : largest;
    nan |= value != value;
  }
  return nan ? NAN : largest / 127.0f;
}

// The nearest integer, of two as near the even one: adding 1.5 * 2^23 leaves it in the low bits.
inline int8_t rounded(float value) {
  return static_cast<int8_t>(bits_of_float(value + 0x1.8p23f) & 0xffu);
}

template <class T>
void find_scales(const Tokens<T>& tokens, int64_t dim, int64_t page_size, float* scales) {
  for (int64_t s = 0; s < page_size; ++s) {
    scales[s] = s < tokens.size ? scale_of(tokens[s], dim) : 0.0f;
  }
}

// What numbers are divided by: of zeros, or nearly, by the least normal number.
inline float divisor(float scale) { return scale < FLT_MIN ? FLT_MIN : scale; }

// out[i, s] = x[s, i]
template <class T>
void write_keys(const Tokens<T>& tokens, int64_t dim, int64_t page_size, T* out) {
  for (int64_t s = 0; s < page_size; ++s) {
    for (int64_t i = 0; i < dim; ++i) {
      out[i * page_size + s] = s < tokens.size ? tokens[s][i] : T{};
    }
  }
}

template <class T>
void write_keys(const Tokens<T>& tokens, int64_t dim, int64_t page_size, int8_t* out,
                float* scales) {
  find_scales(tokens, dim, page_size, scales);
  for (int64_t s = 0; s < page_size; ++s) {
    const float by = divisor(scales[s]);
    for (int64_t i = 0; i < dim; ++i) {
      out[i * page_size + s] = s < tokens.size ? rounded(to_float(tokens[s][i]) / by) : 0;
    }
  }
}

template <class T>
void write_values(const Tokens<T>& tokens, int64_t dim, int64_t page_size, T* out) {
  for (int64_t s = 0; s < tokens.size; ++s) std::copy_n(tokens[s], dim, out + s * dim);
  std::fill(out + tokens.size * dim, out + page_size * dim, T{});
}

template <class T>
void write_values(const Tokens<T>& tokens, int64_t dim, int64_t page_size, int8_t* out,
                  float* scales) {
  find_scales(tokens, dim, page_size, scales);
  for (int64_t s = 0; s < tokens.size; ++s) {
    const float by = divisor(scales[s]);
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) out[s * dim + i] = rounded(to_float(tokens[s][i]) / by);
  }
  std::fill(out + tokens.size * dim, out + page_size * dim, int8_t{});
}

// The 15 steps of numbers in half a byte, as float16 holds where they begin and how large they are.
struct Steps {
  float minimum, scale;
};

inline Steps steps_of(float least, float largest, bool nan, Float16* minimum, Float16* scale) {
  // + 0: of two zeros the one without a sign, whichever comes first
  least += 0.0f;
  from_float(nan ? NAN : least, minimum);
  from_float(nan ? NAN : ((largest + 0.0f) - least) / 15.0f, scale);
  return {to_float(*minimum), divisor(to_float(*scale))};
}

inline uint32_t number(float x, float minimum, float scale) {
  const float exact = (x - minimum) / scale;
  const float above = exact < 0.0f ? 0.0f : exact;
  return bits_of_float((above > 15.0f ? 15.0f : above) + 0x1.8p23f) & 15u;
}

// One thread's memory for the channels of a page.
struct Channels {
  explicit Channels(int64_t dim) : least(dim), largest(dim), nan(dim), numbers(dim / 2) {}

  std::vector<float> least, largest;  // then the steps' minimum and scale
  std::vector<uint32_t> nan;
  std::vector<uint8_t> numbers;  // of one token
};

// The keys of a page in half a byte each, with steps for each channel.
template <class T>
void write_keys(const Tokens<T>& tokens, int64_t dim, int64_t page_size, Channels& channels,
                uint8_t* out, Float16* minima, Float16* scales) {
  float* const least = channels.least.data();
  float* const largest = channels.largest.data();
  uint32_t* const nan = channels.nan.data();
  uint8_t* const numbers = channels.numbers.data();
  std::fill_n(least, dim, INFINITY);
  std::fill_n(largest, dim, -INFINITY);
  std::fill_n(nan, dim, 0u);
  for (int64_t s = 0; s < tokens.size; ++s) {
    const T* x = tokens[s];
#pragma omp simd
    for (int64_t i = 0; i < dim; ++i) {
      const float value = to_float(x[i]);
      least[i] = value < least[i] ? value : least[i];
      largest[i] = value > largest[i] ? value : largest[i];
      nan[i] |= value != value;
    }
  }
#pragma omp simd
  for (int64_t i = 0; i < dim; ++i) {
    const Steps steps = steps_of(least[i], largest[i], nan[i], minima + i, scales + i);
    least[i] = steps.minimum;
    largest[i] = steps.scale;
  }
  const int64_t half = dim / 2;
  for (int64_t s = 0; s < tokens.size; ++s) {
    const T* x = tokens[s];
#pragma omp simd
    for (int64_t i = 0; i < half; ++i) {
      const uint32_t low = number(to_float(x[i]), least[i], largest[i]);
      const uint32_t high = number(to_float(x[i + half]), least[i + half], largest[i + half]);
      numbers[i] = static_cast<uint8_t>(low | high << 4);
    }
    for (int64_t i = 0; i < half; ++i) out[i * page_size + s] = numbers[i];
  }
  for (int64_t i = 0; i < half; ++i) {
    std::fill(out + i * page_size + tokens.size, out + (i + 1) * page_size, uint8_t{0});
  }
}

// The values of a page in half a byte each, with steps for each token.
template <class T>
void write_values(const Tokens<T>& tokens, int64_t dim, int64_t page_size, uint8_t* out,
                  Float16* minima, Float16* scales) {
  const int64_t half = dim / 2;
  for (int64_t s = 0; s < tokens.size; ++s) {
    const T* x = tokens[s];
    float least = INFINITY, largest = -INFINITY;
    uint32_t nan = 0;
#pragma omp simd reduction(min : least) reduction(max : largest) reduction(| : nan)
    for (int64_t i = 0; i < dim; ++i) {
      const float value = to_float(x[i]);
      least = value < least ? value : least;
      largest = value > largest ? value : largest;
      nan |= value != value;
    }
    const Steps steps = steps_of(least, largest, nan, minima + s, scales + s);
#pragma omp simd
    for (int64_t i = 0; i < half; ++i) {
      const uint32_t low = number(to_float(x[i]), steps.minimum, steps.scale);
      const uint32_t high = number(to_float(x[i + half]), steps.minimum, steps.scale);
      out[s * half + i] = static_cast<uint8_t>(low | high << 4);
    }
  }
  std::fill(out + tokens.size * half, out + page_size * half, uint8_t{0});
  std::fill(minima + tokens.size, minima + page_size, Float16{0});
  std::fill(scales + tokens.size, scales + page_size, Float16{0});
}

template <class T>
void one_page(const PrefixWriteParams& p, int64_t prefix, int64_t place, int64_t head,
              Channels& channels) {
  const int64_t first = place * p.page_size;
  const int64_t size = std::min(p.page_size, p.prefix_lengths[prefix] - first);
  const auto tokens = [&](const View<3>& x) {
    return Tokens<T>{at<T>(x, prefix, head, first), x.stride[2], size};
  };
  const int64_t page_head = p.page_table[prefix * p.table_width + place] * p.kv_heads + head;
  const int64_t token = page_head * p.page_size;
  if (p.key_minima) {
    write_keys(tokens(p.k), p.dim, p.page_size, channels,
               static_cast<uint8_t*>(p.key_pages) + token * (p.dim / 2),
               static_cast<Float16*>(p.key_minima) + page_head * p.dim,
               static_cast<Float16*>(p.key_scales) + page_head * p.dim);
    write_values(tokens(p.v), p.dim, p.page_size,
                 static_cast<uint8_t*>(p.value_pages) + token * (p.dim / 2),
                 static_cast<Float16*>(p.value_minima) + token,
                 static_cast<Float16*>(p.value_scales) + token);
  } else if (p.key_scales) {
    write_keys(tokens(p.k), p.dim, p.page_size, static_cast<int8_t*>(p.key_pages) + token * p.dim,
               static_cast<float*>(p.key_scales) + token);
    write_values(tokens(p.v), p.dim, p.page_size,
                 static_cast<int8_t*>(p.value_pages) + token * p.dim,
                 static_cast<float*>(p.value_scales) + token);
  } else {
    write_keys(tokens(p.k), p.dim, p.page_size, static_cast<T*>(p.key_pages) + token * p.dim);
    write_values(tokens(p.v), p.dim, p.page_size, static_cast<T*>(p.value_pages) + token * p.dim);
  }
}

template <class T>
void all_pages(const PrefixWriteParams& p, int threads) {
  const int64_t places = p.batch * p.table_width;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Channels channels(p.key_minima ? p.dim : 0);
#pragma omp for schedule(static)
    for (int64_t n = 0; n < places * p.kv_heads; ++n) {
      const int64_t prefix = n / p.kv_heads / p.table_width;
      const int64_t place = n / p.kv_heads % p.table_width;
      if (place * p.page_size < p.prefix_lengths[prefix]) {
        one_page<T>(p, prefix, place, n % p.kv_heads, channels);
      }
    }
  }
}

}  // namespace

namespace RAGVL_ISA {

void prefix_write(const PrefixWriteParams& p, int threads) {
  dispatch(p.dtype, [&](auto zero) { all_pages<decltype(zero)>(p, threads); });
}

}  // namespace RAGVL_ISA
}  // namespace ragvl
