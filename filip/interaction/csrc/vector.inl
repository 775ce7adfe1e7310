// One vector type for every instruction set: GCC's and clang's vector extension at VECTOR_BYTES, which the
// including file defines together with its tile sizes:
//   STRIP_VECTORS and TILE_ROWS  the register tile of the product: vectors of image tokens x text rows
//   SLICE_VECTORS                columns of one backward slice, in vectors
//   FIXED_SUMS                   (optional, AVX-512) 16-bit fixed point for the backward of bfloat16 tokens

typedef float vf __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t vi __attribute__((vector_size(VECTOR_BYTES)));
typedef float vf_unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));

constexpr int LANES = VECTOR_BYTES / 4;

static inline vf load(const float* p) { return *reinterpret_cast<const vf_unaligned*>(p); }
static inline void store(float* p, vf v) { *reinterpret_cast<vf_unaligned*>(p) = v; }
static inline vf splat(float s) { return s - vf{}; }  // x - 0 is x for every x, so this is a bare broadcast
static inline vi splat(int32_t s) { return s - vi{}; }
static inline vi lane_numbers() {
  vi lanes;
  for (int l = 0; l < LANES; ++l) lanes[l] = l;
  return lanes;
}

#ifdef FIXED_SUMS
// Twice as many numbers, in 16-bit fixed point: n stands for n / 2^15.
typedef int16_t vs __attribute__((vector_size(VECTOR_BYTES)));
typedef int16_t vs_unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(2), may_alias));
static inline vs load(const int16_t* p) { return *reinterpret_cast<const vs_unaligned*>(p); }
static inline void store(int16_t* p, vs v) { *reinterpret_cast<vs_unaligned*>(p) = v; }
static inline vs splat(int16_t s) { return s - vs{}; }
static inline vs add_product(vs sum, vs a, vs b) {  // rounded to nearest
  return sum + reinterpret_cast<vs>(_mm512_mulhrs_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}
#endif
static inline vf add_product(vf sum, vf a, vf b) { return sum + a * b; }

// Numbers of type Real in a vector.
template <class Real>
constexpr int lanes_of() {
  return VECTOR_BYTES / static_cast<int>(sizeof(Real));
}

// out[row][0 .. width) = columns [first, first + valid) of the given rows, zeros beyond.
static void copy_columns(const void* rows, bool bf16, Range range, int64_t dim, int64_t first, int64_t valid,
                         int64_t width, float* out) {
  for (int64_t row = range.begin; row < range.end; ++row, out += width) {
    if (bf16) {
      const uint16_t* in = static_cast<const uint16_t*>(rows) + row * dim + first;
      for (int64_t c = 0; c < valid; ++c) out[c] = bf16_to_float(in[c]);
    } else {
      const float* in = static_cast<const float*>(rows) + row * dim + first;
      int64_t c = 0;
      for (; c + LANES <= valid; c += LANES) store(out + c, load(in + c));
      for (; c < valid; ++c) out[c] = in[c];
    }
    for (int64_t c = valid; c < width; ++c) out[c] = 0;
  }
}

// The dim columns cut into slices of `wanted` (a multiple of `lanes`); the last may be narrower, and hold fewer
// valid columns than its width.
struct Slice {
  int64_t first, valid, width;
};

static inline int64_t slice_count(int64_t dim, int64_t wanted) { return div_up(dim, wanted); }

static inline Slice slice_of(int64_t dim, int64_t wanted, int64_t lanes, int64_t s) {
  const int64_t first = s * wanted, valid = at_most(wanted, dim - first);
  return {first, valid, (valid + lanes - 1) & -lanes};
}
