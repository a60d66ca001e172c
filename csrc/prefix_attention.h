// prefix_attention: suffixes attend to cached prefixes that lie in pages; see
// ragvl/ops/prefix_attention.py for the equation.
#pragma once

#include <cstdint>

#include "isa.h"
#include "types.h"

namespace ragvl {

// What a page's numbers are: of the queries' dtype, or int8 with scales.
enum class PageFormat { plain, int8 };

// Rows or heads of q, k or v: a head's elements are contiguous.
struct HeadsView {
  const void* data;
  int64_t row_stride;   // elements from one row to the next
  int64_t head_stride;  // elements from one head to the next
};

// The caller has checked everything (ragvl/ops/prefix_attention.py), the tables' values too.
struct PrefixAttentionParams {
  HeadsView q;                    // [rows, heads, dim], or [batch, heads, dim] with last_only
  HeadsView k;                    // [rows, kv_heads, dim]
  HeadsView v;                    // [rows, kv_heads, dim]
  const void* key_pages;          // [pages, kv_heads, dim, page_size]
  const void* value_pages;        // [pages, kv_heads, page_size, dim]
  const float* key_scales;        // [pages, kv_heads, page_size], null for plain pages
  const float* value_scales;      // [pages, kv_heads, page_size], null for plain pages
  const int32_t* page_table;      // [batch, table_width]
  const int32_t* prefix_lengths;  // [batch]
  const int32_t* suffix_starts;   // [batch]
  const int32_t* suffix_lengths;  // [batch]
  void* out;                      // shaped like q, contiguous; the caller has filled it with zeros
  int64_t batch;
  int64_t heads;
  int64_t kv_heads;
  int64_t dim;
  int64_t page_size;  // a multiple of 16
  int64_t table_width;
  int64_t sliding_window;  // at least 1; longer than anything where there is none
  float scale;
  bool last_only;
  DType dtype;
  PageFormat page_format;
};

RAGVL_DECLARE_CPU_KERNEL(prefix_attention, PrefixAttentionParams)

}  // namespace ragvl
