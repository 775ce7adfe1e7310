// The tile instructions of csrc/tiles.h written out, for CPUs without AMX: registers of 16 rows of 64 bytes. The sums are
// those of Intel's manual: pairs of a tile are added up apart, first and second numbers, and then to the float32 sums.
#pragma once

#include <stdint.h>

namespace emulated {

struct Registers {
  bool configured;
  uint32_t tile[8][16][16];
};
static thread_local Registers registers;

static inline float wide(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

static inline void zero(int t) { __builtin_memset(registers.tile[t], 0, sizeof registers.tile[t]); }

static inline void load(int t, const void* base, int64_t stride) {
  if (!registers.configured) __builtin_trap();  // what the CPU does
  for (int r = 0; r < 16; ++r)
    __builtin_memcpy(registers.tile[t][r], static_cast<const char*>(base) + r * stride, 64);
}

static inline void store(int t, void* base, int64_t stride) {
  for (int r = 0; r < 16; ++r) __builtin_memcpy(static_cast<char*>(base) + r * stride, registers.tile[t][r], 64);
}

static inline void add_product(int sum, int a, int b) {
  for (int m = 0; m < 16; ++m) {
    float first[16] = {}, second[16] = {}, total[16];
    for (int k = 0; k < 16; ++k) {
      const uint32_t pair = registers.tile[a][m][k];
      for (int n = 0; n < 16; ++n) {
        first[n] += wide(pair << 16) * wide(registers.tile[b][k][n] << 16);
        second[n] += wide(pair & 0xFFFF0000u) * wide(registers.tile[b][k][n] & 0xFFFF0000u);
      }
    }
    __builtin_memcpy(total, registers.tile[sum][m], 64);
    for (int n = 0; n < 16; ++n) total[n] += first[n] + second[n];
    __builtin_memcpy(registers.tile[sum][m], total, 64);
  }
}

}  // namespace emulated

#define TILE_CONFIGURE(config) emulated::registers.configured = (config).palette == 1
#define TILE_RELEASE() emulated::registers.configured = false
#define TILE_ZERO(t) emulated::zero(t)
#define TILE_LOAD(t, base, stride) emulated::load(t, base, stride)
#define TILE_STORE(t, base, stride) emulated::store(t, base, stride)
#define TILE_ADD_PRODUCT(sum, a, b) emulated::add_product(sum, a, b)
