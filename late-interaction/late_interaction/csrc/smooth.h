// The smooth maximum t log(mean exp(s / t)) in place of the maximum, both directions of both passes.
//
// Within the range of float32 one exponential E = exp(s / t) serves both directions: with R the sum of E over the tokens
// of a text and C that over the tokens of an image,
//
//   i2t = t (mean of log R - log n2)      t2i = t (mean of log C - log n1)
//   W = E (gI / (n1 R) + gT / (n2 C))     dX += W Y     dY += W^T X
//
// Tokens that are multiplied in pairs of bfloat16 meet W rounded to bfloat16, as the gradient itself will be; the sums
// stay float32.
//
// A tile holds whole texts against whole images, so R and C are complete in it: the backward pass computes the tile
// again and nothing is saved. Where |s| / t may be beyond float32 (`shifted`), each sum is relative to its largest term
// and each direction has exponentials of its own.
#pragma once

#include "forward.h"
#include "register_tile.h"

namespace interaction {
namespace {

static inline vf to_float(vi x) { return __builtin_convertvector(x, vf); }

// 2^x within 2 ulp for |x| <= 125; NaN stays NaN.
static inline vf exp2_of(vf x) {
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  const vf shifted = x + magic;
  const vf f = x - (shifted - magic);  // in [-1/2, 1/2]
  vf y = splat(1.3276471e-3f);         // the polynomial with the smallest relative error
  y = y * f + splat(9.675541e-3f);
  y = y * f + splat(5.550713e-2f);
  y = y * f + splat(2.402212e-1f);
  y = y * f + splat(6.9314694e-1f);
  y = y * f + splat(1.0000001f);
  return y * (vf)(((vi)shifted << 23) + splat(int32_t{127} << 23));  // the shift drops all bits of magic
}

constexpr float LOG2_E = 1.44269504088896341f;

// Keeps exponents of terms that are nothing beside the largest in the range of exp2_of; NaN stays NaN.
static inline vf not_below(vf x) { return x < splat(-125.0f) ? splat(-125.0f) : x; }

// Within 2 ulp for positive normal x (Cephes' logf).
static inline vf log_of(vf x) {
  const vi bits = (vi)x;
  vi exponent = (bits >> 23) - splat(int32_t{126});
  vf m = (vf)((bits & splat(int32_t{0x007FFFFF})) | splat(int32_t{0x3F000000}));
  const vi small = m < splat(0.707106781186547524f);
  exponent = exponent + small;  // true is -1
  m = (small ? m + m : m) - splat(1.0f);
  const vf z = m * m;
  vf y = splat(7.0376836292e-2f);
  y = y * m - splat(1.1514610310e-1f);
  y = y * m + splat(1.1676998740e-1f);
  y = y * m - splat(1.2420140846e-1f);
  y = y * m + splat(1.4249322787e-1f);
  y = y * m - splat(1.6668057665e-1f);
  y = y * m + splat(2.0000714765e-1f);
  y = y * m - splat(2.4999993993e-1f);
  y = y * m + splat(3.3333331174e-1f);
  const vf e = to_float(exponent);
  return m + (y * m * z - e * splat(2.12194440e-4f) - splat(0.5f) * z) + e * splat(0.693359375f);
}

// Columns are kept in strips of STRIP_VECTORS vectors, each [rows][its width]; the last strip may be narrower.
constexpr int64_t STRIP = STRIP_VECTORS * LANES;

static int64_t strip_width(const Problem& p) { return by_torch(p) ? round_up(p.dim, LANES) : STRIP; }
static int64_t strips_of(const Problem& p) { return div_up(p.dim, strip_width(p)); }
static int64_t padded_dim(const Problem& p) { return round_up(p.dim, LANES); }

// Rows as the products of weights see them: two rows of bfloat16 in one of float's size where those are multiplied.
static int64_t rows_in_strips(const Problem& p, int64_t rows) { return in_pairs(p) ? div_up(filled(p, rows), 2) : rows; }

static void pack_strips(const Problem& p, const void* rows, bool bf16, Range range, float* out) {
  for (int64_t s = 0; s < strips_of(p); ++s) {
    const Slice strip = slice_of(p.dim, strip_width(p), s);
    if (!in_pairs(p)) {
      copy_columns(rows, bf16, range, p.dim, strip.first, strip.valid, strip.width, out);
      out += (range.end - range.begin) * strip.width;
      continue;
    }
    for (int64_t n = 0; n < 2 * rows_in_strips(p, range.end - range.begin); n += 2, out += strip.width) {
      const int64_t row = range.begin + n;
      const uint16_t* even = static_cast<const uint16_t*>(rows) + row * p.dim + strip.first;
      const int64_t evens = row < range.end ? strip.valid : 0, odds = row + 1 < range.end ? strip.valid : 0;
      for (int64_t c = 0; c < strip.width; ++c) {
        const uint32_t low = c < evens ? even[c] : 0, high = c < odds ? even[p.dim + c] : 0;
        const uint32_t pair = low | high << 16;
        __builtin_memcpy(out + c, &pair, 4);
      }
    }
  }
}

// [m][dim] (+)= [m][k] [k][dim], the last in strips, and the first too unless its rows are `stride` apart; a as for
// weighted_rows.
static void times_strips(const Problem& p, const float* a, int64_t row_step, int64_t k_step, int64_t m,
                         const float* b, int64_t k, float* out, int64_t stride, bool add) {
  const int64_t parts = div_up(m, TILE_ROWS);
  for (int64_t s = 0; s < strips_of(p); ++s) {
    const Slice strip = slice_of(p.dim, strip_width(p), s);
    const int64_t step = stride ? stride : strip.width;
    if (by_torch(p)) return multiply_pairs(p, a, row_step, b, m, strip.width, k, out, step, add);
    for (int64_t part = 0; part < parts; ++part) {
      const Range rows = part_of(m, parts, part);
      WEIGHTED_ROWS[in_pairs(p)][add][rows.end - rows.begin - 1][strip.width / LANES - 1](
          a + rows.begin * row_step, row_step, k_step, b, k, out + rows.begin * step, step);
    }
    b += k * strip.width;
    out += stride ? strip.width : m * strip.width;
  }
}

#if BFLOAT16_PAIRS
// 16 weights as bfloat16, one in each lane's low half.
static inline vi rounded(const float* weights) {
  return (vi)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)load(weights)));
}

// Pairs of weights for the two products: out[row][lane / 2] of neighbouring lanes, and of neighbouring rows
// out[row / 2][lane], or `turned`: out[lane][row / 2]. Lanes from `tokens` to `end` may hold anything and are cleared.
static void pair_lanes(float* tile, int64_t rows, int64_t tokens, int64_t end, int64_t stride, float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t l = tokens; l < end; ++l) tile[r * stride + l] = 0;
    for (int64_t n = r * stride; n < (r + 1) * stride; n += LANES) {
      const __m256bh pairs = _mm512_cvtneps_pbh((__m512)load(tile + n));
      __builtin_memcpy(out + n / 2, &pairs, sizeof pairs);
    }
  }
}

static void pair_rows(const float* tile, int64_t rows, int64_t half, int64_t stride, bool turned, float* out) {
  const int64_t row_step = turned ? 1 : stride, lane_step = turned ? half : 1;
  const vi at = lane_numbers() * splat(static_cast<int32_t>(lane_step));
  for (int64_t l = 0; l < stride; l += LANES)  // so that what is scattered stays in the first-level cache
    for (int64_t r = 0; r < 2 * half; r += 2) {
      vi pairs = {};
      if (r < rows) pairs = rounded(tile + r * stride + l);
      if (r + 1 < rows) pairs = pairs | rounded(tile + (r + 1) * stride + l) << 16;
      float* to = out + r / 2 * row_step + l * lane_step;
      if (turned)
        _mm512_i32scatter_epi32(to, (__m512i)at, (__m512i)pairs, 4);
      else
        __builtin_memcpy(to, &pairs, VECTOR_BYTES);
    }
}
#else
static void pair_lanes(float*, int64_t, int64_t, int64_t, int64_t, float*) {}
static void pair_rows(const float*, int64_t, int64_t, int64_t, bool, float*) {}
#endif

// target[row][0 .. dim) += the rows in strips.
static void add_strips(const Problem& p, const float* strips, int64_t rows, float* target) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t s = 0; s < strips_of(p); ++s) {
      const Slice strip = slice_of(p.dim, strip_width(p), s);
      const float* in = strips + rows * strip.first + row * strip.width;
      float* out = target + row * p.dim + strip.first;
      int64_t c = 0;
      for (; c + LANES <= strip.valid; c += LANES) store(out + c, load(out + c) + load(in + c));
      for (; c < strip.valid; ++c) out[c] += in[c];
    }
}

struct SmoothScratch {
  int64_t vectors;  // per tile row
  float *panel, *text, *tile, *of_lane, *of_row, *shift, *paired;
  float *image_strips, *text_strips, *image_sums, *text_sums;  // for gradients
  Arena arena;
  SmoothScratch(const Call& call, Range images, uintptr_t base) : arena{base} {
    const Problem& p = call.problem;
    const bool gradients = !call.i2t;
    const int64_t rows = at_least(p.longest_text, CHUNK_ROWS);
    vectors = vectors_of(p, image_rows(p, images));
    const int64_t lanes = (vectors + 1) * LANES;  // the last vector of an image may reach beyond its row
    panel = arena.take<float>(vectors * LANES * columns_of(p));
    text = arena.take<float>(widens(p) ? rows * columns_of(p) : 0);
    tile = arena.take<float>(rows * vectors * LANES + LANES);
    of_lane = arena.take<float>(lanes);
    of_row = arena.take<float>(lanes);
    shift = arena.take<float>(lanes);
    paired = arena.take<float>(gradients && in_pairs(p) ? rows_in_strips(p, rows) * vectors * LANES : 0);
    image_strips = arena.take<float>(gradients ? rows_in_strips(p, vectors * LANES) * padded_dim(p) : 0);
    text_strips = arena.take<float>(gradients ? rows_in_strips(p, rows) * padded_dim(p) : 0);
    image_sums = arena.take<float>(gradients ? vectors * LANES * padded_dim(p) : 0);
    text_sums = arena.take<float>(gradients ? rows * padded_dim(p) : 0);
  }
};

static int64_t smooth_bytes(const Call& call, Range images) {
  return static_cast<int64_t>(SmoothScratch(call, images, 0).arena.next);
}

// A sum over the rows of a tile in every lane, of 2^(scale * similarity). Within the range of float32 the exponentials
// take the place of the similarities, for the sums in the other direction. Beyond it they are relative to the largest,
// which goes to `shift`, and the similarities stay.
template <bool SHIFTED>
static void sums_over_rows(float* tile, int64_t stride, int64_t length, vf scale, float* sums, float* shift) {
  for (int64_t l = 0; l < stride; l += LANES) {
    vf sum = {}, largest = {};
    if (SHIFTED) {
      largest = load(tile + l);
      for (int64_t r = 1; r < length; ++r) {
        const vf next = load(tile + r * stride + l);
        largest = next > largest ? next : largest;
      }
      store(shift + l, largest);
    }
    for (int64_t r = 0; r < length; ++r) {
      float* at = tile + r * stride + l;
      const vf e = SHIFTED ? exp2_of(not_below(scale * (load(at) - largest))) : exp2_of(scale * load(at));
      if (!SHIFTED) store(at, e);
      sum = sum + e;
    }
    store(sums + l, sum);
  }
}

// The sum over the n lanes of an image in a row of that tile, and its shift (0 within the range of float32).
template <bool SHIFTED>
static float sum_over_lanes(const float* row, int64_t n, float scale, float* shift) {
  *shift = 0;
  if (!SHIFTED) return sum_of(row, n);
  int64_t index;
  first_maximum(row, n, shift, &index);
  const vf largest = splat(*shift), lanes = to_float(lane_numbers());
  vf sum = {};
  for (int64_t l = 0; l < n; l += LANES) {  // lanes beyond n belong to the next image, or are there
    const vf e = exp2_of(not_below(splat(scale) * (load(row + l) - largest)));
    sum = lanes < splat(static_cast<float>(n - l)) ? sum + e : sum;
  }
  return sum_of_lanes(sum);
}

// Both smooth maxima of one text's finished tile.
template <bool SHIFTED>
static void finish_smooth(const Call& call, Range images, int64_t j, float* tile, const SmoothScratch& s) {
  const Problem& p = call.problem;
  const int64_t stride = s.vectors * LANES, first = p.image_offsets[images.begin];
  const float scale = LOG2_E / call.temperature;
  const int64_t length = p.text_offsets[j + 1] - p.text_offsets[j];
  sums_over_rows<SHIFTED>(tile, stride, length, splat(scale), s.of_lane, s.shift);
  // the logarithm of the mean, which is near 1 where t is large: that of the sum would cancel against log n
  const vf inverse_n2 = splat(1 / static_cast<float>(length)), temperature = splat(call.temperature);
  for (int64_t l = 0; l < stride; l += LANES) {
    const vf mean = temperature * log_of(load(s.of_lane + l) * inverse_n2);
    store(s.of_lane + l, SHIFTED ? mean + load(s.shift + l) : mean);
  }
  for (int64_t i = images.begin; i < images.end; ++i) {
    const int64_t lane = p.image_offsets[i] - first, n1 = p.image_offsets[i + 1] - p.image_offsets[i];
    const float i2t = sum_of(s.of_lane + lane, n1) / static_cast<float>(n1);
    const vf inverse_n1 = splat(1 / static_cast<float>(n1));
    float total = 0;
    for (int64_t r = 0; r < length; r += LANES) {
      const int64_t some = at_most(LANES, length - r);
      float sums[LANES], shifts[LANES];
      for (int64_t l = 0; l < some; ++l)
        sums[l] = sum_over_lanes<SHIFTED>(tile + (r + l) * stride + lane, n1, scale, shifts + l);
      for (int64_t l = some; l < LANES; ++l) sums[l] = static_cast<float>(n1), shifts[l] = 0;
      total += sum_of_lanes(temperature * log_of(load(sums) * inverse_n1) + load(shifts));
    }
    store_pair(i2t, total / static_cast<float>(length), i * p.texts + j, call.i2t, call.t2i);
  }
}

static void smooth_forward(const Call& call, Range images, Range texts, char* scratch) {
  const SmoothScratch s(call, images, reinterpret_cast<uintptr_t>(scratch));
  each_text(call.problem, images, texts, s, [&](int64_t j, float* tile) {
    call.shifted ? finish_smooth<true>(call, images, j, tile, s) : finish_smooth<false>(call, images, j, tile, s);
  });
}

// In place of one text's tile its gradient W.
template <bool SHIFTED>
static void weigh(const Call& call, Range images, int64_t j, float* tile, const SmoothScratch& s) {
  const Problem& p = call.problem;
  const int64_t stride = s.vectors * LANES, first = p.image_offsets[images.begin];
  const int64_t length = p.text_offsets[j + 1] - p.text_offsets[j];
  const float scale = LOG2_E / call.temperature;
  sums_over_rows<SHIFTED>(tile, stride, length, splat(scale), s.of_lane, s.shift);
  for (int64_t i = images.begin; i < images.end; ++i) {
    const int64_t lane = p.image_offsets[i] - first, n1 = p.image_offsets[i + 1] - p.image_offsets[i];
    const float weight = call.grad_i2t[i * p.texts + j] / static_cast<float>(n1);
    for (int64_t k = lane; k < lane + n1; ++k) s.of_lane[k] = weight / s.of_lane[k];
  }
  const float inverse_n2 = 1 / static_cast<float>(length);
  for (int64_t r = 0; r < length; ++r, tile += stride) {
    for (int64_t i = images.begin; i < images.end; ++i) {
      const int64_t lane = p.image_offsets[i] - first, n1 = p.image_offsets[i + 1] - p.image_offsets[i];
      float shift;
      const float sum = sum_over_lanes<SHIFTED>(tile + lane, n1, scale, &shift);
      const float share = call.grad_t2i[i * p.texts + j] * inverse_n2 / sum;
      if (!SHIFTED) {
        for (int64_t k = lane; k < lane + n1; ++k) tile[k] *= s.of_lane[k] + share;
        continue;
      }
      for (int64_t k = lane; k < lane + n1; k += LANES) {  // in lanes beyond, which the next image overwrites
        const vf x = load(tile + k);
        const vf of_image = exp2_of(not_below(splat(scale) * (x - load(s.shift + k))));
        const vf of_text = exp2_of(not_below(splat(scale) * (x - splat(shift))));
        store(s.of_row + k, of_image * load(s.of_lane + k) + of_text * splat(share));
      }
    }
    if (SHIFTED)
      for (int64_t l = 0; l < stride; l += LANES) store(tile + l, load(s.of_row + l));
  }
}

// Adds both gradients of a block of images against a range of texts.
static void smooth_backward(const Call& call, Range images, Range texts, char* scratch) {
  const Problem& p = call.problem;
  const SmoothScratch s(call, images, reinterpret_cast<uintptr_t>(scratch));
  const Range image = image_rows(p, images);
  const int64_t stride = s.vectors * LANES, tokens = image.end - image.begin;
  const bool pairs = in_pairs(p), widened = widens(p);
  for (int64_t l = 0; l < stride; ++l) s.of_row[l] = 0;
  pack_panel(p, images, s.vectors, s.panel);
  if (call.grad_text) pack_strips(p, p.image, p.bf16, image, s.image_strips);
  for (int64_t j = texts.begin; j < texts.end;) {
    const int64_t last = chunk_end(p, j, texts.end);
    const Range rows = {p.text_offsets[j], p.text_offsets[last]};
    const int64_t length = rows.end - rows.begin;
    const bool add = j > texts.begin;
    product_tile(p, text_columns(p, rows, s.text), length, s.panel, s.vectors, s.tile);
    for (; j < last; ++j) {
      float* tile = s.tile + (p.text_offsets[j] - rows.begin) * stride;
      call.shifted ? weigh<true>(call, images, j, tile, s) : weigh<false>(call, images, j, tile, s);
    }
    const float* weights = pairs ? s.paired : s.tile;
    if (call.grad_image) {
      pack_strips(p, widened ? s.text : p.text, p.bf16 && !widened, widened ? Range{0, length} : rows, s.text_strips);
      const bool turned = by_torch(p);
      const int64_t k = rows_in_strips(p, length);
      if (pairs) pair_rows(s.tile, length, k, stride, turned, s.paired);
      times_strips(p, weights, turned ? k : 1, stride, tokens, s.text_strips, k, s.image_sums, 0, add);
    }
    if (call.grad_text) {
      const int64_t k = rows_in_strips(p, tokens);
      if (pairs) pair_lanes(s.tile, length, tokens, 2 * k, stride, s.paired);
      float* sums = call.grad_text + rows.begin * p.dim;
      const bool whole = p.dim % LANES == 0;  // no vector reaches beyond a row, which may be another thread's
      times_strips(p, weights, pairs ? stride / 2 : stride, 1, length, s.image_strips, k,
                   whole ? sums : s.text_sums, whole ? p.dim : 0, whole);
      if (!whole) add_strips(p, s.text_sums, length, sums);
    }
  }
  if (call.grad_image) add_strips(p, s.image_sums, tokens, call.grad_image + image.begin * p.dim);
}

}  // namespace
}  // namespace interaction
