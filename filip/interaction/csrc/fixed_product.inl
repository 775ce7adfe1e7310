// A block of images against one text: the product in fixed point.

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
    rests = {arena.take<int8_t>(rests_bytes(p, images * n1)), nullptr, images * n1};
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

static void fill_tile(const FixedScratch& s, const int16_t* text, int64_t length, int64_t stride, Ahead& ahead) {
  const int64_t strips = div_up(s.vectors, 4);
  for (int64_t strip = 0; strip < strips; ++strip) {
    const Range vectors = part_of(s.vectors, strips, strip);
    const int16_t* panel = s.panel + vectors.begin * LANES * s.pairs * 2;
    for (int64_t row = 0, rows; row < length; row += rows) {
      rows = next_part(length - row, 6);
      ahead.fetch(20);  // about as many lines as may be under way at once
      FIXED_PRODUCTS[rows - 1][vectors.end - vectors.begin - 1](panel, text + row * stride, stride, s.pairs,
                                                                s.tile + row * s.lanes + vectors.begin * LANES,
                                                                s.lanes);
    }
  }
}
