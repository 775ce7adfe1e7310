// AVX2 with FMA: 16 registers of 8 floats.
#include "interaction.h"

#if defined(__x86_64__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define VECTOR_BYTES 32
#define STRIP_VECTORS 2
#define TILE_ROWS 6
#define BLOCK_LANES 256
#define SLICE_VECTORS 4

namespace filip {
namespace {
#include "vector.inl"
#include "forward.inl"
#include "backward.inl"
}  // namespace

const Isa* avx2_isa() {
  static const Isa isa = {"avx2", image_block, forward_bytes, forward, backward_slice_width, backward_bytes, backward};
  return &isa;
}
}  // namespace filip

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
