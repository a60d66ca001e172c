// The tile registers of AMX: eight, each of 16 rows of 64 bytes.
#pragma once

#if defined(__AMX_TILE__)
#include <immintrin.h>

#include <cstdint>

namespace ragvl {
namespace {

constexpr int64_t tile_rows = 16;
constexpr int64_t tile_bytes = 64;  // of a row

// While it lives its thread may use the tiles.
class TilesInUse {
 public:
  TilesInUse() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int tile = 0; tile < 8; ++tile) {
      config.row_bytes[tile] = tile_bytes;
      config.rows[tile] = tile_rows;
    }
    written(&config);
    _tile_loadconfig(&config);
  }
  ~TilesInUse() { _tile_release(); }
  TilesInUse(const TilesInUse&) = delete;

  // What was written there before is there when tiles are loaded: compilers do not know that the
  // instructions read memory.
  static void written(const void* memory) { asm volatile("" : : "r"(memory) : "memory"); }
};

}  // namespace
}  // namespace ragvl
#endif
