// How a product's rows are shared out: each chunk of them is multiplied by one panel of columns
// after the other.
#pragma once

#include <algorithm>
#include <cstdint>

namespace ragvl {
namespace {

// The rows of a chunk, a multiple of `step`: as many as `cached_bytes` hold of `row_bytes` each and
// at least `least`, but fewer where threads would have nothing to do.
inline int64_t rows_of_chunk(int64_t rows, int64_t row_bytes, int64_t panels, int threads,
                             int64_t cached_bytes, int64_t least, int64_t step) {
  const int64_t parts = std::max<int64_t>(1, 2 * threads / std::max<int64_t>(1, panels));
  const int64_t even = (rows + parts * step - 1) / (parts * step) * step;
  const int64_t cached = cached_bytes / row_bytes / step * step;
  return std::clamp(even, step, std::max(cached, least));
}

}  // namespace
}  // namespace ragvl
