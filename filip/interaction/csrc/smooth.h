// The smooth maximum t log(mean exp(s / t)) in place of the maximum, both directions of both passes.
//
// One exponential E = exp(s / t) serves both directions: with R the sum of E over the tokens of a text and C that over
// the tokens of an image,
//
//   i2t = t (mean of log R - log n2)      t2i = t (mean of log C - log n1)
//   W = E (gI / (n1 R) + gT / (n2 C))     dX += W Y     dY += W^T X
//
// A tile holds whole texts against whole images, so R and C are complete in it: the backward pass computes the tile
// again and nothing is saved. The caller sees to it that |s| / t is small enough for float32 without a shift.
#pragma once

#include "forward.h"

namespace filip {
namespace {

// Text rows of one backward tile: enough that the sums over them are long, few enough for the second-level cache.
constexpr int64_t CHUNK_ROWS = 64;

static inline vf to_float(vi x) { return __builtin_convertvector(x, vf); }

// Within 2 ulp for |x| <= 87 (Cephes' expf); NaN stays NaN.
static inline vf exp_of(vf x) {
  const vf magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  const vf shifted = x * splat(1.44269504088896341f) + magic;
  const vf whole = shifted - magic;
  const vf r = x - whole * splat(0.693359375f) + whole * splat(2.12194440e-4f);
  vf y = splat(1.9875691500e-4f);
  y = y * r + splat(1.3981999507e-3f);
  y = y * r + splat(8.3334519073e-3f);
  y = y * r + splat(4.1665795894e-2f);
  y = y * r + splat(1.6666665459e-1f);
  y = y * r + splat(5.0000001201e-1f);
  y = y * (r * r) + r + splat(1.0f);
  const vi power = ((vi)shifted - splat(int32_t{0x4B400000}) + splat(int32_t{127})) << 23;
  return y * (vf)power;
}

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

// out[r][0 .. V LANES) (+)= sum over k of a[r row_step + k k_step] b[k][0 .. V LANES).
template <int R, int V, bool ADD>
static void weighted_rows(const float* a, int64_t row_step, int64_t k_step, const float* b, int64_t k, float* out,
                          int64_t out_stride) {
  vf sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = ADD ? load(out + r * out_stride + v * LANES) : vf{};
  for (; k > 0; --k, a += k_step, b += V * LANES) {
    vf row[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) row[v] = load(b + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const vf weight = splat(a[r * row_step]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = sum[r][v] + weight * row[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(out + r * out_stride + v * LANES, sum[r][v]);
}

typedef void (*WeightedRows)(const float*, int64_t, int64_t, const float*, int64_t, float*, int64_t);

#define FILIP_ROWS(R, ADD) \
  {weighted_rows<R, 1, ADD>, weighted_rows<R, 2, ADD>, weighted_rows<R, 3, ADD>, weighted_rows<R, 4, ADD>}
#define FILIP_ALL(ADD)                                                                          \
  {FILIP_ROWS(1, ADD), FILIP_ROWS(2, ADD), FILIP_ROWS(3, ADD), FILIP_ROWS(4, ADD), FILIP_ROWS(5, ADD), \
   FILIP_ROWS(6, ADD)}
static const WeightedRows WEIGHTED_ROWS[2][6][4] = {FILIP_ALL(false), FILIP_ALL(true)};
#undef FILIP_ALL
#undef FILIP_ROWS

// Columns are kept in strips of STRIP_VECTORS vectors, each [rows][its width]; the last strip may be narrower.
constexpr int64_t STRIP = STRIP_VECTORS * LANES;

static int64_t strips_of(const Problem& p) { return div_up(p.dim, STRIP); }
static int64_t padded_dim(const Problem& p) { return round_up(p.dim, LANES); }

static void pack_strips(const Problem& p, const void* rows, Range range, float* out) {
  for (int64_t s = 0; s < strips_of(p); ++s) {
    const Slice strip = slice_of(p.dim, STRIP, s);
    copy_columns(rows, p.bf16, range, p.dim, strip.first, strip.valid, strip.width, out);
    out += (range.end - range.begin) * strip.width;
  }
}

// [m][dim] (+)= [m][k] [k][dim], the latter two in strips; a as for weighted_rows.
static void times_strips(const Problem& p, const float* a, int64_t row_step, int64_t k_step, int64_t m,
                         const float* b, int64_t k, float* out, bool add) {
  const int64_t parts = div_up(m, TILE_ROWS);
  for (int64_t s = 0; s < strips_of(p); ++s) {
    const Slice strip = slice_of(p.dim, STRIP, s);
    for (int64_t part = 0; part < parts; ++part) {
      const Range rows = part_of(m, parts, part);
      WEIGHTED_ROWS[add][rows.end - rows.begin - 1][strip.width / LANES - 1](
          a + rows.begin * row_step, row_step, k_step, b, k, out + rows.begin * strip.width, strip.width);
    }
    b += k * strip.width;
    out += m * strip.width;
  }
}

// target[row][0 .. dim) += the rows in strips.
static void add_strips(const Problem& p, const float* strips, int64_t rows, float* target) {
  for (int64_t s = 0; s < strips_of(p); ++s) {
    const Slice strip = slice_of(p.dim, STRIP, s);
    for (int64_t row = 0; row < rows; ++row, strips += strip.width) {
      float* out = target + row * p.dim + strip.first;
      int64_t c = 0;
      for (; c + LANES <= strip.valid; c += LANES) store(out + c, load(out + c) + load(strips + c));
      for (; c < strip.valid; ++c) out[c] += strips[c];
    }
  }
}

struct SmoothScratch {
  int64_t vectors;  // per tile row
  float *panel, *text, *tile, *lanes;
  float *image_strips, *text_strips, *text_sums;  // for gradients
  Arena arena;
  SmoothScratch(const SmoothCall& call, int64_t images, bool gradients, uintptr_t base) : arena{base} {
    const Problem& p = call.problem;
    const int64_t longest = longest_text(p), rows = gradients ? at_least(longest, CHUNK_ROWS) : longest;
    vectors = div_up(images * p.patches, LANES);
    panel = arena.take<float>(vectors * LANES * columns_of(p));
    text = arena.take<float>(p.bf16 && !in_pairs(p) ? rows * p.dim : 0);
    tile = arena.take<float>(rows * vectors * LANES);
    lanes = arena.take<float>(2 * vectors * LANES);
    image_strips = arena.take<float>(gradients ? images * p.patches * padded_dim(p) : 0);
    text_strips = arena.take<float>(gradients ? rows * padded_dim(p) : 0);
    text_sums = arena.take<float>(gradients ? rows * padded_dim(p) : 0);
  }
};

static int64_t smooth_bytes(const SmoothCall& call, bool gradients) {
  return static_cast<int64_t>(SmoothScratch(call, image_block(call.problem), gradients, 0).arena.next);
}

// s.tile = exp(similarity / t) of some text rows with the block of images.
static void exponentials(const SmoothCall& call, Range rows, const SmoothScratch& s) {
  const Problem& p = call.problem;
  const int64_t stride = s.vectors * LANES, length = rows.end - rows.begin;
  const float* text = static_cast<const float*>(p.text) + rows.begin * columns_of(p);
  if (p.bf16 && !in_pairs(p)) {
    copy_columns(p.text, true, rows, p.dim, 0, p.dim, p.dim, s.text);
    text = s.text;
  }
  product_tile(p, text, length, s.panel, s.vectors, s.tile);
  const vf scale = splat(1 / call.temperature);
  for (int64_t n = 0; n < length * stride; n += LANES) store(s.tile + n, exp_of(scale * load(s.tile + n)));
}

// The sums over `length` rows of the tile, in every lane.
static void sums_over_rows(const float* tile, int64_t stride, int64_t length, float* sums) {
  for (int64_t l = 0; l < stride; l += LANES) {
    vf sum = load(tile + l);
    for (int64_t r = 1; r < length; ++r) sum += load(tile + r * stride + l);
    store(sums + l, sum);
  }
}

static void smooth_forward(const SmoothCall& call, Range images, Range texts, char* scratch) {
  const Problem& p = call.problem;
  const SmoothScratch s(call, images.end - images.begin, false, reinterpret_cast<uintptr_t>(scratch));
  const int64_t n1 = p.patches, stride = s.vectors * LANES, count = images.end - images.begin;
  float* logs = s.lanes + stride;
  pack_panel(p, images, s.vectors, s.panel);
  for (int64_t j = texts.begin; j < texts.end; ++j) {
    const Range rows = {p.offsets[j], p.offsets[j + 1]};
    const int64_t length = rows.end - rows.begin;
    exponentials(call, rows, s);
    sums_over_rows(s.tile, stride, length, s.lanes);
    // the logarithm of the mean, which is near 1 where t is large: that of the sum would cancel against log n
    const vf inverse_n2 = splat(1 / static_cast<float>(length)), inverse_n1 = splat(1 / static_cast<float>(n1));
    for (int64_t l = 0; l < stride; l += LANES) store(logs + l, log_of(load(s.lanes + l) * inverse_n2));
    for (int64_t i = 0; i < count; ++i)
      call.i2t[(images.begin + i) * p.texts + j] =
          call.temperature * sum_of(logs + i * n1, n1) / static_cast<float>(n1);
    for (int64_t i = 0; i < count; ++i) {
      float total = 0;
      for (int64_t r = 0; r < length; r += LANES) {
        const int64_t some = at_most(LANES, length - r);
        vf sums = splat(static_cast<float>(n1));
        for (int64_t l = 0; l < some; ++l) sums[l] = sum_of(s.tile + (r + l) * stride + i * n1, n1);
        const vf found = log_of(sums * inverse_n1);
        for (int64_t l = 0; l < some; ++l) total += found[l];
      }
      call.t2i[(images.begin + i) * p.texts + j] = call.temperature * total / static_cast<float>(length);
    }
  }
}

// Both gradients of a block of images against a range of texts. That of the texts is added to call.grad_text; that of
// the images is added to `image_sums`, in strips.
static void smooth_backward(const SmoothCall& call, Range images, Range texts, float* image_sums, char* scratch) {
  const Problem& p = call.problem;
  const SmoothScratch s(call, images.end - images.begin, true, reinterpret_cast<uintptr_t>(scratch));
  const int64_t n1 = p.patches, stride = s.vectors * LANES, count = images.end - images.begin, tokens = count * n1;
  float *of_lane = s.lanes, *of_row = s.lanes + stride;
  for (int64_t l = 0; l < stride; ++l) of_row[l] = 0;
  pack_panel(p, images, s.vectors, s.panel);
  if (call.grad_text) pack_strips(p, p.image, {images.begin * n1, images.end * n1}, s.image_strips);
  for (int64_t j = texts.begin; j < texts.end;) {
    int64_t last = j + 1;
    while (last < texts.end && p.offsets[last + 1] - p.offsets[j] <= CHUNK_ROWS) ++last;
    const Range rows = {p.offsets[j], p.offsets[last]};
    const int64_t length = rows.end - rows.begin;
    exponentials(call, rows, s);
    for (; j < last; ++j) {
      float* tile = s.tile + (p.offsets[j] - rows.begin) * stride;
      const int64_t n2 = p.offsets[j + 1] - p.offsets[j];
      sums_over_rows(tile, stride, n2, of_lane);
      for (int64_t i = 0; i < count; ++i) {
        const float weight = call.grad_i2t[(images.begin + i) * p.texts + j] / static_cast<float>(n1);
        for (int64_t k = 0; k < n1; ++k) of_lane[i * n1 + k] = weight / of_lane[i * n1 + k];
      }
      for (int64_t r = 0; r < n2; ++r, tile += stride) {
        for (int64_t i = 0; i < count; ++i) {
          const float weight = call.grad_t2i[(images.begin + i) * p.texts + j] / static_cast<float>(n2);
          const float share = weight / sum_of(tile + i * n1, n1);
          for (int64_t k = 0; k < n1; ++k) of_row[i * n1 + k] = share;
        }
        for (int64_t l = 0; l < stride; l += LANES)
          store(tile + l, load(tile + l) * (load(of_lane + l) + load(of_row + l)));
      }
    }
    if (image_sums) {
      pack_strips(p, p.text, rows, s.text_strips);
      times_strips(p, s.tile, 1, stride, tokens, s.text_strips, length, image_sums, true);
    }
    if (call.grad_text) {
      times_strips(p, s.tile, stride, 1, length, s.image_strips, tokens, s.text_sums, false);
      add_strips(p, s.text_sums, length, call.grad_text + rows.begin * p.dim);
    }
  }
}

}  // namespace
}  // namespace filip
