// AVX-512 with its product of bfloat16 pairs: the forward pass in bfloat16 takes half of the instructions.
#include "interaction.h"

#if INTERACTION_HAS_AVX512_BF16
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
#define SLICE_VECTORS 4
#define BFLOAT16_PAIRS 1

#include "kernels.h"

const interaction::Isa* interaction::avx512_bf16_isa() { return kernels("avx512_bf16"); }

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
