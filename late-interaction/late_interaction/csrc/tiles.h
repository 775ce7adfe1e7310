// Products of blocks of 32 x 32 by AMX: eight tile registers of 16 rows of 64 bytes, and an instruction that multiplies
// 16 rows of 16 pairs of bfloat16 with 16 pairs of 16 lanes and adds in float32. Four tiles hold the sums of a block.
//
// A row of float32 is two of bfloat16, x = high + low, and a product is high high + high low + low high: within 2^-16 of
// each term, where bfloat16 alone is within 2^-8.
//
// The instructions are written out, since GCC 12's functions of them do not tell the compiler that they read memory.
#pragma once

#include "vector.h"

#ifdef INTERACTION_TILES_HEADER
#include INTERACTION_TILES_HEADER  // tests emulate the instructions
#else
#define TILE_CONFIGURE(config) asm volatile("ldtilecfg %0" ::"m"(config))
#define TILE_RELEASE() asm volatile("tilerelease" ::: "memory")
#define TILE_ZERO(t) asm volatile("tilezero %%tmm" #t ::: "memory")
#define TILE_LOAD(t, base, stride) asm volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(base), "r"(stride) : "memory")
#define TILE_STORE(t, base, stride) asm volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(base), "r"(stride) : "memory")
#define TILE_ADD_PRODUCT(sum, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum ::: "memory")
#endif

namespace interaction {
namespace {

// While it lives, this thread has tile registers; the system saves their 8 KB at each switch.
struct Tiles {
  Tiles() {
    struct alignas(64) {
      uint8_t palette, start_row, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } config = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    TILE_CONFIGURE(config);
  }
  ~Tiles() { TILE_RELEASE(); }
  Tiles(const Tiles&) = delete;
};

// A matrix [rows][words] of pairs of bfloat16 of neighbouring columns, `stride` words apart.
struct RowPairs {
  const float* words;
  int64_t stride;
};
// A matrix [words][lanes] of pairs of neighbouring rows, `stride` words apart; 32 lanes on, `step` words further.
struct LanePairs {
  const float* words;
  int64_t stride, step;
};

static inline void add_block(const float* a, int64_t a_stride, const float* b, int64_t b_stride) {
  TILE_LOAD(4, a, a_stride * 4);
  TILE_LOAD(5, a + 16 * a_stride, a_stride * 4);
  TILE_LOAD(6, b, b_stride * 4);
  TILE_LOAD(7, b + 16, b_stride * 4);
  TILE_ADD_PRODUCT(0, 4, 6);
  TILE_ADD_PRODUCT(1, 4, 7);
  TILE_ADD_PRODUCT(2, 5, 6);
  TILE_ADD_PRODUCT(3, 5, 7);
}

// out[rows][lanes] (+)= a b. rows and lanes are multiples of 32, the words of a row of 16; `split` rows are high parts,
// then low ones, and likewise the words of b.
static void tile_product(RowPairs a, LanePairs b, int64_t rows, int64_t lanes, int64_t words, bool split, bool add,
                         float* out, int64_t out_stride) {
  const int64_t part = split ? words / 2 : words, bytes = out_stride * 4;
  for (int64_t l = 0; l < lanes; l += 32, b.words += b.step)
    for (int64_t r = 0; r < rows; r += 32) {
      const float* row = a.words + r * a.stride;
      float *top = out + r * out_stride + l, *bottom = top + 16 * out_stride;
      if (add) {
        TILE_LOAD(0, top, bytes);
        TILE_LOAD(1, top + 16, bytes);
        TILE_LOAD(2, bottom, bytes);
        TILE_LOAD(3, bottom + 16, bytes);
      } else {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
      }
      for (int64_t c = 0; c < part; c += 16) {
        const float* high = b.words + c * b.stride;
        add_block(row + c, a.stride, high, b.stride);
        if (!split) continue;
        add_block(row + c, a.stride, high + part * b.stride, b.stride);
        add_block(row + part + c, a.stride, high, b.stride);
      }
      TILE_STORE(0, top, bytes);
      TILE_STORE(1, top + 16, bytes);
      TILE_STORE(2, bottom, bytes);
      TILE_STORE(3, bottom + 16, bytes);
    }
}

// One token as bfloat16 with zeros up to a multiple of 32 columns; a float32 one as its high and its low part.
static void tile_row(const void* rows, bool bf16, int64_t row, int64_t dim, float* out) {
  const int64_t padded = round_up(dim, 32);
  if (bf16) {
    __builtin_memcpy(out, static_cast<const uint16_t*>(rows) + row * dim, static_cast<size_t>(dim) * 2);
    __builtin_memset(reinterpret_cast<uint16_t*>(out) + dim, 0, static_cast<size_t>(padded - dim) * 2);
    return;
  }
  const float* in = static_cast<const float*>(rows) + row * dim;
  for (int64_t c = 0; c < padded; c += 32, out += 16) {
    float last[32] = {};
    const float* x = in + c;
    if (c + 32 > dim) x = last, __builtin_memcpy(last, in + c, static_cast<size_t>(dim - c) * 4);
    const vf first = load(x), second = load(x + 16);
    const __m512i high = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    const vf of_first = (vf)((vi)_mm512_cvtepu16_epi32(_mm512_castsi512_si256(high)) << 16);
    const vf of_second = (vf)((vi)_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(high, 1)) << 16);
    store(out, (vf)high);
    store(out + padded / 2, (vf)_mm512_cvtne2ps_pbh((__m512)(second - of_second), (__m512)(first - of_first)));
  }
}

// Strips of 32 lanes; `row` is of one token.
static void pack_panel(const Problem& p, Range images, int64_t vectors, float* panel, float* row) {
  const int64_t first = p.image_offsets[images.begin], rows = p.image_offsets[images.end] - first;
  const int64_t columns = columns_of(p);
  for (int64_t l = 0; l < vectors * LANES; ++l) {
    if (l < rows)
      tile_row(p.image, p.bf16, first + l, p.dim, row);
    else
      __builtin_memset(row, 0, static_cast<size_t>(columns) * 4);
    float* out = panel + l / 32 * 32 * columns + l % 32;
    for (int64_t c = 0; c < columns; ++c) out[c * 32] = row[c];
  }
}

// Rows of text in the form of the columns, and after them zeros or other rows up to a multiple of 32.
static const float* text_columns(const Problem& p, Range rows, float* copy) {
  const int64_t end = rows.begin + round_up(rows.end - rows.begin, 32), columns = columns_of(p);
  if (p.bf16 && p.dim % 32 == 0 && end <= p.text_offsets[p.texts])
    return reinterpret_cast<const float*>(static_cast<const uint16_t*>(p.text) + rows.begin * p.dim);
  for (int64_t row = rows.begin; row < rows.end; ++row)
    tile_row(p.text, p.bf16, row, p.dim, copy + (row - rows.begin) * columns);
  __builtin_memset(copy + (rows.end - rows.begin) * columns, 0, static_cast<size_t>((end - rows.end) * columns) * 4);
  return copy;
}

// The products of `length` rows of text, in the form of the columns, with a packed block: tile[row][lane], whose rows go up
// to a multiple of 32.
static void product_tile(const Problem& p, const float* text, int64_t length, const float* packed, int64_t vectors,
                         float* tile) {
  const int64_t columns = columns_of(p), lanes = vectors * LANES;
  tile_product({text, columns}, {packed, 32, 32 * columns}, round_up(length, 32), lanes, columns, !p.bf16, false, tile,
               lanes);
}

// Calls store(column, row / 2, pair) for the numbers of neighbouring rows of bfloat16 in columns [0, lanes), 32 columns of
// a pair of rows after the other; beyond the rows, up to `words` pairs, and beyond dim they are zeros.
template <class Store>
static inline void each_row_pair(const uint16_t* in, int64_t rows, int64_t dim, int64_t words, int64_t lanes,
                                 const Store& store) {
  static const uint16_t none[32] = {};
  for (int64_t l = 0; l < lanes; l += 32)
    for (int64_t word = 0; word < words; ++word) {
      const int64_t row = 2 * word, width = at_most(32, dim - l);
      const uint16_t* low = row < rows ? in + row * dim + l : none;
      const uint16_t* high = row + 1 < rows ? in + (row + 1) * dim + l : none;
      for (int64_t c = 0; c < width; ++c) store(l + c, word, low[c] | static_cast<uint32_t>(high[c]) << 16);
      for (int64_t c = width; c < 32; ++c) store(l + c, word, 0);
    }
}

// As LanePairs of the columns, in strips of 32.
static void pack_row_pairs(const uint16_t* in, int64_t rows, int64_t dim, int64_t words, int64_t lanes, float* out) {
  uint32_t* pairs = reinterpret_cast<uint32_t*>(out);
  each_row_pair(in, rows, dim, words, lanes, [&](int64_t column, int64_t word, uint32_t pair) {
    pairs[(column / 32 * words + word) * 32 + column % 32] = pair;
  });
}

// As RowPairs, a row for each column.
static void pack_columns(const uint16_t* in, int64_t rows, int64_t dim, int64_t words, int64_t lanes, float* out) {
  uint32_t* pairs = reinterpret_cast<uint32_t*>(out);
  each_row_pair(in, rows, dim, words, lanes,
                [&](int64_t column, int64_t word, uint32_t pair) { pairs[column * words + word] = pair; });
}

}  // namespace
}  // namespace interaction
