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

#include "products.h"

namespace interaction {
namespace {

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
  ForwardScratch(const Call& call, Range images, uintptr_t base) : arena{base} {
    const Problem& p = call.problem;
    const int64_t longest = at_least(p.longest_text, CHUNK_ROWS);
    vectors = vectors_of(p, image_rows(p, images));
    panel = arena.take<float>(vectors * LANES * columns_of(p));
    text = arena.take<float>(widens(p) ? longest * columns_of(p) : 0);
    tile = arena.take<float>(longest * vectors * LANES);
    best = arena.take<float>(vectors * LANES);
    winner = arena.take<int32_t>(vectors * LANES);
  }
};

static int64_t forward_bytes(const Call& call, Range images) {
  return static_cast<int64_t>(ForwardScratch(call, images, 0).arena.next);
}

// What is not finite in one direction shows in both. A token that is not finite is so in all its products, which are all
// that its own side takes the maximum of, while on the other side it may lose; a diverged model would go unnoticed.
static inline void store_pair(float i2t, float t2i, int64_t pair, float* all_i2t, float* all_t2i) {
  const float nan = i2t * 0.0f + t2i * 0.0f;
  all_i2t[pair] = i2t + nan;
  all_t2i[pair] = t2i + nan;
}

// Both maxima of one text's finished tile.
static void finish_text(const Call& call, Range images, int64_t j, const float* tile, const ForwardScratch& s) {
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

// Calls finish(text, its tile of similarities with the block of images) for each of the texts.
template <class Scratch, class Finish>
static void each_text(const Problem& p, Range images, Range texts, const Scratch& s, const Finish& finish) {
  pack_panel(p, images, s.vectors, s.panel);
  for (int64_t j = texts.begin; j < texts.end;) {
    const int64_t last = chunk_end(p, j, texts.end);
    const Range rows = {p.text_offsets[j], p.text_offsets[last]};
    product_tile(p, text_columns(p, rows, s.text), rows.end - rows.begin, s.panel, s.vectors, s.tile);
    for (; j < last; ++j) finish(j, s.tile + (p.text_offsets[j] - rows.begin) * s.vectors * LANES);
  }
}

static void forward(const Call& call, Range images, Range texts, char* scratch) {
  const ForwardScratch s(call, images, reinterpret_cast<uintptr_t>(scratch));
  each_text(call.problem, images, texts, s, [&](int64_t j, float* tile) { finish_text(call, images, j, tile, s); });
}

}  // namespace
}  // namespace interaction
