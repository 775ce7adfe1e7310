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

#include "kernels.h"

const interaction::Isa* interaction::avx512_isa() { return kernels("avx512"); }

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
