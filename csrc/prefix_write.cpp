// prefix_write on the CPU: pages and heads in parallel, each one transposed or copied in the cache.
#include "prefix_write.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

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

template <class T>
void one_page(const PrefixWriteParams& p, int64_t prefix, int64_t place, int64_t head) {
  const int64_t first = place * p.page_size;
  const int64_t size = std::min(p.page_size, p.prefix_lengths[prefix] - first);
  const auto tokens = [&](const View<3>& x) {
    return Tokens<T>{at<T>(x, prefix, head, first), x.stride[2], size};
  };
  const int64_t page = p.page_table[prefix * p.table_width + place];
  const int64_t token = (page * p.kv_heads + head) * p.page_size;
  if (p.key_scales) {
    write_keys(tokens(p.k), p.dim, p.page_size, static_cast<int8_t*>(p.key_pages) + token * p.dim,
               p.key_scales + token);
    write_values(tokens(p.v), p.dim, p.page_size,
                 static_cast<int8_t*>(p.value_pages) + token * p.dim, p.value_scales + token);
  } else {
    write_keys(tokens(p.k), p.dim, p.page_size, static_cast<T*>(p.key_pages) + token * p.dim);
    write_values(tokens(p.v), p.dim, p.page_size, static_cast<T*>(p.value_pages) + token * p.dim);
  }
}

template <class T>
void all_pages(const PrefixWriteParams& p, int threads) {
  const int64_t places = p.batch * p.table_width;
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
  for (int64_t n = 0; n < places * p.kv_heads; ++n) {
    const int64_t prefix = n / p.kv_heads / p.table_width, place = n / p.kv_heads % p.table_width;
    if (place * p.page_size < p.prefix_lengths[prefix]) {
      one_page<T>(p, prefix, place, n % p.kv_heads);
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
