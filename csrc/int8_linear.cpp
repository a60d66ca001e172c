// int8_linear on the CPU: rows are rounded to 8 bits first; then panels of 32 columns times blocks
// of a few rows, whose sums stay in registers while the weights pass. With AMX the registers are
// tiles, of 16 rows by 16 columns.
#include "int8_linear.h"

#include <algorithm>

#include "chunks.h"
#include "tiles.h"

#if defined(__AVX512VNNI__)
#include <immintrin.h>
#endif

namespace ragvl {
namespace {

constexpr int64_t lanes = 16;                // columns whose sums are a vector
constexpr int64_t panel_size = 32;           // columns whose sums are taken at once
constexpr int64_t depth = 4;                 // neighbours along the sum that are multiplied at once
constexpr int64_t cached_bytes = 576 << 10;  // of codes that pass by one panel after the other
constexpr int64_t least_cached = 192;        // rows

typedef int32_t IntVector __attribute__((vector_size(lanes * sizeof(int32_t))));
typedef float Vector __attribute__((vector_size(lanes * sizeof(float))));

template <class V, class T>
void load(const T* from, V* to) {
  memcpy(to, from, sizeof *to);
}

// Added to a number of at most 2^22, it rounds it to the nearest whole one, of two as near to the
// even one, and leaves that in the lowest bits. Unlike rintf it vectorises everywhere.
constexpr float rounder = 0x1.8p23f + 128.0f;

template <class T>
void round_row(const Int8LinearParams& p, int64_t row) {
  const T* x = static_cast<const T*>(p.x) + row * p.dim;
  uint8_t* codes = p.codes + row * p.padded_dim;
  // Magnitudes are compared as whole numbers, which have the same order, and NaN above infinity
  uint32_t largest = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < p.dim; ++i) {
    const uint32_t magnitude = bits_of_float(to_float(x[i])) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  const float scale = float_of_bits(largest) / 127.0f;
  const bool is_finite = largest < 0x7f800000u;
  const bool is_normal = is_finite && scale >= 0x1p-126f;  // else there is no inverse
  p.scales[row] = is_normal ? scale : is_finite ? 0.0f : float_of_bits(0x7fc00000u);
  const float inverse = is_normal ? 1.0f / scale : 0.0f;
#pragma omp simd
  for (int64_t i = 0; i < p.dim; ++i) {
    codes[i] = static_cast<uint8_t>(bits_of_float(to_float(x[i]) * inverse + rounder));
  }
  std::fill(codes + p.dim, codes + p.padded_dim, uint8_t{128});
}

// A row's sums in a panel, as numbers of the output.
template <class T>
void write_panel(const Int8LinearParams& p, int64_t row, int64_t column,
                 const IntVector (&sums)[2]) {
  float y[panel_size];
  for (int64_t half = 0; half < 2; ++half) {
    Vector scales;
    load(p.weight_scales + column + half * lanes, &scales);
    const Vector scaled = __builtin_convertvector(sums[half], Vector) * scales * p.scales[row];
    memcpy(y + half * lanes, &scaled, sizeof scaled);
  }
  const T* bias = static_cast<const T*>(p.bias);
  const int64_t size = std::min(panel_size, p.columns - column);
  T* out = static_cast<T*>(p.out) + row * p.columns + column;
  if (bias) {
    for (int64_t j = 0; j < size; ++j) y[j] += to_float(bias[column + j]);
  }
  if (size == panel_size) {
    for (int64_t j = 0; j < panel_size; ++j) from_float(y[j], out + j);
  } else {
    for (int64_t j = 0; j < size; ++j) from_float(y[j], out + j);
  }
}

#if defined(__AMX_INT8__)
constexpr int64_t row_step = tile_rows;
constexpr int64_t max_rows = 2 * row_step;

// A panel's columns of up to 32 rows.
template <class T>
void multiply_rows(const Int8LinearParams& p, int64_t row, int64_t size, int64_t column) {
  const uint8_t* codes = p.codes + row * p.padded_dim;
  const uint8_t* below = codes + tile_rows * p.padded_dim;
  const int8_t* left = p.weight + column * p.padded_dim;
  const int8_t* right = left + lanes * p.padded_dim;
  const bool two = size > tile_rows;
  alignas(64) IntVector sums[2][2][tile_rows];  // of tiles of rows, and of columns

  _tile_loadd(0, p.offsets + column, 0);  // one line for all rows
  _tile_loadd(1, p.offsets + column + lanes, 0);
  if (two) {
    _tile_loadd(2, p.offsets + column, 0);
    _tile_loadd(3, p.offsets + column + lanes, 0);
  }
  for (int64_t i = 0; i < p.padded_dim; i += tile_bytes) {
    _tile_loadd(6, left + i * lanes, tile_bytes);
    _tile_loadd(7, right + i * lanes, tile_bytes);
    _tile_loadd(4, codes + i, p.padded_dim);
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    if (two) {
      _tile_loadd(5, below + i, p.padded_dim);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
  }
  _tile_stored(0, sums[0][0], tile_bytes);
  _tile_stored(1, sums[0][1], tile_bytes);
  if (two) {
    _tile_stored(2, sums[1][0], tile_bytes);
    _tile_stored(3, sums[1][1], tile_bytes);
  }
  for (int64_t r = 0; r < size; ++r) {
    const IntVector own[2] = {sums[r / tile_rows][0][r % tile_rows],
                              sums[r / tile_rows][1][r % tile_rows]};
    write_panel<T>(p, row + r, column, own);
  }
}
#else
constexpr int64_t row_step = 1;
constexpr int64_t max_rows = 12;  // whose sums the registers hold

// Adds to each column's sum four codes of a row, one after the other in `codes`, times the
// column's weights.
inline void add_products(uint32_t codes, const int8_t* weights, IntVector& sums) {
#if defined(__AVX512VNNI__)
  const IntVector every = IntVector{} + static_cast<int32_t>(codes);
  sums = (IntVector)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)every, _mm512_loadu_si512(weights));
#else
  for (int64_t j = 0; j < lanes; ++j) {
    for (int64_t i = 0; i < depth; ++i) {
      sums[j] += static_cast<int32_t>(codes >> 8 * i & 255u) * weights[j * depth + i];
    }
  }
#endif
}

// A panel's columns of a few rows.
template <class T, int64_t rows>
[[gnu::noinline]] void multiply(const Int8LinearParams& p, int64_t row, int64_t column) {
  const uint8_t* codes = p.codes + row * p.padded_dim;
  const int8_t* left = p.weight + column * p.padded_dim;
  const int8_t* right = left + lanes * p.padded_dim;
  IntVector sums[rows][2];
  for (int64_t r = 0; r < rows; ++r) {
    load(p.offsets + column, &sums[r][0]);
    load(p.offsets + column + lanes, &sums[r][1]);
  }
  for (int64_t i = 0; i < p.padded_dim; i += depth) {
    for (int64_t r = 0; r < rows; ++r) {
      uint32_t code;
      memcpy(&code, codes + r * p.padded_dim + i, sizeof code);
      add_products(code, left + i * lanes, sums[r][0]);
      add_products(code, right + i * lanes, sums[r][1]);
    }
  }
  for (int64_t r = 0; r < rows; ++r) write_panel<T>(p, row + r, column, sums[r]);
}

// The same, with the number of rows known when compiling.
template <class T, int64_t rows = max_rows>
void multiply_rows(const Int8LinearParams& p, int64_t row, int64_t size, int64_t column) {
  if constexpr (rows > 1) {
    if (size < rows) return multiply_rows<T, rows - 1>(p, row, size, column);
  }
  multiply<T, rows>(p, row, column);
}
#endif

template <class T>
void all_rows(const Int8LinearParams& p, int threads) {
  const int64_t panels = (p.columns + panel_size - 1) / panel_size;
  const int64_t chunk_size =
      rows_of_chunk(p.rows, p.padded_dim, panels, threads, cached_bytes, least_cached, max_rows);
  const int64_t chunks = (p.rows + chunk_size - 1) / chunk_size;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for
    for (int64_t row = 0; row < p.rows; ++row) round_row<T>(p, row);
#if defined(__AMX_INT8__)
    const TilesInUse tiles;
    TilesInUse::written(p.codes);
#endif
    // Neighbouring columns by one thread: two would write to one line of memory
#pragma omp for collapse(2) schedule(static)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      for (int64_t column = 0; column < p.columns; column += panel_size) {
        const int64_t first = chunk * chunk_size, end = std::min(p.rows, first + chunk_size);
        // Blocks of even size: a last one of a few rows would leave most registers idle
        const int64_t blocks = (end - first + max_rows - 1) / max_rows;
        const int64_t steps = (end - first + blocks * row_step - 1) / (blocks * row_step);
        const int64_t size = steps * row_step;
        for (int64_t row = first; row < end; row += size) {
          multiply_rows<T>(p, row, std::min(size, end - row), column);
        }
      }
    }
  }
}

}  // namespace

namespace RAGVL_ISA {

void int8_linear(const Int8LinearParams& p, int threads) {
  dispatch(p.dtype, [&](auto zero) { all_rows<decltype(zero)>(p, threads); });
}

}  // namespace RAGVL_ISA
}  // namespace ragvl
