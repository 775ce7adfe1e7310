// AVX-512 with AMX: products in bfloat16, and in float32 as three of bfloat16, by tile registers.
#include "interaction.h"

#if INTERACTION_HAS_AMX
#include <immintrin.h>  // only macros and functions that are always inlined: nothing for the linker to merge

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#define VECTOR_BYTES 64
#define STRIP_VECTORS 4
#define TILE_ROWS 6
#define BLOCK_LANES 448
#define CHUNK_ROWS 128
#define SLICE_VECTORS 4
#define BFLOAT16_PAIRS 1
#define TILES 1

#include "kernels.h"

const interaction::Isa* interaction::amx_isa() { return kernels("amx"); }

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
