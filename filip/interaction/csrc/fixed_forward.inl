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
  int16_t *rows, *panel;  // rows [lane][fixed_stride]; panel: per strip [pair of columns][lane][2]
  float* slices;          // the block's tokens, [slice][lane][width]
  int32_t *tile, *best;   // tile [row][lane]: similarities in fixed point
  uint16_t *text_choice;  // [text of the group][lane]: winning row of the group
  uint16_t* image_choice; // [image][row of the group]: winning lane
  float *i2t_sums, *t2i_sums;  // [image][text of the group][16 partial sums]
  int32_t* unsure;        // lanes in doubt
  uint16_t* candidates;   // of one of them
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
    slices = arena.take<float>(images * n1 * sliced_width(p.dim));
    tile = arena.take<int32_t>(longest * lanes + LANES);
    best = arena.take<int32_t>(lanes);
    text_choice = arena.take<uint16_t>(MAX_GROUP_TEXTS * lanes);
    image_choice = arena.take<uint16_t>(images * group_rows);
    i2t_sums = arena.take<float>(images * MAX_GROUP_TEXTS * LANES);
    t2i_sums = arena.take<float>(images * MAX_GROUP_TEXTS * LANES);
    unsure = arena.take<int32_t>(lanes + LANES);
    candidates = arena.take<uint16_t>(at_least(longest, n1) + 2 * LANES);
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

// Rounds the block image by image and transposes it into the panel. Returns the largest error; scales[image].
static float pack_block(const Problem& p, Range images, const FixedScratch& s, float* scales) {
  const int64_t strips = div_up(s.vectors, 4), stride = fixed_stride(p.dim), tokens = s.images * s.n1;
  float error = 0;
  for (int64_t i = 0; i < s.images; ++i) {
    const int64_t first = (images.begin + i) * s.n1;
    const Rounding r =
        round_rows(p.image, p.bf16, {first, first + s.n1}, p.dim, s.rows + i * s.n1 * stride);
    scales[i] = r.scale;
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
  slice_rows(p.image, p.bf16, {images.begin * s.n1, images.end * s.n1}, p.dim, s.slices);
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

static inline int64_t add_candidates(uint16_t* out, __mmask16 which, int64_t first) {
  const __m512i rows = _mm512_add_epi32((__m512i)lane_numbers(), _mm512_set1_epi32(static_cast<int32_t>(first)));
  const __m512i chosen = _mm512_maskz_compress_epi32(which, rows);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi32_epi16(chosen));
  return __builtin_popcount(which);
}

// image-to-text: the best row of one text for each lane.
static void vertical(FixedScratch& s, int64_t length, int32_t window, int bits, const Sliced& text, int64_t text_row0,
                     int64_t dim, uint16_t* choice) {
  const int32_t low = (1 << bits) - 1;
  const __m512i keep = _mm512_set1_epi32(~low), none = _mm512_set1_epi32(INT32_MIN);
  const __m512i first_row = _mm512_set1_epi32(static_cast<int32_t>(text_row0));
  const __m512i lanes = (__m512i)lane_numbers();
  const Sliced image{s.slices, s.images * s.n1};
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
  for (int64_t n = 0; n < unsure && s.unsure[n] < image.count; ++n) {
    const int64_t lane = s.unsure[n];
    const __m512i least = _mm512_set1_epi32(s.best[lane] - window);
    int64_t count = 0;
    for (int64_t r0 = 0; r0 < length; r0 += LANES) {
      const __mmask16 valid = static_cast<__mmask16>((1u << at_most(length - r0, LANES)) - 1);
      const __m512i column = _mm512_mask_i32gather_epi32(none, valid, down, s.tile + r0 * s.lanes + lane, 4);
      count += add_candidates(s.candidates + count, _mm512_cmpge_epi32_mask(column, least), text_row0 + r0);
    }
    ++s.lost;
    choice[lane] = static_cast<uint16_t>(settle(image, lane, text, s.candidates, count, dim));
    s.best[lane] = s.tile[(choice[lane] - text_row0) * s.lanes + lane];
  }
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
static float horizontal(FixedScratch& s, int64_t length, int32_t window, int bits, const Sliced& text,
                        int64_t text_row0, int64_t dim, int64_t lane, uint16_t* choice) {
  const int32_t low = (1 << bits) - 1;
  const __m512i keep = _mm512_set1_epi32(~low), none = _mm512_set1_epi32(INT32_MIN), step = _mm512_set1_epi32(LANES);
  const __m512i first_index = _mm512_sub_epi32(_mm512_set1_epi32(low), (__m512i)lane_numbers());
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
    sum += _mm512_mask_reduce_add_ps(valid, _mm512_cvtepi32_ps(top));
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
        candidates += add_candidates(s.candidates + candidates, close, lane + k);
      }
      ++s.lost;
      choice[r0 + r] = static_cast<uint16_t>(
          settle(text, text_row0 + r0 + r, Sliced{s.slices, s.images * s.n1}, s.candidates, candidates, dim));
      sum += static_cast<float>(row[choice[r0 + r] - lane]) - static_cast<float>(least[r] + window);
    }
  }
  return sum;
}

// Both means of every image of the block with every text of the group, from the winners' float32 products.
static void exact_means(const ForwardCall& call, Range images, int64_t first, int64_t last, const FixedScratch& s,
                        const float* text_slices) {
  const Problem& p = call.problem;
  const int64_t texts = last - first, row0 = p.offsets[first], rows = p.offsets[last] - row0;
  const int64_t sums = s.images * MAX_GROUP_TEXTS * LANES;
  for (int64_t c = 0; c < sums; ++c) s.i2t_sums[c] = s.t2i_sums[c] = 0;
  for (int64_t n = 0; n < slice_count(p.dim, SLICE); ++n) {
    const Slice slice = slice_of(p.dim, SLICE, n);
    const float* image_rows = s.slices + s.images * s.n1 * slice.first;
    const float* text_rows = text_slices + rows * slice.first;
    const AddProducts* add = ADD_PRODUCTS[slice.width / LANES - 1];
    for (int64_t i = 0; i < s.images; ++i)
      add[texts - 1](image_rows + i * s.n1 * slice.width, s.n1, text_rows, s.text_choice + i * s.n1, s.lanes,
                     s.i2t_sums + i * MAX_GROUP_TEXTS * LANES, LANES);
    // Few images at a time, for theirs are the rows chosen among.
    const int64_t parts = div_up(s.images, 3);
    for (int64_t part = 0; part < parts; ++part) {
      const Range some = part_of(s.images, parts, part);
      for (int64_t t = 0; t < texts; ++t) {
        const int64_t offset = p.offsets[first + t] - row0;
        add[some.end - some.begin - 1](text_rows + offset * slice.width, p.offsets[first + t + 1] - row0 - offset,
                                       image_rows, s.image_choice + some.begin * s.group_rows + offset, s.group_rows,
                                       s.t2i_sums + (some.begin * MAX_GROUP_TEXTS + t) * LANES,
                                       MAX_GROUP_TEXTS * LANES);
      }
    }
  }
  for (int64_t i = 0; i < s.images; ++i)
    for (int64_t t = 0; t < texts; ++t) {
      const int64_t at = (images.begin + i) * p.texts + first + t, from = (i * MAX_GROUP_TEXTS + t) * LANES;
      const float length = static_cast<float>(p.offsets[first + t + 1] - p.offsets[first + t]);
      call.i2t[at] = _mm512_reduce_add_ps(_mm512_loadu_ps(s.i2t_sums + from)) / static_cast<float>(s.n1);
      call.t2i[at] = _mm512_reduce_add_ps(_mm512_loadu_ps(s.t2i_sums + from)) / length;
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
  float scales[FIXED_BLOCK_LANES];  // a block has at most that many images
  const float error = pack_block(p, images, s, scales);
  const int64_t stride = fixed_stride(p.dim), row0 = p.offsets[texts.begin];
  for (int64_t g = groups.begin; g < groups.end; ++g) {
    const int64_t first = call.groups.bounds[g], last = call.groups.bounds[g + 1];
    const int64_t group_row0 = p.offsets[first], rows = p.offsets[last] - group_row0;
    const Sliced sliced{text.slices + (group_row0 - row0) * sliced_width(p.dim), rows};
    s.lost = 0;
    for (int64_t j = first; j < last; ++j) {
      const int64_t length = p.offsets[j + 1] - p.offsets[j], offset = p.offsets[j] - group_row0;
      const Rounding& rounding = text.rounding[j - texts.begin];
      const int32_t window = doubt(error, rounding.error, bits);
      uint16_t* choice = s.text_choice + (j - first) * s.lanes;
      fill_tile(s, text.fixed + (p.offsets[j] - row0) * stride, length, stride);
      vertical(s, length, window, bits, sliced, offset, p.dim, choice);
      for (int64_t i = 0; i < s.images; ++i) {
        const float t2i = horizontal(s, length, window, bits, sliced, offset, p.dim, i * s.n1,
                                     s.image_choice + i * s.group_rows + offset);
        if (!p.bf16) continue;
        float i2t = 0;
        for (int64_t k = 0; k < s.n1; ++k) i2t += static_cast<float>(s.best[i * s.n1 + k]);
        const float unit = 1 / scales[i] / rounding.scale;
        const int64_t at = (images.begin + i) * p.texts + j;
        call.i2t[at] = i2t * unit / static_cast<float>(s.n1);
        call.t2i[at] = t2i * unit / static_cast<float>(length);
      }
    }
    write_maps(call, images, first, last, s);
    if (!p.bf16) exact_means(call, images, first, last, s, sliced.rows);
    if (s.lost * 3 > s.images * ((last - first) * s.n1 + rows)) {
      return avx512_isa()->forward(call, images, {g + 1, groups.end}, texts, nullptr, scratch);
    }
  }
}
