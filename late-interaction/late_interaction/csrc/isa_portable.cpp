// Whatever the compiler's base target offers: NEON on 64-bit ARM, SSE2 on x86-64. The fallback of every machine.
#if defined(__aarch64__)
// 32 registers of 4 floats: 24 of 35 instructions of the product's loop multiply, where the portable tile has 8 of 16.
#define VECTOR_BYTES 16
#define STRIP_VECTORS 4
#define TILE_ROWS 6
#define BLOCK_LANES 128
#define SLICE_VECTORS 4
#define BASE_NAME "neon"
#else
#define BASE_NAME "scalar"
#endif

#include "kernels.h"

const interaction::Isa* interaction::portable_isa() { return kernels(BASE_NAME); }
