// One vector type for every instruction set: GCC's and clang's vector extension at VECTOR_BYTES. A file compiled for a
// wider instruction set defines that together with its tile sizes before it includes the kernels:
//   STRIP_VECTORS and TILE_ROWS  the register tile of the product: vectors of image tokens x text rows
//   BLOCK_LANES                  image tokens of one forward unit
//   SLICE_VECTORS                columns of one backward slice, in vectors
//   BFLOAT16_PAIRS               1 if it multiplies pairs of bfloat16 and sums them in float32
// Below are those of the portable one. Everything here has internal linkage, so that each instruction set has its own.
#pragma once

#include "interaction.h"

#ifndef VECTOR_BYTES
#define VECTOR_BYTES 16
#define STRIP_VECTORS 2
#define TILE_ROWS 4
#define BLOCK_LANES 128
#define SLICE_VECTORS 4
#endif

#ifndef BFLOAT16_PAIRS
#define BFLOAT16_PAIRS 0
#endif

namespace interaction {
namespace {

typedef float vf __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t vi __attribute__((vector_size(VECTOR_BYTES)));
typedef float vf_unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));

constexpr int LANES = VECTOR_BYTES / 4;
// Text rows of one tile of similarities: enough that few register tiles are lower than they could be, and that the sums of
// the backward pass over them are long, few enough for the second-level cache.
constexpr int64_t CHUNK_ROWS = 96;

static inline vf load(const float* p) { return *reinterpret_cast<const vf_unaligned*>(p); }
static inline void store(float* p, vf v) { *reinterpret_cast<vf_unaligned*>(p) = v; }
static inline vf splat(float s) { return s - vf{}; }  // x - 0 is x for every x, so this is a bare broadcast
static inline vi splat(int32_t s) { return s - vi{}; }
static inline vi lane_numbers() {
  vi lanes;
  for (int l = 0; l < LANES; ++l) lanes[l] = l;
  return lanes;
}

// out[row][0 .. width) = columns [first, first + valid) of the given rows, zeros beyond.
static void copy_columns(const void* rows, bool bf16, Range range, int64_t dim, int64_t first, int64_t valid,
                         int64_t width, float* out) {
  for (int64_t row = range.begin; row < range.end; ++row, out += width) {
    if (bf16) {
      const uint16_t* in = static_cast<const uint16_t*>(rows) + row * dim + first;
      for (int64_t c = 0; c < valid; ++c) out[c] = bf16_to_float(in[c]);
    } else {
      const float* in = static_cast<const float*>(rows) + row * dim + first;
      int64_t c = 0;
      for (; c + LANES <= valid; c += LANES) store(out + c, load(in + c));
      for (; c < valid; ++c) out[c] = in[c];
    }
    for (int64_t c = valid; c < width; ++c) out[c] = 0;
  }
}

// The dim columns cut into slices of `wanted` (a multiple of LANES); the last may be narrower, and hold fewer
// valid columns than its width.
struct Slice {
  int64_t first, valid, width;
};

static inline Slice slice_of(int64_t dim, int64_t wanted, int64_t s) {
  const int64_t first = s * wanted, valid = at_most(wanted, dim - first);
  return {first, valid, round_up(valid, LANES)};
}

// A column of the panel: a float of each token, or two bfloat16 of it.
struct Floats {
  typedef float element;
  typedef vf vector;
  static vf add_product(vf sum, vf feature, vf token) { return sum + feature * token; }
};

static bool in_pairs(const Problem& p) { return BFLOAT16_PAIRS && p.bf16 && p.dim % 2 == 0; }

// Columns of a token as the product sees them, 4 bytes each.
static int64_t columns_of(const Problem& p) { return in_pairs(p) ? p.dim / 2 : p.dim; }

// Whether PyTorch multiplies: its blocks are as wide as the whole second factor.
static bool by_torch(const Problem& p) { return p.multiply && in_pairs(p); }

// Whether text has to be copied to take the form of the columns.
static bool widens(const Problem& p) { return p.bf16 && !in_pairs(p); }

// Rows of weights and tokens that are multiplied: PyTorch takes several times as long unless they fill its tiles of 32.
static int64_t filled(const Problem& p, int64_t rows) { return by_torch(p) ? round_up(rows, 32) : rows; }

// Vectors that hold the tokens of a block of images.
static int64_t vectors_of(const Problem& p, Range rows) { return div_up(filled(p, rows.end - rows.begin), LANES); }

}  // namespace
}  // namespace interaction
