// prefix_attention on the CPU: candidates and heads of the keys in parallel; of each pair the
// queries in blocks of a few rows, whose sums stay in registers while keys and values pass.
//
// A row's result must not depend on the rows beside it. So its sums are taken in one order, 64 keys
// at a time from the beginning of the prefix and then of the suffix, and a key that the row does
// not see adds an exact zero: as much as if it had been skipped.
//
// What is multiplied are floats or, in bfloat16 where the CPU has instructions for it, pairs of
// bfloat16 whose two products are added to a float at once: twice as many numbers an instruction.
// With AMX pairs are multiplied in tiles: 16 rows by 16 pairs by 16 columns an instruction.
#include "prefix_attention.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "tiles.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <type_traits>
#include <vector>

namespace ragvl {
namespace {

// The floats of a register, and how many rows' sums the registers hold, two for each row, beside
// what is multiplied.
#if defined(__AVX512F__)
constexpr int64_t vector_size = 16;
constexpr int64_t rows_in_registers = 12;
#elif defined(__AVX2__)
constexpr int64_t vector_size = 8;
constexpr int64_t rows_in_registers = 6;
#else
constexpr int64_t vector_size = 4;
constexpr int64_t rows_in_registers = 6;
#endif
typedef float Vector __attribute__((vector_size(vector_size * sizeof(float))));
typedef int32_t IntVector __attribute__((vector_size(vector_size * sizeof(int32_t))));

constexpr int64_t panel_size = 2 * vector_size;  // columns whose sums are taken at once
constexpr int64_t tile_size = 16;                // keys; a page holds whole tiles
constexpr int64_t chunk_size = 64;               // keys between two rescalings of the softmax
constexpr int64_t chunk_tiles = chunk_size / tile_size;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

inline Vector load(const float* from) {
  Vector vector;
  memcpy(&vector, from, sizeof vector);
  return vector;
}

inline void store(Vector vector, float* to) { memcpy(to, &vector, sizeof vector); }

// Two neighbours along the sum, in bfloat16: the first in the low half.
struct Pair {
  uint32_t bits;
};

inline Pair pair_of(BFloat16 first, BFloat16 second) {
  return {first.bits | static_cast<uint32_t>(second.bits) << 16};
}

inline Pair pair_of(float first, float second) {
  BFloat16 rounded[2];
  from_float(first, &rounded[0]);
  from_float(second, &rounded[1]);
  return pair_of(rounded[0], rounded[1]);
}

// Numbers in each of the lanes that are multiplied.
template <class Lane>
constexpr int64_t width = std::is_same_v<Lane, Pair> ? 2 : 1;

#if defined(__AMX_BF16__)
template <class Lane>
constexpr bool tiled = std::is_same_v<Lane, Pair>;
#else
template <class Lane>
constexpr bool tiled = false;
#endif

// The most rows of a block. Tiles hold the sums of two times 16.
template <class Lane>
constexpr int64_t max_rows = tiled<Lane> ? 32 : rows_in_registers;

// The lanes of so many numbers, for tiles filled up with zeros to whole ones.
template <class Lane>
constexpr int64_t lanes_of(int64_t size) {
  const int64_t lanes = ceil_div(size, width<Lane>);
  return tiled<Lane> ? round_up(lanes, tile_size) : lanes;
}

// sum + factor * lanes, where `factor` is the same in all lanes
inline Vector multiply_add(Vector sum, float factor, Vector lanes) { return sum + factor * lanes; }

#if defined(__AVX512BF16__)
inline Vector multiply_add(Vector sum, Pair factor, Vector lanes) {
  const IntVector factors = IntVector{} + static_cast<int32_t>(factor.bits);
  return (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)factors, (__m512bh)lanes);
}

// Rounds 32 neighbours to pairs, and gives the sums of the pairs as they are now.
inline Vector round_to_pairs(Vector first, Vector second, Pair* to) {
  const IntVector pairs = (IntVector)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
  memcpy(to, &pairs, sizeof pairs);
  return (Vector)(pairs << 16) + (Vector)(pairs & static_cast<int32_t>(0xffff0000u));
}
#endif

inline Vector load(const Pair* from) { return load(reinterpret_cast<const float*>(from)); }

// 2^x for x <= 0 with a relative error under 1e-7. Below 2^-127 it is 0, and so it is for
// -infinity; 2^0 is exactly 1; NaN stays.
inline Vector exp2_of_nonpositive(Vector x) {
  const Vector lowest = Vector{} - 127.0f;
  x = x < lowest ? lowest : x;
  const Vector shifted = x + 0x1.8p23f;  // rounds to an integer, which its low bits are
  const Vector fraction = x - (shifted - 0x1.8p23f);
  Vector power = 1.5353362e-4f * fraction + 1.3398875e-3f;  // minimax of 2^fraction
  power = power * fraction + 9.618437e-3f;
  power = power * fraction + 5.5503324e-2f;
  power = power * fraction + 0.24022648f;
  power = power * fraction + 0.6931472f;
  power = power * fraction + 1.0f;
  return power * reinterpret_cast<Vector>((reinterpret_cast<IntVector>(shifted) + 127) << 23);
}

inline float highest(const float* values, int64_t size) {
  Vector highest = load(values);
  for (int64_t n = vector_size; n < size; n += vector_size) {
    const Vector more = load(values + n);
    highest = more > highest ? more : highest;
  }
  float lanes[vector_size];
  store(highest, lanes);
  float result = lanes[0];
#pragma omp simd reduction(max : result)
  for (int64_t j = 0; j < vector_size; ++j) result = lanes[j] > result ? lanes[j] : result;
  return result;
}

// 16 neighbouring keys and their values, where they lie or converted. Pairs are of two coordinates
// of a key, and of one coordinate of two values.
template <class Lane>
struct Tile {
  const Lane* keys;    // [lanes of dim, 16]: a coordinate of all keys is contiguous
  const Lane* values;  // [lanes of 16, padded_dim]
};

// Up to 64 neighbouring keys. What tiles hold after them may be anything, but can be read; the
// other half of a pair with the last value is zero.
template <class Lane>
struct Chunk {
  Tile<Lane> tiles[chunk_tiles];
  int64_t key_stride;  // from one coordinate to the next
  int64_t position;    // of the first key
  int64_t size;        // keys
};

// One query and the state of its softmax.
struct Row {
  int64_t position;
  float maximum = -FLT_MAX;      // of the scores; finite, so that -infinity has a distance to it
  float sums[vector_size] = {};  // of exp2(score - maximum)
};

// A few rows and what they have gathered.
template <class Lane>
struct Block {
  int64_t size;         // rows, at most max_rows
  const Lane* queries;  // [lanes of dim, max_rows]; for tiles [max_rows, lanes of dim]
  float factor;         // what their products are multiplied by
  Row* rows;            // [size]
  float* outs;          // [size, padded_dim], not yet divided by the sums; of tiles [max_rows, ..]
};

template <class Lane>
using Scores = Lane[chunk_size / width<Lane>];  // of one row

// sums[r] += sum over i < depth of factors[r * row_step + i * step] * (lines of i)
template <int64_t row_step, int64_t step, int64_t rows, class Lane>
inline void add_products(Vector (&sums)[rows][2], const Lane* factors, const Lane* left,
                         const Lane* right, int64_t stride, int64_t depth) {
  for (int64_t i = 0; i < depth; ++i) {
    const Vector a = load(left + i * stride), b = load(right + i * stride);
    for (int64_t r = 0; r < rows; ++r) {
      sums[r][0] = multiply_add(sums[r][0], factors[r * row_step + i * step], a);
      sums[r][1] = multiply_add(sums[r][1], factors[r * row_step + i * step], b);
    }
  }
}

// Not inlined, this and the next function: among other variables the compiler finds no registers
// for the sums.
template <int64_t rows, class Lane>
[[gnu::noinline]] void score_panel(const Chunk<Lane>& chunk, int64_t key, const Block<Lane>& block,
                                   int64_t depth, Scores<float>* scores) {
  const int64_t next = key + vector_size;
  Vector sums[rows][2] = {};
  add_products<1, max_rows<Lane>>(
      sums, block.queries, chunk.tiles[key / tile_size].keys + key % tile_size,
      chunk.tiles[next / tile_size].keys + next % tile_size, chunk.key_stride, depth);
  for (int64_t r = 0; r < rows; ++r) {
    store(block.factor * sums[r][0], scores[r] + key);
    store(block.factor * sums[r][1], scores[r] + next);
  }
}

template <int64_t rows, class Lane>
[[gnu::noinline]] void value_panel(const Chunk<Lane>& chunk, int64_t column,
                                   const Scores<Lane>* powers, const float* factors,
                                   const Block<Lane>& block, int64_t padded_dim) {
  float* const outs = block.outs;
  Vector sums[rows][2];
  for (int64_t r = 0; r < rows; ++r) {
    sums[r][0] = factors[r] * load(outs + r * padded_dim + column);
    sums[r][1] = factors[r] * load(outs + r * padded_dim + column + vector_size);
  }
  for (int64_t key = 0; key < chunk.size; key += tile_size) {
    const Lane* values = chunk.tiles[key / tile_size].values + column;
    add_products<chunk_size / width<Lane>, 1>(
        sums, &powers[0][key / width<Lane>], values, values + vector_size, padded_dim,
        ceil_div(std::min(tile_size, chunk.size - key), width<Lane>));
  }
  for (int64_t r = 0; r < rows; ++r) {
    store(sums[r][0], outs + r * padded_dim + column);
    store(sums[r][1], outs + r * padded_dim + column + vector_size);
  }
}

#if defined(__AMX_BF16__)
// The same two in tiles: 0 to 3 hold the sums of 16 rows twice by 16 columns twice, 4 and 5 what
// rows and 6 and 7 what columns are multiplied by. Rows after the block's last have sums, too,
// which nobody reads.
constexpr int64_t row_bytes = chunk_size * sizeof(float);

template <int64_t rows>
[[gnu::noinline]] void score_panel(const Chunk<Pair>& chunk, int64_t key, const Block<Pair>& block,
                                   int64_t depth, Scores<float>* scores) {
  const bool two = block.size > tile_rows;
  const Pair* left = chunk.tiles[key / tile_size].keys;
  const Pair* right = chunk.tiles[key / tile_size + 1].keys;
  const Pair* queries = block.queries;
  TilesInUse::written(queries);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t i = 0; i < depth; i += tile_size) {
    _tile_loadd(6, left + i * tile_size, tile_bytes);
    _tile_loadd(7, right + i * tile_size, tile_bytes);
    _tile_loadd(4, queries + i, depth * sizeof(Pair));
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (two) {
      _tile_loadd(5, queries + tile_rows * depth + i, depth * sizeof(Pair));
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, scores[0] + key, row_bytes);
  _tile_stored(1, scores[0] + key + tile_size, row_bytes);
  if (two) {
    _tile_stored(2, scores[tile_rows] + key, row_bytes);
    _tile_stored(3, scores[tile_rows] + key + tile_size, row_bytes);
  }
  for (int64_t r = 0; r < block.size; ++r) {
    float* const row = scores[r] + key;
    store(block.factor * load(row), row);
    store(block.factor * load(row + vector_size), row + vector_size);
  }
}

template <int64_t rows>
[[gnu::noinline]] void value_panel(const Chunk<Pair>& chunk, int64_t column,
                                   const Scores<Pair>* powers, const float* factors,
                                   const Block<Pair>& block, int64_t padded_dim) {
  const bool two = block.size > tile_rows;
  float* const outs = block.outs + column;
  float* const below = outs + tile_rows * padded_dim;
  for (int64_t r = 0; r < block.size; ++r) {
    float* const row = outs + r * padded_dim;
    store(factors[r] * load(row), row);
    store(factors[r] * load(row + vector_size), row + vector_size);
  }
  TilesInUse::written(outs);
  const int64_t stride = padded_dim * sizeof(float);
  _tile_loadd(0, outs, stride);
  _tile_loadd(1, outs + tile_size, stride);
  if (two) {
    _tile_loadd(2, below, stride);
    _tile_loadd(3, below + tile_size, stride);
  }
  const Pair* values = chunk.tiles[0].values + column;  // of all tiles, one after the other
  for (int64_t pair = 0; 2 * pair < chunk.size; pair += tile_size) {
    _tile_loadd(6, values + pair * padded_dim, stride);
    _tile_loadd(7, values + pair * padded_dim + tile_size, stride);
    _tile_loadd(4, powers[0] + pair, sizeof powers[0]);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (two) {
      _tile_loadd(5, powers[tile_rows] + pair, sizeof powers[0]);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, outs, stride);
  _tile_stored(1, outs + tile_size, stride);
  if (two) {
    _tile_stored(2, below, stride);
    _tile_stored(3, below + tile_size, stride);
  }
}
#endif

// Lanes of neighbouring numbers, `stride` lanes apart. A pair's missing second number is zero.
template <class T>
void scatter(const T* numbers, int64_t size, float* to, int64_t stride) {
  for (int64_t i = 0; i < size; ++i) to[i * stride] = to_float(numbers[i]);
}

[[maybe_unused]] void scatter(const BFloat16* numbers, int64_t size, Pair* to, int64_t stride) {
  const int64_t pairs = size / 2;
  for (int64_t i = 0; i < pairs; ++i) {
    to[i * stride] = pair_of(numbers[2 * i], numbers[2 * i + 1]);
  }
  if (size % 2) to[pairs * stride] = pair_of(numbers[size - 1], BFloat16{0});
}

// Lanes of a line of numbers, or of two lines where they are pairs; of one and zeros where there
// is no second.
template <class T>
void read_lines(const T* line, const T*, int64_t size, float* to) {
#pragma omp simd
  for (int64_t j = 0; j < size; ++j) to[j] = to_float(line[j]);
}

template <class T>
void read_lines(const T* first, const T* second, int64_t size, Pair* to) {
  if (second == nullptr) {
    for (int64_t j = 0; j < size; ++j) to[j] = pair_of(first[j], T{});
    return;
  }
#pragma omp simd
  for (int64_t j = 0; j < size; ++j) to[j] = pair_of(first[j], second[j]);
}

// Memory that is needed next: no hardware foresees on which page. Of lines prefetched all at once
// most would be dropped, so each panel prefetches a few.
struct Lookahead {
  std::vector<const void*> lines;
  int64_t next = 0, end = 0, share = 0;

  void prefetch() {
    for (const int64_t stop = std::min(next + share, end); next < stop; ++next) {
      __builtin_prefetch(lines[next], 0, 2);
    }
  }
};

// Scores less their maximum to powers of two, which are summed as they are multiplied.
template <class Lane>
inline Vector powers_of(const Scores<float>& scores, float maximum, int64_t size,
                        Scores<Lane>& powers) {
  Vector sum{};
  for (int64_t key = 0; key < size; key += panel_size) {
    const Vector first = exp2_of_nonpositive(load(scores + key) - maximum);
    const Vector second = exp2_of_nonpositive(load(scores + key + vector_size) - maximum);
#if defined(__AVX512BF16__)
    if constexpr (width<Lane> == 2) {
      sum += round_to_pairs(first, second, powers + key / 2);
      continue;
    }
#endif
    if constexpr (width<Lane> == 1) {
      store(first, powers + key);
      store(second, powers + key + vector_size);
      sum += first;
      sum += second;
    }
  }
  return sum;
}

// Adds a chunk to what the rows of a block have gathered; in tiles to `rows` or fewer of them.
template <int64_t rows, class Lane>
void attend(const PrefixAttentionParams& p, const Chunk<Lane>& chunk, const Block<Lane>& block,
            Lookahead& ahead) {
  const int64_t padded_dim = round_up(p.dim, panel_size);
  const int64_t num_rows = tiled<Lane> ? block.size : rows;
  const int64_t size = round_up(chunk.size, panel_size);
  alignas(64) Scores<float> scores[rows];
  for (int64_t key = 0; key < size; key += panel_size) {
    ahead.prefetch();
    score_panel<rows>(chunk, key, block, lanes_of<Lane>(p.dim), scores);
  }

  // What takes a row's earlier sums from its earlier maximum to the new one.
  float factors[round_up(rows, vector_size)] = {};
  for (int64_t r = 0; r < num_rows; ++r) {
    Row& row = block.rows[r];
    const int64_t own = row.position - chunk.position;
    const int64_t first = std::clamp<int64_t>(own - p.sliding_window + 1, 0, size);
    const int64_t end = std::clamp<int64_t>(own + 1, 0, chunk.size);
    std::fill(scores[r], scores[r] + first, -INFINITY);
    std::fill(scores[r] + end, scores[r] + size, -INFINITY);
    const float maximum = std::max(row.maximum, highest(scores[r], size));
    factors[r] = row.maximum - maximum;
    row.maximum = maximum;
  }
  for (int64_t r = 0; r < num_rows; r += vector_size) {
    store(exp2_of_nonpositive(load(factors + r)), factors + r);
  }
  alignas(64) Scores<Lane> powers[rows];
  for (int64_t r = 0; r < num_rows; ++r) {
    Row& row = block.rows[r];
    const Vector sum = powers_of<Lane>(scores[r], row.maximum, size, powers[r]);
    store(factors[r] * load(row.sums) + sum, row.sums);
  }

  for (int64_t column = 0; column < padded_dim; column += panel_size) {
    ahead.prefetch();
    value_panel<rows>(chunk, column, powers, factors, block, padded_dim);
  }
}

// The same, with the number of rows known when compiling, but for tiles.
template <class Lane, int64_t rows = max_rows<Lane>>
void attend_block(const PrefixAttentionParams& p, const Chunk<Lane>& chunk,
                  const Block<Lane>& block, Lookahead& ahead) {
  if constexpr (rows > 1 && !tiled<Lane>) {
    if (block.size < rows) return attend_block<Lane, rows - 1>(p, chunk, block, ahead);
  }
  attend<rows>(p, chunk, block, ahead);
}

int64_t longest_suffix(const PrefixAttentionParams& p) {
  int64_t longest = 0;
  for (int64_t b = 0; b < p.batch; ++b) longest = std::max<int64_t>(longest, p.suffix_lengths[b]);
  return longest;
}

// One thread's memory, and its work: all queries of one candidate that share a head of the keys.
// T is the dtype of q, k, v and out, Page that of the pages, Lane what is multiplied.
template <class T, class Page, class Lane>
class Worker {
 public:
  explicit Worker(const PrefixAttentionParams& params)
      : p(params),
        group(p.heads / p.kv_heads),
        padded_dim(round_up(p.dim, panel_size)),
        rows(group * (p.last_only ? 1 : longest_suffix(p))),
        depth(lanes_of<Lane>(p.dim)),
        queries(round_up(rows.size(), max_rows<Lane>) * depth),
        outs(round_up(rows.size(), tiled<Lane> ? max_rows<Lane> : 1) * padded_dim),
        keys(chunk_size * depth),
        values(chunk_size / width<Lane> * padded_dim),
        floats(compressed && width<Lane> == 2 ? tile_size * padded_dim : 0),
        scales(packed ? 2 * p.dim : 0),
        ahead{std::vector<const void*>(2 * chunk_tiles * p.dim)} {}

  void run(int64_t pair) {
    candidate = pair / p.kv_heads;
    kv_head = pair % p.kv_heads;
    prefix_length = p.prefix_lengths[candidate];
    const int64_t suffix_length = p.suffix_lengths[candidate];
    if (suffix_length == 0) return;
    read_queries(suffix_length);

    // Chunks begin at multiples of 64: one that the window cuts is masked, not moved.
    const int64_t out_of_sight = std::max<int64_t>(0, rows[0].position + 1 - p.sliding_window);
    for (int64_t n = out_of_sight / chunk_size * chunk_size; n < prefix_length; n += chunk_size) {
      attend_all(prefix_chunk(n));
    }
    for (int64_t n = 0; n < suffix_length; n += chunk_size) {
      attend_all(suffix_chunk(n, std::min(chunk_size, suffix_length - n)));
    }
    write_outs();
  }

 private:
  // Rows are ordered by token: neighbours see nearly the same keys.
  int64_t query_row(int64_t r) const { return first_row + r / group; }
  int64_t query_head(int64_t r) const { return kv_head * group + r % group; }

  void read_queries(int64_t suffix_length) {
    const int64_t first_token = p.last_only ? suffix_length - 1 : 0;
    first_row = p.last_only ? candidate : p.suffix_starts[candidate];
    num_rows = group * (suffix_length - first_token);
    // Blocks of even size: a last one of a few rows would leave most registers idle.
    num_blocks = ceil_div(num_rows, max_rows<Lane>);
    block_size = tiled<Lane> ? max_rows<Lane> : ceil_div(num_rows, num_blocks);
    for (int64_t r = 0; r < num_rows; ++r) {
      rows[r] = Row{prefix_length + first_token + r / group};
      const T* query = at<T>(p.q, query_row(r), query_head(r));
      Lane* block = queries.data() + r / block_size * max_rows<Lane> * depth;
      const int64_t row = r % block_size;
      tiled<Lane> ? scatter(query, p.dim, block + row * depth, 1)
                  : scatter(query, p.dim, block + row, max_rows<Lane>);
    }
    std::fill_n(outs.begin(), num_rows * padded_dim, 0.0f);
  }

  void write_outs() const {
    for (int64_t r = 0; r < num_rows; ++r) {
      float sum = 0.0f;
      for (float part : rows[r].sums) sum += part;
      T* out = static_cast<T*>(p.out) + (query_row(r) * p.heads + query_head(r)) * p.dim;
      for (int64_t i = 0; i < p.dim; ++i) from_float(outs[r * padded_dim + i] / sum, out + i);
    }
  }

  void attend_all(const Chunk<Lane>& chunk) {
    const float factor = p.scale * 1.44269504f;  // log2(e): e^x is 2^(log2(e) x)
    look_ahead(chunk.position + chunk_size);
    for (int64_t b = 0; b < num_blocks; ++b) {
      const int64_t first = b * block_size, size = std::min(block_size, num_rows - first);
      const bool future = chunk.position > rows[first + size - 1].position;
      const bool past = chunk.position + chunk.size <= rows[first].position + 1 - p.sliding_window;
      if (future || past) continue;
      attend_block(p, chunk,
                   Block<Lane>{size, queries.data() + b * max_rows<Lane> * depth, factor,
                               rows.data() + first, outs.data() + first * padded_dim},
                   ahead);
    }
  }

  // Where 16 keys of the prefix and their values lie.
  struct PageTile {
    const Page* keys;    // [columns(), 16], page_size from one column to the next
    const Page* values;  // [16, columns()]
    int64_t token;       // the first, among all heads' tokens
    int64_t head;        // among those of all pages
  };

  // Of a head in pages.
  int64_t columns() const { return packed ? p.dim / 2 : p.dim; }

  PageTile page_tile(int64_t key) const {
    const int64_t page = p.page_table[candidate * p.table_width + key / p.page_size];
    const int64_t head = page * p.kv_heads + kv_head;
    const int64_t first_token = head * p.page_size;
    const int64_t slot = key % p.page_size;
    return {static_cast<const Page*>(p.key_pages) + first_token * columns() + slot,
            static_cast<const Page*>(p.value_pages) + (first_token + slot) * columns(),
            first_token + slot, head};
  }

  void look_ahead(int64_t first) {
    ahead.next = ahead.end = 0;
    constexpr int64_t line_size = 64 / sizeof(Page);
    for (int64_t key = first; key < std::min(first + chunk_size, prefix_length); key += tile_size) {
      const PageTile tile = page_tile(key);
      const void** line = ahead.lines.data() + ahead.end;
      // Neighbouring tiles' keys may share lines
      if (key == first || key % p.page_size % line_size == 0) {
        for (int64_t i = 0; i < columns(); ++i) *line++ = tile.keys + i * p.page_size;
      }
      for (int64_t i = 0; i < columns() * tile_size; i += line_size) *line++ = tile.values + i;
      ahead.end = line - ahead.lines.data();
    }
    ahead.share = ceil_div(ahead.end, num_blocks * (chunk_size + padded_dim) / panel_size);
  }

  Chunk<Lane> prefix_chunk(int64_t first) {
    Chunk<Lane> chunk{
        {}, in_place ? p.page_size : tile_size, first, std::min(chunk_size, prefix_length - first)};
    for (int64_t t = 0; t < chunk_tiles; ++t) {
      const int64_t size = std::min(tile_size, chunk.size - t * tile_size);
      if (size > 0) {
        const PageTile tile = page_tile(first + t * tile_size);
        chunk.tiles[t] = {keys_of(tile, keys_copy(t)), values_of(tile, size, values_copy(t))};
      } else {
        chunk.tiles[t] = chunk.tiles[0];
      }
    }
    clear_values(chunk.size);
    return chunk;
  }

  // Where the keys lie if the kernel can read them there, else a copy.
  const Lane* keys_of(const PageTile& tile, Lane* copy) {
    if constexpr (in_place) {
      return tile.keys;
    } else if constexpr (!compressed) {
      copy_keys(tile.keys, p.page_size, copy);
    } else if constexpr (width<Lane> == 1) {
      expand_keys(tile, copy);
    } else {
      expand_keys(tile, floats.data());
      copy_keys(floats.data(), tile_size, copy);
    }
    return copy;
  }

  // The same of so many values.
  const Lane* values_of(const PageTile& tile, int64_t size, Lane* copy) {
    if constexpr (in_place) {
      if (p.dim == padded_dim) return tile.values;
    }
    if constexpr (!compressed) {
      copy_values(tile.values, p.dim, size, copy);
    } else if constexpr (width<Lane> == 1) {
      expand_values(tile, copy);
    } else {
      expand_values(tile, floats.data());
      copy_values(floats.data(), padded_dim, size, copy);
    }
    return copy;
  }

  // From coordinates of 16 keys, `stride` apart.
  template <class From>
  void copy_keys(const From* from, int64_t stride, Lane* copy) const {
    for (int64_t i = 0; i < ceil_div(p.dim, width<Lane>); ++i) {
      const From* line = from + i * width<Lane> * stride;
      const bool is_whole = (i + 1) * width<Lane> <= p.dim;
      read_lines(line, is_whole ? line + stride : nullptr, tile_size, copy + i * tile_size);
    }
  }

  // From so many values, `stride` apart.
  template <class From>
  void copy_values(const From* from, int64_t stride, int64_t size, Lane* copy) const {
    for (int64_t j = 0; j < size; j += width<Lane>) {
      const From* line = from + j * stride;
      const bool is_whole = j + width<Lane> <= size;
      read_lines(line, is_whole ? line + stride : nullptr, p.dim,
                 copy + j / width<Lane> * padded_dim);
    }
  }

  // Compressed keys as floats, [dim, 16].
  void expand_keys(const PageTile& tile, float* copy) {
    if constexpr (packed) {
      unpack_keys(tile, copy);
    } else {
      const float* scale = static_cast<const float*>(p.key_scales) + tile.token;
      for (int64_t i = 0; i < p.dim; ++i) {
        for (int64_t j = 0; j < tile_size; ++j) {
          copy[i * tile_size + j] = to_float(tile.keys[i * p.page_size + j]) * scale[j];
        }
      }
    }
  }

  // Compressed values as floats, [16, padded_dim].
  void expand_values(const PageTile& tile, float* copy) const {
    if constexpr (packed) {
      unpack_values(tile, copy);
    } else {
      const float* scale = static_cast<const float*>(p.value_scales) + tile.token;
      for (int64_t j = 0; j < tile_size; ++j) {
        for (int64_t i = 0; i < p.dim; ++i) {
          copy[j * padded_dim + i] = to_float(tile.values[j * p.dim + i]) * scale[j];
        }
      }
    }
  }

  // Keys of int4: a channel has its scale and minimum.
  void unpack_keys(const PageTile& tile, float* copy) {
    const Float16* packed_scale = static_cast<const Float16*>(p.key_scales) + tile.head * p.dim;
    const Float16* packed_minimum = static_cast<const Float16*>(p.key_minima) + tile.head * p.dim;
    float* const scale = scales.data();
    float* const minimum = scale + p.dim;
    for (int64_t i = 0; i < p.dim; ++i) scale[i] = to_float(packed_scale[i]);
    for (int64_t i = 0; i < p.dim; ++i) minimum[i] = to_float(packed_minimum[i]);
    const int64_t half = p.dim / 2;
    for (int64_t i = 0; i < half; ++i) {
      const Page* pairs = tile.keys + i * p.page_size;
      float* const lower = copy + i * tile_size;
      float* const upper = lower + half * tile_size;
#pragma omp simd
      for (int64_t j = 0; j < tile_size; ++j) {
        lower[j] = low(pairs[j]) * scale[i] + minimum[i];
        upper[j] = high(pairs[j]) * scale[i + half] + minimum[i + half];
      }
    }
  }

  // Values of int4: a token has its scale and minimum.
  void unpack_values(const PageTile& tile, float* copy) const {
    const int64_t half = p.dim / 2;
    for (int64_t j = 0; j < tile_size; ++j) {
      const float scale = to_float(static_cast<const Float16*>(p.value_scales)[tile.token + j]);
      const float minimum = to_float(static_cast<const Float16*>(p.value_minima)[tile.token + j]);
      const Page* pairs = tile.values + j * half;
      float* const lower = copy + j * padded_dim;
      float* const upper = lower + half;
#pragma omp simd
      for (int64_t i = 0; i < half; ++i) {
        lower[i] = low(pairs[i]) * scale + minimum;
        upper[i] = high(pairs[i]) * scale + minimum;
      }
    }
  }

  Chunk<Lane> suffix_chunk(int64_t first, int64_t size) {
    Chunk<Lane> chunk{{}, tile_size, prefix_length + first, size};
    for (int64_t t = 0; t < chunk_tiles; ++t) chunk.tiles[t] = {keys_copy(t), values_copy(t)};
    const int64_t first_row_of_chunk = p.suffix_starts[candidate] + first;
    for (int64_t n = 0; n < size; ++n) {
      const T* key = at<T>(p.k, first_row_of_chunk + n, kv_head);
      Lane* to = keys_copy(n / tile_size) + n % tile_size;
      scatter(key, p.dim, to, tile_size);
    }
    for (int64_t n = 0; n < size; n += tile_size) {
      copy_values(at<T>(p.v, first_row_of_chunk + n, kv_head), p.v.stride[0],
                  std::min(tile_size, size - n), values_copy(n / tile_size));
    }
    clear_values(size);
    return chunk;
  }

  // Tiles multiply whole ones of values: after a chunk's last may be those of an earlier chunk.
  void clear_values(int64_t size) {
    if constexpr (tiled<Lane>) {
      const auto end = values.begin() + round_up(size, panel_size) / width<Lane> * padded_dim;
      std::fill(values.begin() + ceil_div(size, width<Lane>) * padded_dim, end, Lane{});
    }
  }

  Lane* keys_copy(int64_t tile) { return keys.data() + tile * tile_size * depth; }
  Lane* values_copy(int64_t tile) {
    return values.data() + tile * tile_size / width<Lane> * padded_dim;
  }

  static constexpr bool packed = std::is_same_v<Page, Nibbles>;               // int4
  static constexpr bool compressed = packed || std::is_same_v<Page, int8_t>;  // or int8
  static constexpr bool in_place = std::is_same_v<Page, Lane>;

  const PrefixAttentionParams& p;
  const int64_t group;       // query heads that share a head of the keys
  const int64_t padded_dim;  // whole panels
  std::vector<Row> rows;
  const int64_t depth;             // lanes of dim
  std::vector<Lane> queries;       // of the blocks
  std::vector<float> outs;         // of the blocks
  std::vector<Lane> keys, values;  // copies of a chunk's tiles
  std::vector<float> floats;       // a compressed tile on its way to pairs
  std::vector<float> scales;       // of a tile's channels, then minima

  Lookahead ahead;

  // Of the current pair.
  int64_t candidate, kv_head, prefix_length;
  int64_t first_row, num_rows, num_blocks, block_size;
};

#if defined(__AVX512BF16__)
template <class T>
using LaneOf = std::conditional_t<std::is_same_v<T, BFloat16>, Pair, float>;
#else
template <class T>
using LaneOf = float;
#endif

template <class T, class Page>
void all_pairs(const PrefixAttentionParams& p, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Worker<T, Page, LaneOf<T>> worker(p);
#if defined(__AMX_BF16__)
    const TilesInUse tiles;
#endif
#pragma omp for schedule(dynamic)
    for (int64_t pair = 0; pair < p.batch * p.kv_heads; ++pair) {
      worker.run(pair);
    }
  }
}

}  // namespace

namespace RAGVL_ISA {

void prefix_attention(const PrefixAttentionParams& p, int threads) {
  dispatch(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    p.key_minima   ? all_pairs<T, Nibbles>(p, threads)
    : p.key_scales ? all_pairs<T, int8_t>(p, threads)
                   : all_pairs<T, T>(p, threads);
  });
}

}  // namespace RAGVL_ISA
}  // namespace ragvl
