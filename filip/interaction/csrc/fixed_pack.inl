// Tokens rounded to int16, and their float32 copy in slices of 64 columns.

constexpr int64_t SLICE = SLICE_VECTORS * LANES;
constexpr float LONGEST = 45000.0f;    // length of a token in fixed point: (45000 + rounding)^2 < 2^31
constexpr float LARGEST = 32767.0f;    // of a single number

struct Rounding {
  float scale;  // fixed point = token * scale
  float error;  // the longest difference vector that rounding left, in fixed-point units
};

static inline int64_t fixed_stride(int64_t dim) { return round_up(dim, 32); }      // int16 per row
static inline int64_t sliced_width(int64_t dim) { return round_up(dim, LANES); }   // floats per row, all slices

// rows [range) into out[row][fixed_stride], scaled together.
static Rounding round_rows(const void* rows, bool bf16, Range range, int64_t dim, int16_t* out) {
  const int64_t stride = fixed_stride(dim);
  // One row at a time as float: a bfloat16 row has to be widened, and both loops below want no tail.
  float longest = 0, all = 0;
  __m512 largest = _mm512_setzero_ps();
  const auto load_row = [&](int64_t row, int64_t c) -> __m512 {
    const __mmask16 valid = dim - c >= 16 ? 0xffff : static_cast<__mmask16>((1u << (dim - c)) - 1);
    if (!bf16) return _mm512_maskz_loadu_ps(valid, static_cast<const float*>(rows) + row * dim + c);
    const __m256i half = _mm256_maskz_loadu_epi16(valid, static_cast<const uint16_t*>(rows) + row * dim + c);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  };
  for (int64_t row = range.begin; row < range.end; ++row) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t c = 0; c < dim; c += 16) {
      const __m512 x = load_row(row, c);
      sum = _mm512_fmadd_ps(x, x, sum);
      largest = _mm512_max_ps(largest, _mm512_abs_ps(x));
    }
    const float length = _mm512_reduce_add_ps(sum);
    longest = length > longest ? length : longest;
    all += length;
  }
  if (!(all < __builtin_inff())) {  // not numbers, or too large to be squared: everything in doubt, values not numbers
    __builtin_memset(out, 0, static_cast<size_t>((range.end - range.begin) * stride) * sizeof(int16_t));
    return {__builtin_nanf(""), 0};
  }
  // Tokens so short that the scale would overflow are all zero in fixed point, hence all in doubt, hence exact.
  const float length = __builtin_sqrtf(longest) * (1 + 1e-6f), most = _mm512_reduce_max_ps(largest);
  const float by_length = LONGEST / (length > 1e-30f ? length : 1e-30f);
  const float by_number = LARGEST / (most > 1e-30f ? most : 1e-30f);
  const float scale = by_length < by_number ? by_length : by_number;
  float error = 0;
  for (int64_t row = range.begin; row < range.end; ++row, out += stride) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t c = 0; c < stride; c += 16) {
      const __m512 x = c < dim ? _mm512_mul_ps(load_row(row, c), _mm512_set1_ps(scale)) : _mm512_setzero_ps();
      const __m512i fixed = _mm512_cvtps_epi32(x);
      const __m512 off = _mm512_sub_ps(_mm512_cvtepi32_ps(fixed), x);
      sum = _mm512_fmadd_ps(off, off, sum);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + c), _mm512_cvtsepi32_epi16(fixed));
    }
    const float off = _mm512_reduce_add_ps(sum);
    error = off > error ? off : error;
  }
  // Multiplying by the scale rounds too, by at most 2^-24 of a component: 0.003 of the length LONGEST.
  return {scale, __builtin_sqrtf(error) * (1 + 1e-5f) + 0.004f};
}

// Twice the bound above, plus what the lowest `bits` of a similarity lose to the index stored there.
static inline int32_t doubt(float error_a, float error_b, int bits) {
  const float bound = error_a * (LONGEST + 1 + error_b) + (LONGEST + 1) * error_b;
  return static_cast<int32_t>(2 * bound * (1 + 1e-5f)) + (1 << bits) + 1;
}

// out[slice][row][width of slice]
static void slice_rows(const void* rows, bool bf16, Range range, int64_t dim, float* out) {
  const int64_t count = range.end - range.begin;
  for (int64_t s = 0; s < slice_count(dim, SLICE); ++s) {
    const Slice slice = slice_of(dim, SLICE, s);
    copy_columns(rows, bf16, range, dim, slice.first, slice.valid, slice.width, out + count * slice.first);
  }
}

// The text of a range of groups as all threads read it.
struct PackedText {
  int16_t* fixed;      // [rows][fixed_stride]
  float* slices;       // per group: [slice][row of the group][width]
  Rounding* rounding;  // [texts]
  PackedText(const Problem& p, Range texts, Arena arena) {
    const int64_t rows = p.offsets[texts.end] - p.offsets[texts.begin];
    fixed = arena.take<int16_t>(rows * fixed_stride(p.dim));
    slices = arena.take<float>(rows * sliced_width(p.dim));
    rounding = arena.take<Rounding>(texts.end - texts.begin);
    bytes = static_cast<int64_t>(arena.next);
  }
  int64_t bytes;
};

static int64_t fixed_packed_bytes(const Problem& p, Range texts) { return PackedText(p, texts, Arena{0}).bytes; }

static void fixed_pack_group(const ForwardCall& call, Range texts, int64_t group, char* packed) {
  const Problem& p = call.problem;
  const PackedText to(p, texts, Arena{reinterpret_cast<uintptr_t>(packed)});
  const int64_t first = call.groups.bounds[group], last = call.groups.bounds[group + 1];
  const int64_t row0 = p.offsets[texts.begin];
  for (int64_t j = first; j < last; ++j)
    to.rounding[j - texts.begin] = round_rows(p.text, p.bf16, {p.offsets[j], p.offsets[j + 1]}, p.dim,
                                              to.fixed + (p.offsets[j] - row0) * fixed_stride(p.dim));
  slice_rows(p.text, p.bf16, {p.offsets[first], p.offsets[last]}, p.dim,
             to.slices + (p.offsets[first] - row0) * sliced_width(p.dim));
}
