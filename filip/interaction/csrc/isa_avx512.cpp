// AVX-512: 32 registers of 16 floats.
#include "interaction.h"

#if defined(__x86_64__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#define VECTOR_BYTES 64
#define STRIP_VECTORS 4
#define TILE_ROWS 6
#define BLOCK_LANES 448
#define SLICE_VECTORS 4

namespace filip {
namespace {
#include "vector.inl"
#include "forward.inl"
#include "backward.inl"
}  // namespace

const Isa* avx512_isa() {
  static const Isa isa = {"avx512", image_block, forward_bytes, forward, backward_slice_width, backward_bytes, backward};
  return &isa;
}
}  // namespace filip

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
