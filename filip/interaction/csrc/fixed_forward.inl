// Screening in fixed point, then float32 where it matters. See fixed_point.cpp for the idea.

constexpr int64_t FIXED_BLOCK_LANES = 448;
constexpr int MAX_INDEX_BITS = 12;

static int index_bits(int64_t count) {  // so that indices 0 .. count-1 fit
  int bits = 0;
  while ((int64_t{1} << bits) < count) ++bits;
  return bits;
}

static int64_t fixed_image_block(const Problem& p) {
  const int64_t most = at_most(p.images, at_least(1, FIXED_BLOCK_LANES / p.patches));
  int64_t best = 1;
  double best_use = 0;
  for (int64_t m = most; m > most / 2; --m) {
    const double use = static_cast<double>(m * p.patches) / static_cast<double>(round_up(m * p.patches, LANES));
    if (use > best_use + 0.005) best_use = use, best = m;
  }
  return best;
}

// What one unit works in. Winners are kept per group: of each lane in each text, and of each text row per image.
struct FixedScratch {
  int64_t images, n1, vectors, lanes, pairs, longest, group_rows;
  int16_t *rows, *panel;       // rows [lane][fixed_stride]; panel: per strip [pair of columns][lane][2]
  Rests rests;                 // of the block's tokens
  int32_t *tile, *best;        // tile [row][lane]: similarities in fixed point; best [lane], the last bits an index
  uint16_t* text_choice;       // [text of the group][lane]: winning row of the group
  uint16_t* image_choice;      // [image][row of the group]: winning lane
  float *i2t_off, *t2i_off;    // [half][image][text of the group][16 partial sums] what rounding added
  float *i2t_sums, *t2i_sums;  // [image][text of the group] sums of the maxima, in fixed point
  int32_t* unsure;             // lanes in doubt
  int64_t* candidates;         // of one of them
  int64_t lost = 0;       // maxima in doubt in this group
  Arena arena;

  FixedScratch(const ForwardCall& call, int64_t block, uintptr_t base) : images(block), arena{base} {
    const Problem& p = call.problem;
    n1 = p.patches;
    vectors = div_up(images * n1, LANES);
    lanes = vectors * LANES;
    pairs = div_up(p.dim, 2);
    longest = 1;
    for (int64_t j = 0; j < p.texts; ++j) longest = at_least(longest, p.offsets[j + 1] - p.offsets[j]);
    group_rows = at_least(longest, 160);
    rows = arena.take<int16_t>(lanes * fixed_stride(p.dim));
    panel = arena.take<int16_t>(lanes * pairs * 2);
    rests = {arena.take<int8_t>(rests_bytes(images * n1, p.dim)), nullptr, images * n1};
    rests.sums = arena.take<int32_t>(2 * images * n1);
    tile = arena.take<int32_t>(longest * lanes);
    best = arena.take<int32_t>(lanes);
    text_choice = arena.take<uint16_t>(MAX_GROUP_TEXTS * lanes);
    image_choice = arena.take<uint16_t>(images * group_rows);
    i2t_off = arena.take<float>(2 * images * MAX_GROUP_TEXTS * LANES);
    t2i_off = arena.take<float>(2 * images * MAX_GROUP_TEXTS * LANES);
    i2t_sums = arena.take<float>(images * MAX_GROUP_TEXTS);
    t2i_sums = arena.take<float>(images * MAX_GROUP_TEXTS);
    unsure = arena.take<int32_t>(lanes + LANES);
    candidates = arena.take<int64_t>(at_least(longest, n1) + 2 * LANES);
  }
};

static int64_t fixed_bytes(const ForwardCall& call) {
  const int64_t screening =
      static_cast<int64_t>(FixedScratch(call, fixed_image_block(call.problem), 0).arena.next);
  return at_least(screening, avx512_isa()->forward_bytes(call));
}

// 16 vectors of 16 numbers, transposed in place.
static inline void transpose(__m512i v[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // v[i + c]: column c of each 4 x 4 block of rows i .. i + 3
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i a = _mm512_shuffle_i32x4(v[c], v[4 + c], 0x88), b = _mm512_shuffle_i32x4(v[c], v[4 + c], 0xdd);
    const __m512i d = _mm512_shuffle_i32x4(v[8 + c], v[12 + c], 0x88);
    const __m512i e = _mm512_shuffle_i32x4(v[8 + c], v[12 + c], 0xdd);
    t[c] = _mm512_shuffle_i32x4(a, d, 0x88);
    t[8 + c] = _mm512_shuffle_i32x4(a, d, 0xdd);
    t[4 + c] = _mm512_shuffle_i32x4(b, e, 0x88);
    t[12 + c] = _mm512_shuffle_i32x4(b, e, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) v[i] = t[i];
}

// Rounds the block image by image and transposes it into the panel. Returns the largest error; rounding[image].
static float pack_block(const Problem& p, Range images, const FixedScratch& s, Rounding* rounding) {
  const int64_t strips = div_up(s.vectors, 4), stride = fixed_stride(p.dim), tokens = s.images * s.n1;
  float error = 0;
  for (int64_t i = 0; i < s.images; ++i) {
    const int64_t first = (images.begin + i) * s.n1;
    const Rounding r = round_rows(p.image, p.bf16, {first, first + s.n1}, p.dim, false, s.rows + i * s.n1 * stride,
                                  s.rests, i * s.n1);
    rounding[i] = r;
    error = r.error > error ? r.error : error;
  }
  __builtin_memset(s.rows + tokens * stride, 0, static_cast<size_t>((s.lanes - tokens) * stride) * sizeof(int16_t));
  for (int64_t strip = 0; strip < strips; ++strip) {
    const Range vectors = part_of(s.vectors, strips, strip);
    const int64_t width = (vectors.end - vectors.begin) * LANES;
    int32_t* out = reinterpret_cast<int32_t*>(s.panel) + vectors.begin * LANES * s.pairs;
    for (int64_t v = vectors.begin; v < vectors.end; ++v, out += LANES)
      for (int64_t c = 0; c < s.pairs; c += 16) {
        __m512i square[16];
        for (int l = 0; l < 16; ++l) square[l] = _mm512_loadu_si512(s.rows + (v * LANES + l) * stride + 2 * c);
        transpose(square);
        for (int n = 0; n < at_most(16, s.pairs - c); ++n) _mm512_storeu_si512(out + (c + n) * width, square[n]);
      }
  }
  return error;
}

template <int R, int V>
static void fixed_product(const int16_t* panel, const int16_t* rows, int64_t stride, int64_t pairs, int32_t* tile,
                          int64_t tile_stride) {
  __m512i sum[R][V];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = _mm512_setzero_si512();
  for (int64_t c = 0; c < pairs; ++c, panel += V * 32, rows += 2) {
    __m512i token[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) token[v] = _mm512_loadu_si512(panel + v * 32);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      int32_t pair;
      __builtin_memcpy(&pair, rows + r * stride, 4);
      const __m512i feature = _mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = _mm512_dpwssd_epi32(sum[r][v], token[v], feature);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) _mm512_storeu_si512(tile + r * tile_stride + v * LANES, sum[r][v]);
}

typedef void (*FixedProduct)(const int16_t*, const int16_t*, int64_t, int64_t, int32_t*, int64_t);
#define FILIP_ROWS(R) {fixed_product<R, 1>, fixed_product<R, 2>, fixed_product<R, 3>, fixed_product<R, 4>}
static const FixedProduct FIXED_PRODUCTS[6][4] = {FILIP_ROWS(1), FILIP_ROWS(2), FILIP_ROWS(3),
                                                  FILIP_ROWS(4), FILIP_ROWS(5), FILIP_ROWS(6)};
#undef FILIP_ROWS

static void fill_tile(const FixedScratch& s, const int16_t* text, int64_t length, int64_t stride) {
  const int64_t strips = div_up(s.vectors, 4);
  for (int64_t strip = 0; strip < strips; ++strip) {
    const Range vectors = part_of(s.vectors, strips, strip);
    const int16_t* panel = s.panel + vectors.begin * LANES * s.pairs * 2;
    for (int64_t row = 0, rows; row < length; row += rows) {
      rows = next_part(length - row, 6);
      FIXED_PRODUCTS[rows - 1][vectors.end - vectors.begin - 1](panel, text + row * stride, stride, s.pairs,
                                                                s.tile + row * s.lanes + vectors.begin * LANES,
                                                                s.lanes);
    }
  }
}

// A similarity with its lowest bits replaced by the reversed index: one maximum finds value and lowest index.
static inline __m512i with_index(__m512i value, __m512i keep, __m512i index) {
  return _mm512_ternarylogic_epi32(value, keep, index, 0xea);  // (value & keep) | index
}

static inline int64_t add_candidates(int64_t* out, uint32_t which, int64_t first) {
  int64_t count = 0;
  for (; which; which &= which - 1) out[count++] = first + __builtin_ctz(which);
  return count;
}

// image-to-text: the best row of one text for each lane.
static void vertical(FixedScratch& s, const Problem& p, int64_t image_row0, Range text, int64_t group_row0,
                     int32_t window, int bits, uint16_t* choice) {
  const int64_t length = text.end - text.begin, tokens = s.images * s.n1;
  const int32_t low = (1 << bits) - 1;
  const __m512i keep = _mm512_set1_epi32(~low), none = _mm512_set1_epi32(INT32_MIN);
  const __m512i first_row = _mm512_set1_epi32(static_cast<int32_t>(text.begin - group_row0));
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  int64_t unsure = 0;
  for (int64_t v = 0; v < s.vectors; ++v) {
    const int32_t* column = s.tile + v * LANES;
    __m512i best = none, second = none;
    for (int64_t r = 0; r < length; ++r) {
      const __m512i index = _mm512_set1_epi32(low - static_cast<int32_t>(r));
      const __m512i next = with_index(_mm512_loadu_si512(column + r * s.lanes), keep, index);
      second = _mm512_max_epi32(second, _mm512_min_epi32(best, next));
      best = _mm512_max_epi32(best, next);
    }
    // row = low - (best & low)
    const __m512i winner = _mm512_add_epi32(_mm512_andnot_si512(best, _mm512_set1_epi32(low)), first_row);
    _mm512_storeu_si512(s.best + v * LANES, best);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(choice + v * LANES), _mm512_cvtepi32_epi16(winner));
    const __mmask16 close = _mm512_cmpge_epi32_mask(second, _mm512_sub_epi32(best, _mm512_set1_epi32(window)));
    _mm512_mask_compressstoreu_epi32(s.unsure + unsure, close,
                                     _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int32_t>(v * LANES))));
    unsure += __builtin_popcount(close);
  }
  const __m512i down = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(static_cast<int32_t>(s.lanes)));
  for (int64_t n = 0; n < unsure && s.unsure[n] < tokens; ++n) {
    const int64_t lane = s.unsure[n];
    const __m512i least = _mm512_set1_epi32(s.best[lane] - window);
    int64_t count = 0;
    for (int64_t r0 = 0; r0 < length; r0 += LANES) {
      const __mmask16 valid = static_cast<__mmask16>((1u << at_most(length - r0, LANES)) - 1);
      const __m512i column = _mm512_mask_i32gather_epi32(none, valid, down, s.tile + r0 * s.lanes + lane, 4);
      count += add_candidates(s.candidates + count, _mm512_cmpge_epi32_mask(column, least), text.begin + r0);
    }
    ++s.lost;
    const int64_t row = settle(p.image, image_row0 + lane, p.text, s.candidates, count, p.bf16, p.dim);
    choice[lane] = static_cast<uint16_t>(row - group_row0);
    s.best[lane] = s.tile[(row - text.begin) * s.lanes + lane];
  }
}

static inline float sum_of(const int32_t* values, int64_t count, __m512i keep) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t n = 0; n < count; n += LANES) {
    const __mmask16 valid = count - n >= LANES ? 0xffff : static_cast<__mmask16>((1u << (count - n)) - 1);
    const __m512i some = _mm512_and_si512(_mm512_maskz_loadu_epi32(valid, values + n), keep);
    sum = _mm512_add_ps(sum, _mm512_cvtepi32_ps(some));
  }
  return _mm512_reduce_add_ps(sum);
}

// Lane r of the result is the largest of the 16 numbers in v[r].
static inline __m512i row_maxima(const __m512i v[16]) {
  __m512i t[8], u[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    t[i] = _mm512_max_epi32(_mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]),
                            _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]));
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    u[i] = _mm512_max_epi32(_mm512_unpacklo_epi64(t[2 * i], t[2 * i + 1]),
                            _mm512_unpackhi_epi64(t[2 * i], t[2 * i + 1]));
  const __m512i a =
      _mm512_max_epi32(_mm512_shuffle_i32x4(u[0], u[1], 0x88), _mm512_shuffle_i32x4(u[0], u[1], 0xdd));
  const __m512i b =
      _mm512_max_epi32(_mm512_shuffle_i32x4(u[2], u[3], 0x88), _mm512_shuffle_i32x4(u[2], u[3], 0xdd));
  return _mm512_max_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

// text-to-image: the best token of one image (its lanes start at `lane`) for each row of one text.
// Returns the sum of the maxima.
static float horizontal(FixedScratch& s, const Problem& p, int64_t image_row0, int64_t lane, Range text,
                        int32_t window, int bits, uint16_t* choice) {
  const int64_t length = text.end - text.begin;
  const int32_t low = (1 << bits) - 1;
  const __m512i keep = _mm512_set1_epi32(~low), none = _mm512_set1_epi32(INT32_MIN), step = _mm512_set1_epi32(LANES);
  const __m512i first_index = _mm512_sub_epi32(_mm512_set1_epi32(low), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  const __mmask16 tail = static_cast<__mmask16>((1u << ((s.n1 - 1) % LANES + 1)) - 1);
  const int64_t full = (s.n1 - 1) / LANES * LANES;
  float sum = 0;
  for (int64_t r0 = 0; r0 < length; r0 += 16) {
    const int64_t count = at_most(16, length - r0);
    const int32_t* rows = s.tile + r0 * s.lanes + lane;
    __m512i best[16];
    for (int64_t r = 0; r < 16; ++r) {
      const int32_t* row = rows + r * s.lanes;
      best[r] = none;
      if (r >= count) continue;
      __m512i index = first_index;
      for (int64_t k = 0; k < full; k += LANES, index = _mm512_sub_epi32(index, step))
        best[r] = _mm512_max_epi32(best[r], with_index(_mm512_loadu_si512(row + k), keep, index));
      best[r] = _mm512_mask_max_epi32(best[r], tail, best[r],
                                      with_index(_mm512_maskz_loadu_epi32(tail, row + full), keep, index));
    }
    const __m512i top = row_maxima(best);
    const __mmask16 valid = static_cast<__mmask16>((1u << count) - 1);
    // lane = first lane + low - (top & low)
    const __m512i winner = _mm512_add_epi32(_mm512_andnot_si512(top, _mm512_set1_epi32(low)),
                                            _mm512_set1_epi32(static_cast<int32_t>(lane)));
    _mm256_mask_storeu_epi16(choice + r0, valid, _mm512_cvtepi32_epi16(winner));
    sum += _mm512_mask_reduce_add_ps(valid, _mm512_cvtepi32_ps(_mm512_and_si512(top, keep)));
    int32_t least[16];
    _mm512_storeu_si512(least, _mm512_sub_epi32(top, _mm512_set1_epi32(window)));
    uint32_t unsure = 0;
    for (int64_t r = 0; r < count; ++r) {
      const int32_t* row = rows + r * s.lanes;
      const __m512i bound = _mm512_set1_epi32(least[r]);
      int close = 0;
      for (int64_t k = 0; k < full; k += LANES)
        close += __builtin_popcount(_mm512_cmpge_epi32_mask(_mm512_loadu_si512(row + k), bound));
      close += __builtin_popcount(_mm512_mask_cmpge_epi32_mask(tail, _mm512_maskz_loadu_epi32(tail, row + full), bound));
      unsure |= static_cast<uint32_t>(close > 1) << r;
    }
    for (; unsure; unsure &= unsure - 1) {
      const int64_t r = __builtin_ctz(unsure);
      const int32_t* row = rows + r * s.lanes;
      const __m512i bound = _mm512_set1_epi32(least[r]);
      int64_t candidates = 0;
      for (int64_t k = 0; k < s.n1; k += LANES) {
        const __mmask16 within = k < full ? 0xffff : tail;
        const __mmask16 close = _mm512_mask_cmpge_epi32_mask(within, _mm512_maskz_loadu_epi32(within, row + k), bound);
        candidates += add_candidates(s.candidates + candidates, close, image_row0 + lane + k);
      }
      ++s.lost;
      const int64_t chosen =
          settle(p.text, text.begin + r0 + r, p.image, s.candidates, candidates, p.bf16, p.dim) - image_row0;
      choice[r0 + r] = static_cast<uint16_t>(chosen);
      sum += static_cast<float>(row[chosen - lane]) - static_cast<float>((least[r] + window) & ~low);
    }
  }
  return sum;
}

// What rounding added to the maxima of every image of the block with every text of the group.
static void add_rests(const Problem& p, int64_t first, int64_t last, const FixedScratch& s, const Rests& text) {
  const int64_t texts = last - first, row0 = p.offsets[first], stride = fixed_stride(p.dim);
  const int64_t sums = s.images * MAX_GROUP_TEXTS * LANES;
  for (int64_t n = 0; n < 2 * sums; ++n) s.i2t_off[n] = s.t2i_off[n] = 0;
  for (int64_t half = 0; half < 2; ++half)
    for (int64_t column = 0; column < stride; column += SLICE) {
      const int64_t width = at_most(SLICE, stride - column);
      const int8_t* image_rows = s.rests.row(half, column, 0, p.dim);
      const int8_t* text_rows = text.row(half, column, 0, p.dim);
      for (int64_t i = 0; i < s.images; ++i)
        ADD_PRODUCTS[width / 64 - 1][texts - 1](image_rows + i * s.n1 * width, s.n1, text_rows, s.text_choice + i * s.n1,
                                             s.lanes, s.i2t_off + half * sums + i * MAX_GROUP_TEXTS * LANES, LANES);
      // Few images at a time, for theirs are the rows chosen among.
      const int64_t parts = div_up(s.images, 3);
      for (int64_t part = 0; part < parts; ++part) {
        const Range some = part_of(s.images, parts, part);
        for (int64_t t = 0; t < texts; ++t) {
          const int64_t offset = p.offsets[first + t] - row0;
          ADD_PRODUCTS[width / 64 - 1][some.end - some.begin - 1](
              text_rows + offset * width, p.offsets[first + t + 1] - row0 - offset, image_rows,
              s.image_choice + some.begin * s.group_rows + offset, s.group_rows,
              s.t2i_off + half * sums + (some.begin * MAX_GROUP_TEXTS + t) * LANES, MAX_GROUP_TEXTS * LANES);
        }
      }
    }
}

// The means of the maxima in the units of the input.
static void write_means(const ForwardCall& call, Range images, int64_t first, int64_t last, const FixedScratch& s,
                        const Rests& text, const Rounding* image_rounding, const Rounding* text_rounding,
                        float lost_to_index) {
  const Problem& p = call.problem;
  for (int64_t i = 0; i < s.images; ++i) {
    for (int64_t t = 0; t < last - first; ++t) {
      const int64_t n = i * MAX_GROUP_TEXTS + t, at = (images.begin + i) * p.texts + first + t;
      const int64_t offset = p.offsets[first + t] - p.offsets[first];
      const int64_t length = p.offsets[first + t + 1] - p.offsets[first + t];
      const float unit = 1 / image_rounding[i].scale / text_rounding[t].scale;
      float i2t = s.i2t_sums[n] / static_cast<float>(s.n1) + lost_to_index;
      float t2i = s.t2i_sums[n] / static_cast<float>(length) + lost_to_index;
      for (int64_t half = 0; half < (p.bf16 ? 0 : 2); ++half) {
        const float rest_unit = REST_UNIT * (half == 0 ? text_rounding[t].coarse : image_rounding[i].coarse);
        const int64_t from = (half * s.images * MAX_GROUP_TEXTS + n) * LANES;
        const float i2t_off = total_of(s.i2t_off + from, text.sums + half * text.count,
                                       s.text_choice + t * s.lanes + i * s.n1, s.n1);
        const float t2i_off = total_of(s.t2i_off + from, s.rests.sums + half * s.rests.count,
                                       s.image_choice + i * s.group_rows + offset, length);
        i2t -= rest_unit * i2t_off / static_cast<float>(s.n1);
        t2i -= rest_unit * t2i_off / static_cast<float>(length);
      }
      call.i2t[at] = i2t * unit;
      call.t2i[at] = t2i * unit;
    }
  }
}

static void copy_map(void* map, bool wide, int64_t to, const uint16_t* from, int64_t count, int64_t origin) {
  if (wide) {
    int16_t* out = static_cast<int16_t*>(map) + to;
    for (int64_t n = 0; n < count; ++n) out[n] = static_cast<int16_t>(from[n] - origin);
  } else {
    uint8_t* out = static_cast<uint8_t*>(map) + to;
    for (int64_t n = 0; n < count; ++n) out[n] = static_cast<uint8_t>(from[n] - origin);
  }
}

static void write_maps(const ForwardCall& call, Range images, int64_t first, int64_t last, const FixedScratch& s) {
  const Problem& p = call.problem;
  if (!call.maps.i2t) return;
  const int64_t total = p.offsets[p.texts], row0 = p.offsets[first];
  for (int64_t i = 0; i < s.images; ++i) {
    for (int64_t t = 0; t < last - first; ++t) {
      const uint16_t* from = s.text_choice + t * s.lanes + i * s.n1;
      const int64_t to = ((images.begin + i) * p.texts + first + t) * s.n1;
      copy_map(call.maps.i2t, p.wide, to, from, s.n1, p.offsets[first + t] - row0);
    }
    const uint16_t* from = s.image_choice + i * s.group_rows;
    const int64_t to = (images.begin + i) * total + row0;
    copy_map(call.maps.t2i, p.wide, to, from, p.offsets[last] - row0, i * s.n1);
  }
}

static void fixed_forward(const ForwardCall& call, Range images, Range groups, Range texts, const char* packed,
                          char* scratch) {
  const Problem& p = call.problem;
  FixedScratch s(call, images.end - images.begin, reinterpret_cast<uintptr_t>(scratch));
  const PackedText text(p, texts, Arena{reinterpret_cast<uintptr_t>(const_cast<char*>(packed))});
  const int bits = index_bits(at_least(s.n1, s.longest));
  if (bits > MAX_INDEX_BITS) return avx512_isa()->forward(call, images, groups, texts, nullptr, scratch);
  const __m512i keep = _mm512_set1_epi32(-(1 << bits));
  Rounding rounding[FIXED_BLOCK_LANES];  // a block has at most that many images
  const float error = pack_block(p, images, s, rounding);
  const int64_t stride = fixed_stride(p.dim), row0 = p.offsets[texts.begin], image_row0 = images.begin * s.n1;
  for (int64_t g = groups.begin; g < groups.end; ++g) {
    const int64_t first = call.groups.bounds[g], last = call.groups.bounds[g + 1];
    const int64_t group_row0 = p.offsets[first], rows = p.offsets[last] - group_row0;
    s.lost = 0;
    for (int64_t j = first; j < last; ++j) {
      const Range text_rows{p.offsets[j], p.offsets[j + 1]};
      const int32_t window = doubt(error, text.rounding[j - texts.begin].error, bits);
      fill_tile(s, text.fixed + (text_rows.begin - row0) * stride, text_rows.end - text_rows.begin, stride);
      vertical(s, p, image_row0, text_rows, group_row0, window, bits, s.text_choice + (j - first) * s.lanes);
      for (int64_t i = 0; i < s.images; ++i) {
        const int64_t n = i * MAX_GROUP_TEXTS + j - first;
        s.i2t_sums[n] = sum_of(s.best + i * s.n1, s.n1, keep);
        s.t2i_sums[n] = horizontal(s, p, image_row0, i * s.n1, text_rows, window, bits,
                                   s.image_choice + i * s.group_rows + text_rows.begin - group_row0);
      }
    }
    write_maps(call, images, first, last, s);
    const Rests rests = text.rests_of(p, texts, {first, last});
    if (!p.bf16) add_rests(p, first, last, s, rests);
    write_means(call, images, first, last, s, rests, rounding, text.rounding + first - texts.begin,
                0.5f * static_cast<float>((1 << bits) - 1));
    if (s.lost * 3 > s.images * ((last - first) * s.n1 + rows))
      return avx512_isa()->forward(call, images, {g + 1, groups.end}, texts, nullptr, scratch);
  }
}
