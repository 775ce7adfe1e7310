// Products of text rows with a panel of image tokens by register tiles: of floats, or of pairs of bfloat16.
#pragma once

#include "register_tile.h"

namespace interaction {
namespace {

// Strips no narrower than the register tile where they can be wider instead: a vector of 8 floats alone keeps half of
// AVX2's multipliers busy.
static int64_t strips_of_block(const Problem& p, int64_t vectors) {
  if (by_torch(p)) return 1;
  return STRIP_VECTORS == 2 ? at_least(1, vectors / 2) : div_up(vectors, STRIP_VECTORS);
}

static void pack_panel(const Problem& p, Range images, int64_t vectors, float* panel) {
  const int64_t first = p.image_offsets[images.begin], rows = p.image_offsets[images.end] - first;
  const int64_t columns = columns_of(p);
  const char* tokens = static_cast<const char*>(p.image) + first * columns * 4;  // floats, or pairs
  const bool narrow = widens(p);
  const int64_t strips = strips_of_block(p, vectors);
  for (int64_t s = 0; s < strips; ++s) {
    const Range strip = part_of(vectors, strips, s);
    const int64_t width = (strip.end - strip.begin) * LANES;
    for (int64_t l = 0; l < width; ++l) {
      const int64_t row = strip.begin * LANES + l;
      float* out = panel + strip.begin * LANES * columns + l;
      if (row >= rows)
        for (int64_t c = 0; c < columns; ++c) out[c * width] = 0;
      else if (narrow)
        for (int64_t c = 0; c < columns; ++c) out[c * width] = element(p.image, true, (first + row) * p.dim + c);
      else
        for (int64_t c = 0; c < columns; ++c) __builtin_memcpy(out + c * width, tokens + (row * columns + c) * 4, 4);
    }
  }
}

// Rows of text in the form of the columns.
static const float* text_columns(const Problem& p, Range rows, float* copy) {
  if (!widens(p)) return static_cast<const float*>(p.text) + rows.begin * columns_of(p);
  copy_columns(p.text, true, rows, p.dim, 0, p.dim, p.dim, copy);
  return copy;
}

// The products of `length` rows of text, in the form of the columns, with a packed block: tile[row][lane].
static void product_tile(const Problem& p, const float* text, int64_t length, const float* packed, int64_t vectors,
                         float* tile) {
  const int64_t stride = vectors * LANES, strips = strips_of_block(p, vectors), columns = columns_of(p);
  if (by_torch(p)) return multiply_pairs(p, text, columns, packed, length, stride, columns, tile, stride, false);
  for (int64_t strip = 0; strip < strips; ++strip) {
    const Range some = part_of(vectors, strips, strip);
    const float* panel = packed + some.begin * LANES * columns;
    const int64_t parts = div_up(length, some.end - some.begin > STRIP_VECTORS ? 4 : TILE_ROWS);
    for (int64_t part = 0; part < parts; ++part) {
      const Range rows = part_of(length, parts, part);
      if (strip == 0)  // a text that is read for the first time comes while the rows before it are multiplied
        for (int64_t c = rows.begin * columns; c < rows.end * columns; c += 16)
          __builtin_prefetch(text + c + 12 * columns);
      WEIGHTED_ROWS[in_pairs(p)][false][rows.end - rows.begin - 1][some.end - some.begin - 1](
          text + rows.begin * columns, columns, 1, panel, columns, tile + rows.begin * stride + some.begin * LANES,
          stride);
    }
  }
}

}  // namespace
}  // namespace interaction
