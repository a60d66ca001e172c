// bfloat16_linear on the CPU: panels of 32 columns, brought into the order in which they are
// multiplied, times blocks of rows. A row's sum is taken in one order, whatever the other rows.
#include "bfloat16_linear.h"

#include <algorithm>
#include <memory>

#include "chunks.h"
#include "tiles.h"

namespace ragvl {
namespace {

constexpr int64_t panel_size = 32;            // columns whose sums are taken at once
constexpr int64_t row_step = 16;              // rows that are read at once
constexpr int64_t cached_bytes = 1280 << 10;  // of rows that pass by one panel after the other
constexpr int64_t least_cached = 128;         // rows: fewer do not pay for reading a panel

// 32 columns of the weight, and their biases.
struct Panel {
  std::unique_ptr<uint32_t[]> weights;
  float biases[panel_size];
  int64_t column, size;
};

const BFloat16* rows_from(const BFloat16LinearParams& p, int64_t row) {
  return row < p.first_copied
             ? static_cast<const BFloat16*>(p.x) + row * p.dim
             : static_cast<const BFloat16*>(p.scratch) + (row - p.first_copied) * p.padded_dim;
}

void copy_row(const BFloat16LinearParams& p, int64_t row) {
  BFloat16* to = static_cast<BFloat16*>(p.scratch) + (row - p.first_copied) * p.padded_dim;
  const int64_t size = row < p.rows ? p.dim : 0;
  std::copy_n(static_cast<const BFloat16*>(p.x) + row * p.dim, size, to);
  std::fill(to + size, to + p.padded_dim, BFloat16{0});
}

#if defined(__AMX_BF16__)
constexpr int64_t max_rows = 2 * row_step;
constexpr int64_t dims_in_word = 2;                // of a panel's weights
constexpr int64_t pairs_in_line = tile_bytes / 4;  // of numbers that are neighbours along the sum
constexpr int64_t dims_in_line = 2 * pairs_in_line;

// 16 lines of 16 pairs: afterwards a line holds all lines' pairs of one place.
inline void transpose(__m512i (&lines)[16]) {
  __m512i other[16];
  for (int i = 0; i < 16; i += 2) {
    other[i] = _mm512_unpacklo_epi32(lines[i], lines[i + 1]);
    other[i + 1] = _mm512_unpackhi_epi32(lines[i], lines[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      lines[i + 2 * j] = _mm512_unpacklo_epi64(other[i + j], other[i + j + 2]);
      lines[i + 2 * j + 1] = _mm512_unpackhi_epi64(other[i + j], other[i + j + 2]);
    }
  }
  for (int i = 0; i < 16; i += 8) {
    for (int j = 0; j < 4; ++j) {
      other[i + j] = _mm512_shuffle_i32x4(lines[i + j], lines[i + j + 4], 0x88);
      other[i + j + 4] = _mm512_shuffle_i32x4(lines[i + j], lines[i + j + 4], 0xdd);
    }
  }
  for (int j = 0; j < 8; ++j) {
    lines[j] = _mm512_shuffle_i32x4(other[j], other[j + 8], 0x88);
    lines[j + 8] = _mm512_shuffle_i32x4(other[j], other[j + 8], 0xdd);
  }
}

// [2 halves of the columns, padded_dim / 2, 16] pairs.
void read_weights(const BFloat16LinearParams& p, Panel& panel) {
  for (int64_t half = 0; half < 2; ++half) {
    for (int64_t dim = 0; dim < p.padded_dim; dim += dims_in_line) {
      const int64_t left = std::min(dims_in_line, p.dim - dim);
      const __mmask32 mask = left == dims_in_line ? ~0u : (1u << left) - 1;
      __m512i lines[16];
      for (int64_t j = 0; j < 16; ++j) {
        const int64_t column = half * 16 + j;
        const auto* from =
            static_cast<const BFloat16*>(p.weight) + (panel.column + column) * p.dim + dim;
        lines[j] =
            column < panel.size ? _mm512_maskz_loadu_epi16(mask, from) : _mm512_setzero_si512();
      }
      transpose(lines);
      uint32_t* to = panel.weights.get() + (half * p.padded_dim + dim) / 2 * 16;
      for (int64_t i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * 16, lines[i]);
    }
  }
}

// Tiles 0 to 3 hold the sums of 16 rows twice by 16 columns twice. Rows are streamed, so that the
// panel stays in the nearest cache.
void multiply(const BFloat16LinearParams& p, const Panel& panel, int64_t row, int64_t size) {
  const bool two = size > row_step;
  const BFloat16* above = rows_from(p, row);
  const BFloat16* below = two ? rows_from(p, row + row_step) : above;
  const uint32_t* left = panel.weights.get();
  const uint32_t* right = left + p.padded_dim / 2 * 16;
  const int64_t stride = p.padded_dim * sizeof(BFloat16);
  alignas(64) float sums[max_rows][panel_size];

  TilesInUse::written(left);
  _tile_loadd(0, panel.biases, 0);  // one line for all rows
  _tile_loadd(1, panel.biases + 16, 0);
  _tile_loadd(2, panel.biases, 0);
  _tile_loadd(3, panel.biases + 16, 0);
  for (int64_t dim = 0; dim < p.padded_dim; dim += dims_in_line) {
    _tile_loadd(6, left + dim / 2 * 16, tile_bytes);
    _tile_loadd(7, right + dim / 2 * 16, tile_bytes);
    _tile_stream_loadd(4, above + dim, stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (two) {
      _tile_stream_loadd(5, below + dim, stride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums[0], sizeof sums[0]);
  _tile_stored(1, sums[0] + 16, sizeof sums[0]);
  if (two) {
    _tile_stored(2, sums[row_step], sizeof sums[0]);
    _tile_stored(3, sums[row_step] + 16, sizeof sums[0]);
  }
  for (int64_t r = 0; r < size; ++r) {
    BFloat16* out = static_cast<BFloat16*>(p.out) + (row + r) * p.columns + panel.column;
    const auto rounded =
        (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(sums[r] + 16), _mm512_load_ps(sums[r]));
    const __mmask32 mask = panel.size == panel_size ? ~0u : (1u << panel.size) - 1;
    _mm512_mask_storeu_epi16(out, mask, rounded);
  }
}
#else
constexpr int64_t max_rows = 4;
constexpr int64_t dims_in_word = 1;

// [padded_dim, 32] floats.
void read_weights(const BFloat16LinearParams& p, Panel& panel) {
  for (int64_t j = 0; j < panel_size; ++j) {
    const auto* from = static_cast<const BFloat16*>(p.weight) + (panel.column + j) * p.dim;
    for (int64_t i = 0; i < p.padded_dim; ++i) {
      const bool is_there = j < panel.size && i < p.dim;
      panel.weights[i * panel_size + j] = is_there ? bits_of_float(to_float(from[i])) : 0;
    }
  }
}

void multiply(const BFloat16LinearParams& p, const Panel& panel, int64_t row, int64_t size) {
  const BFloat16* rows = rows_from(p, row);
  float sums[max_rows][panel_size];
  for (auto& sum : sums) std::copy_n(panel.biases, panel_size, sum);
  for (int64_t i = 0; i < p.padded_dim; ++i) {
    float line[panel_size];
    memcpy(line, panel.weights.get() + i * panel_size, sizeof line);
    for (int64_t r = 0; r < max_rows; ++r) {
      const float factor = to_float(rows[r * p.padded_dim + i]);
      for (int64_t j = 0; j < panel_size; ++j) sums[r][j] += factor * line[j];
    }
  }
  for (int64_t r = 0; r < size; ++r) {
    BFloat16* out = static_cast<BFloat16*>(p.out) + (row + r) * p.columns + panel.column;
    for (int64_t j = 0; j < panel.size; ++j) from_float(sums[r][j], out + j);
  }
}
#endif

void read_panel(const BFloat16LinearParams& p, int64_t column, Panel& panel) {
  panel.column = column;
  panel.size = std::min(panel_size, p.columns - column);
  const auto* bias = static_cast<const BFloat16*>(p.bias);
  for (int64_t j = 0; j < panel_size; ++j) {
    panel.biases[j] = bias && j < panel.size ? to_float(bias[column + j]) : 0.0f;
  }
  read_weights(p, panel);
}

}  // namespace

namespace RAGVL_ISA {

void bfloat16_linear(const BFloat16LinearParams& p, int threads) {
  const int64_t panels = (p.columns + panel_size - 1) / panel_size;
  const int64_t chunk_size = rows_of_chunk(p.rows, p.padded_dim * sizeof(BFloat16), panels, threads,
                                           cached_bytes, least_cached, max_rows);
  const int64_t chunks = (p.rows + chunk_size - 1) / chunk_size;
  const int64_t end_of_copied = (p.rows + row_step - 1) / row_step * row_step;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Panel panel;
    panel.weights.reset(new uint32_t[p.padded_dim * panel_size / dims_in_word]);
#pragma omp for
    for (int64_t row = p.first_copied; row < end_of_copied; ++row) copy_row(p, row);
#if defined(__AMX_BF16__)
    const TilesInUse tiles;
    TilesInUse::written(p.scratch);
#endif
    // Neighbouring columns by one thread: two would write to one line of memory
#pragma omp for collapse(2) schedule(static)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      for (int64_t column = 0; column < p.columns; column += panel_size) {
        read_panel(p, column, panel);
        const int64_t end = std::min(p.rows, (chunk + 1) * chunk_size);
        for (int64_t row = chunk * chunk_size; row < end; row += max_rows) {
          multiply(p, panel, row, std::min(max_rows, end - row));
        }
      }
    }
  }
}

}  // namespace RAGVL_ISA
}  // namespace ragvl
