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

#include "kernels.h"

const interaction::Isa* interaction::avx2_isa() { return kernels("avx2"); }

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
