// Forward, summed in float32: one product tile feeds both maxima.
//
// A block of images is transposed once into a panel: its tokens lie along the vector lanes. For a few texts,
// a register tile of TILE_ROWS text rows x STRIP_VECTORS vectors of image tokens runs over all columns; the
// tile of a few whole texts x block goes to a small buffer (first- or second-level cache), where the vertical
// maximum is image-to-text and the horizontal maximum within an image's lanes is text-to-image.
//
// bfloat16 is widened to float32, or, where the CPU multiplies pairs of bfloat16, taken two columns at a time: panel
// and text then hold pairs in the place of floats. The products are exact either way.
#pragma once

#include "vector.h"

namespace interaction {
namespace {

// A column of the panel: a float of each token, or two bfloat16 of it.
struct Floats {
  typedef float element;
  typedef vf vector;
  static vf add_product(vf sum, vf feature, vf token) { return sum + feature * token; }
};

#if BFLOAT16_PAIRS
struct Pairs {
  typedef int32_t element;
  typedef vi vector;
  static vf add_product(vf sum, vi feature, vi token) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)feature, (__m512bh)token);
  }
};
#endif

static bool in_pairs(const Problem& p) { return BFLOAT16_PAIRS && p.bf16 && p.dim % 2 == 0; }

// Columns of a token as the product sees them, 4 bytes each.
static int64_t columns_of(const Problem& p) { return in_pairs(p) ? p.dim / 2 : p.dim; }

template <class Column, int R, int V>
static void product(const float* panel, const float* rows, int64_t stride, int64_t columns, float* tile,
                    int64_t tile_stride) {
  vf sum[R][V] = {};
  for (int64_t c = 0; c < columns; ++c, panel += V * LANES) {
    typename Column::vector token[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) __builtin_memcpy(&token[v], panel + v * LANES, VECTOR_BYTES);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      typename Column::element value;
      __builtin_memcpy(&value, rows + r * stride + c, sizeof value);
      const typename Column::vector feature = splat(value);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = Column::add_product(sum[r][v], feature, token[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(tile + r * tile_stride + v * LANES, sum[r][v]);
}

typedef void (*Product)(const float*, const float*, int64_t, int64_t, float*, int64_t);

#define INTERACTION_ROWS(C, R) {product<C, R, 1>, product<C, R, 2>, product<C, R, 3>, product<C, R, 4>}
#define INTERACTION_PRODUCTS(C)                                                                                  \
  {INTERACTION_ROWS(C, 1), INTERACTION_ROWS(C, 2), INTERACTION_ROWS(C, 3), INTERACTION_ROWS(C, 4), INTERACTION_ROWS(C, 5), INTERACTION_ROWS(C, 6)}
static const Product PRODUCTS[][6][4] = {
    INTERACTION_PRODUCTS(Floats),
#if BFLOAT16_PAIRS
    INTERACTION_PRODUCTS(Pairs),
#endif
};
#undef INTERACTION_PRODUCTS
#undef INTERACTION_ROWS

// The largest value among n and its lowest index.
static inline void first_maximum(const float* values, int64_t n, float* value, int64_t* index) {
  if (n < LANES) {
    *value = values[0];
    *index = 0;
    for (int64_t l = 1; l < n; ++l)
      if (values[l] > *value) *value = values[l], *index = l;
    return;
  }
  const vi lanes = lane_numbers();
  vf best = load(values);
  vi where = lanes;
  for (int64_t l = LANES; l < n; l += LANES) {
    const int64_t from = at_most(l, n - LANES);  // the last vector overlaps its predecessor
    const vf next = load(values + from);
    const vi larger = next > best;
    best = larger ? next : best;
    where = larger ? lanes + static_cast<int32_t>(from) : where;
  }
#ifndef __clang__
#pragma GCC unroll 4
  for (int step = LANES / 2; step > 0; step /= 2) {
    const vf other = __builtin_shuffle(best, lanes ^ step);
    const vi there = __builtin_shuffle(where, lanes ^ step);
    const vi take = (other > best) | ((other == best) & (there < where));
    best = take ? other : best;
    where = take ? there : where;
  }
  *value = best[0];
  *index = where[0];
#else
  *value = best[0];
  *index = where[0];
  for (int l = 1; l < LANES; ++l)
    if (best[l] > *value || (best[l] == *value && where[l] < *index)) *value = best[l], *index = where[l];
#endif
}

// The sum over all lanes.
static inline float sum_of_lanes(vf x) {
#ifndef __clang__
  const vi lanes = lane_numbers();
#pragma GCC unroll 4
  for (int step = LANES / 2; step > 0; step /= 2) x = x + __builtin_shuffle(x, lanes ^ step);
  return x[0];
#else
  float total = 0;
  for (int l = 0; l < LANES; ++l) total += x[l];
  return total;
#endif
}

static inline float sum_of(const float* values, int64_t n) {
  if (n < LANES) {
    float total = 0;
    for (int64_t l = 0; l < n; ++l) total += values[l];
    return total;
  }
  vf sum = load(values);
  int64_t l = LANES;
  for (; l + LANES <= n; l += LANES) sum = sum + load(values + l);
  // the last vector overlaps its predecessor, by lanes that do not count
  const vi fresh = lane_numbers() >= splat(static_cast<int32_t>(l + LANES - n));
  if (l < n) sum = fresh ? sum + load(values + n - LANES) : sum;
  return sum_of_lanes(sum);
}

// The end of a block of images from `first`: about BLOCK_LANES tokens, and as few idle lanes in the last vector as
// possible.
static int64_t block_end(const Problem& p, int64_t first) {
  const int64_t* row = p.image_offsets;
  int64_t most = first + 1;
  while (most < p.images && row[most + 1] - row[first] <= BLOCK_LANES) ++most;
  if (most == p.images) return most;
  int64_t best = most;
  double best_use = 0;
  for (int64_t end = most; end - first > (most - first) / 2; --end) {
    const int64_t tokens = row[end] - row[first];
    const double use = static_cast<double>(tokens) / static_cast<double>(round_up(tokens, LANES));
    if (use > best_use + 0.005) best_use = use, best = end;
  }
  return best;
}

// Text rows of one tile: enough that few register tiles are lower than they could be, and that the sums of the backward
// pass over them are long, few enough for the second-level cache.
constexpr int64_t CHUNK_ROWS = 96;

// The end of the texts from `first` that make one tile; at least one.
static int64_t chunk_end(const Problem& p, int64_t first, int64_t end) {
  int64_t last = first + 1;
  while (last < end && p.text_offsets[last + 1] - p.text_offsets[first] <= CHUNK_ROWS) ++last;
  return last;
}

struct ForwardScratch {
  int64_t vectors;  // per tile row
  float *panel, *text, *tile, *best;
  int32_t* winner;
  Arena arena;
  ForwardScratch(const ForwardCall& call, Range images, uintptr_t base) : arena{base} {
    const Problem& p = call.problem;
    const int64_t longest = at_least(p.longest_text, CHUNK_ROWS);
    const Range rows = image_rows(p, images);
    vectors = div_up(rows.end - rows.begin, LANES);
    panel = arena.take<float>(vectors * LANES * columns_of(p));
    text = arena.take<float>(p.bf16 && !in_pairs(p) ? longest * p.dim : 0);
    tile = arena.take<float>(longest * vectors * LANES);
    best = arena.take<float>(vectors * LANES);
    winner = arena.take<int32_t>(vectors * LANES);
  }
};

static int64_t forward_bytes(const ForwardCall& call, Range images) {
  return static_cast<int64_t>(ForwardScratch(call, images, 0).arena.next);
}

// Strips no narrower than the register tile where they can be wider instead: a vector of 8 floats alone keeps half of
// AVX2's multipliers busy.
static int64_t strips_of_block(int64_t vectors) {
  return STRIP_VECTORS == 2 ? at_least(1, vectors / 2) : div_up(vectors, STRIP_VECTORS);
}

static void pack_panel(const Problem& p, Range images, int64_t vectors, float* panel) {
  const int64_t first = p.image_offsets[images.begin], rows = p.image_offsets[images.end] - first;
  const int64_t columns = columns_of(p);
  const char* tokens = static_cast<const char*>(p.image) + first * columns * 4;  // floats, or pairs
  const bool narrow = p.bf16 && !in_pairs(p);
  const int64_t strips = strips_of_block(vectors);
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

// What is not finite in one direction shows in both. A token that is not finite is so in all its products, which are all
// that its own side takes the maximum of, while on the other side it may lose; a diverged model would go unnoticed.
static inline void store_pair(float i2t, float t2i, int64_t pair, float* all_i2t, float* all_t2i) {
  const float nan = i2t * 0.0f + t2i * 0.0f;
  all_i2t[pair] = i2t + nan;
  all_t2i[pair] = t2i + nan;
}

// Both maxima of one text's finished tile.
static void finish_text(const ForwardCall& call, Range images, int64_t j, const float* tile, const ForwardScratch& s) {
  const Problem& p = call.problem;
  const int64_t stride = s.vectors * LANES, row0 = p.text_offsets[j];
  const int64_t length = p.text_offsets[j + 1] - row0, total = p.text_offsets[p.texts];
  for (int64_t v = 0; v < s.vectors; ++v) {
    vf best = load(tile + v * LANES);
    vi where = {};
    for (int64_t r = 1; r < length; ++r) {
      const vf next = load(tile + r * stride + v * LANES);
      const vi larger = next > best;
      best = larger ? next : best;
      where = larger ? splat(static_cast<int32_t>(r)) : where;
    }
    store(s.best + v * LANES, best);
    __builtin_memcpy(s.winner + v * LANES, &where, VECTOR_BYTES);
  }
  for (int64_t i = images.begin; i < images.end; ++i) {
    const int64_t row = p.image_offsets[i], lane = row - p.image_offsets[images.begin];
    const int64_t n1 = p.image_offsets[i + 1] - row;
    const float i2t = sum_of(s.best + lane, n1) / static_cast<float>(n1);
    if (call.maps.i2t)
      for (int64_t k = 0; k < n1; ++k)
        store_map(call.maps.i2t, p.wide, row * p.texts + j * n1 + k, s.winner[lane + k]);
    float sum = 0;
    for (int64_t r = 0; r < length; ++r) {
      float value;
      int64_t index;
      first_maximum(tile + r * stride + lane, n1, &value, &index);
      sum += value;
      if (call.maps.t2i) store_map(call.maps.t2i, p.wide, i * total + row0 + r, index);
    }
    store_pair(i2t, sum / static_cast<float>(length), i * p.texts + j, call.i2t, call.t2i);
  }
}

// The products of `length` rows of text, in the form of the columns, with a packed block: tile[row][lane].
static void product_tile(const Problem& p, const float* text, int64_t length, const float* packed, int64_t vectors,
                         float* tile) {
  const int64_t stride = vectors * LANES, strips = strips_of_block(vectors), columns = columns_of(p);
  for (int64_t strip = 0; strip < strips; ++strip) {
    const Range some = part_of(vectors, strips, strip);
    const float* panel = packed + some.begin * LANES * columns;
    const int64_t parts = div_up(length, some.end - some.begin > STRIP_VECTORS ? 4 : TILE_ROWS);
    for (int64_t part = 0; part < parts; ++part) {
      const Range rows = part_of(length, parts, part);
      PRODUCTS[in_pairs(p)][rows.end - rows.begin - 1][some.end - some.begin - 1](
          panel, text + rows.begin * columns, columns, columns, tile + rows.begin * stride + some.begin * LANES,
          stride);
    }
  }
}

static void forward(const ForwardCall& call, Range images, Range texts, char* scratch) {
  const Problem& p = call.problem;
  const ForwardScratch s(call, images, reinterpret_cast<uintptr_t>(scratch));
  pack_panel(p, images, s.vectors, s.panel);
  const int64_t columns = columns_of(p);
  for (int64_t j = texts.begin; j < texts.end;) {
    const int64_t last = chunk_end(p, j, texts.end), row0 = p.text_offsets[j], length = p.text_offsets[last] - row0;
    const float* text = static_cast<const float*>(p.text) + row0 * columns;
    if (p.bf16 && !in_pairs(p)) {
      copy_columns(p.text, true, {row0, row0 + length}, p.dim, 0, p.dim, p.dim, s.text);
      text = s.text;
    }
    product_tile(p, text, length, s.panel, s.vectors, s.tile);
    for (; j < last; ++j)
      finish_text(call, images, j, s.tile + (p.text_offsets[j] - row0) * s.vectors * LANES, s);
  }
}

}  // namespace
}  // namespace interaction
