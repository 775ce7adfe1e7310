// Tokens rounded to int16, and for float32 tokens what the rounding left, in int8.

constexpr float LONGEST = 45000.0f;  // length of a token in fixed point: (45000 + rounding)^2 < 2^31
constexpr float LARGEST = 32767.0f;  // of a single number
constexpr int64_t SLICE = 256;       // int8 numbers of a row that lie together, see below
constexpr float REST_UNIT = 1 / 254.0f;  // a rest is in [-1/2, 1/2]

static inline int64_t fixed_stride(int64_t dim) { return round_up(dim, 64); }  // int16 per row; int8 per half of a rest

// The rests of a group of `count` rows: [half][slice of up to 256 columns][row][column of the slice]. For images the
// halves are (rest, rounded number), for texts (rounded number, rest): the product of two such rows is what the product
// of the two rounded rows is off by.
struct Rests {
  int8_t* data;
  int32_t* sums;  // [half][row] of the numbers in it
  int64_t count;
  int8_t* row(int64_t half, int64_t column, int64_t row, int64_t dim) const {
    const int64_t first = column / SLICE * SLICE, width = at_most(SLICE, fixed_stride(dim) - first);
    return data + count * (half * fixed_stride(dim) + first) + row * width + (column - first);
  }
};

static inline int64_t rests_bytes(const Problem& p, int64_t rows) {
  return p.bf16 ? 0 : rows * 2 * fixed_stride(p.dim);
}

struct Rounding {
  float scale;  // fixed point = token * scale; NaN if one is not finite, 0 if their squares overflow
  float error;  // the longest rest of a token, in fixed-point units
  float coarse;  // the unit in which rounded numbers are stored beside the rests
};

static inline __m512 load_columns(const void* rows, bool bf16, int64_t dim, int64_t row, int64_t column) {
  const int64_t left = dim - column;
  const __mmask16 valid = left >= 16 ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
  if (!bf16) return _mm512_maskz_loadu_ps(valid, static_cast<const float*>(rows) + row * dim + column);
  const __m256i half = _mm256_maskz_loadu_epi16(valid, static_cast<const uint16_t*>(rows) + row * dim + column);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

static inline float power_below(float x) {  // the largest power of two that is at most x
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  bits &= 0x7f800000u;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

static inline __m128i to_bytes(__m512 x, float factor) {
  return _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(factor))));
}

// The tokens [range), scaled together, to out[row][fixed_stride] and to row rest0 .. of `rests`.
static Rounding round_rows(const void* rows, bool bf16, Range range, int64_t dim, bool text, int16_t* out,
                           const Rests& rests, int64_t rest0) {
  const int64_t stride = fixed_stride(dim);
  float longest = 0;
  __m512 largest = _mm512_setzero_ps(), zero = _mm512_setzero_ps();
  for (int64_t row = range.begin; row < range.end; ++row) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t c = 0; c < dim; c += 16) {
      const __m512 x = load_columns(rows, bf16, dim, row, c);
      sum = _mm512_fmadd_ps(x, x, sum);
      largest = _mm512_max_ps(largest, _mm512_abs_ps(x));
      zero = _mm512_fmadd_ps(x, _mm512_setzero_ps(), zero);
    }
    const float length = _mm512_reduce_add_ps(sum);
    longest = length > longest ? length : longest;
  }
  const float whole = _mm512_reduce_add_ps(zero);  // 0, or NaN
  const bool usable = whole == 0 && longest < __builtin_inff();
  // Tokens so short that the scale would overflow are all zero in fixed point, hence all in doubt, hence settled.
  const float length = __builtin_sqrtf(longest) * (1 + 1e-6f), most = _mm512_reduce_max_ps(largest);
  const float by_length = LONGEST / (length > 1e-30f ? length : 1e-30f);
  const float by_number = LARGEST / (most > 1e-30f ? most : 1e-30f);
  float scale = !usable ? 0 : by_length < by_number ? by_length : by_number;
  // By a power of two: most bfloat16 numbers, of 8 bits, are then integers as they are.
  if (bf16 && usable) scale = power_below(scale);
  float coarse = 1;
  while (most * scale > 128 * coarse) coarse *= 2;
  const __m512 factor = _mm512_set1_ps(scale);
  float error = 0;
  for (int64_t row = range.begin; row < range.end; ++row, out += stride, ++rest0) {
    __m512 sum = _mm512_setzero_ps();
    __m512i small_sum = _mm512_setzero_si512(), large_sum = _mm512_setzero_si512();
    for (int64_t c = 0; c < stride; c += 16) {
      const __m512 x = usable ? _mm512_mul_ps(load_columns(rows, bf16, dim, row, c), factor) : _mm512_setzero_ps();
      const __m512i fixed = _mm512_cvtps_epi32(x);
      const __m512 rest = _mm512_sub_ps(_mm512_cvtepi32_ps(fixed), x);
      sum = _mm512_fmadd_ps(rest, rest, sum);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + c), _mm512_cvtsepi32_epi16(fixed));
      if (bf16) continue;
      const __m128i small = to_bytes(rest, 1 / REST_UNIT), large = to_bytes(_mm512_cvtepi32_ps(fixed), 1 / coarse);
      small_sum = _mm512_add_epi32(small_sum, _mm512_cvtepi8_epi32(small));
      large_sum = _mm512_add_epi32(large_sum, _mm512_cvtepi8_epi32(large));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(rests.row(text, c, rest0, dim)), small);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(rests.row(!text, c, rest0, dim)), large);
    }
    if (!bf16) {
      rests.sums[text * rests.count + rest0] = _mm512_reduce_add_epi32(small_sum);
      rests.sums[!text * rests.count + rest0] = _mm512_reduce_add_epi32(large_sum);
    }
    const float off = _mm512_reduce_add_ps(sum);
    error = off > error ? off : error;
  }
  // Multiplying by the scale rounds too, by at most 2^-24 of a component: 0.003 of the length LONGEST.
  return {scale + whole, __builtin_sqrtf(error) * (1 + 1e-5f) + 0.003f, coarse};
}

// How far a similarity must lead to be surely the largest: twice the bound of fixed_point.cpp, plus what its lowest
// `bits` lose to the index stored there.
static inline int32_t doubt(float error_a, float error_b, int bits) {
  const float bound = error_a * (LONGEST + 1 + error_b) + (LONGEST + 1) * error_b;
  return static_cast<int32_t>(2 * bound * (1 + 1e-5f)) + (1 << bits) + 1;
}

// The text of a range of groups as all threads read it.
struct PackedText {
  int16_t* fixed;      // [rows][fixed_stride]
  int8_t* rests;       // group after group
  int32_t* rest_sums;  // likewise
  Rounding* rounding;  // [texts]
  PackedText(const Problem& p, Range texts, Arena arena) {
    const int64_t rows = p.offsets[texts.end] - p.offsets[texts.begin];
    fixed = arena.take<int16_t>(rows * fixed_stride(p.dim));
    rests = arena.take<int8_t>(rests_bytes(p, rows));
    rest_sums = arena.take<int32_t>(p.bf16 ? 0 : 2 * rows);
    rounding = arena.take<Rounding>(texts.end - texts.begin);
    bytes = static_cast<int64_t>(arena.next);
  }
  Rests rests_of(const Problem& p, Range texts, Range group) const {
    const int64_t row = p.offsets[group.begin] - p.offsets[texts.begin];
    return {rests + rests_bytes(p, row), rest_sums + 2 * row, p.offsets[group.end] - p.offsets[group.begin]};
  }
  int64_t bytes;
};

static int64_t fixed_packed_bytes(const Problem& p, Range texts) { return PackedText(p, texts, Arena{0}).bytes; }

static void fixed_pack_group(const ForwardCall& call, Range texts, int64_t group, char* packed) {
  const Problem& p = call.problem;
  const PackedText to(p, texts, Arena{reinterpret_cast<uintptr_t>(packed)});
  const int64_t first = call.groups.bounds[group], last = call.groups.bounds[group + 1];
  const int64_t row0 = p.offsets[texts.begin], group_row0 = p.offsets[first];
  const Rests rests = to.rests_of(p, texts, {first, last});
  for (int64_t j = first; j < last; ++j)
    to.rounding[j - texts.begin] =
        round_rows(p.text, p.bf16, {p.offsets[j], p.offsets[j + 1]}, p.dim, true,
                   to.fixed + (p.offsets[j] - row0) * fixed_stride(p.dim), rests, p.offsets[j] - group_row0);
}
