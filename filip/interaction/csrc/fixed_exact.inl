// From fixed point back to float32, for float32 tokens: which of several close maxima is the largest, and what the values are off by.

// Of the candidates (rows of b, ascending), the first whose float32 product with row_a of `a` is the largest. Usually
// there are two; taken two at a time, they do not wait for each other's sums.
static int64_t settle(const void* a, int64_t row_a, const void* b, const int64_t* candidates, int64_t count,
                      int64_t dim) {
  float best = 0;
  int64_t winner = -1;
  for (int64_t n = 0; n < count; n += 2) {
    const int64_t row[2] = {candidates[n], candidates[n + 1 < count ? n + 1 : n]};
    __m512 sum[2][2] = {};
    for (int64_t c = 0; c < dim; c += 32)
#pragma GCC unroll 2
      for (int64_t half = 0; half < 2; ++half) {
        const __m512 x = load_columns(a, false, dim, row_a, c + 16 * half);
#pragma GCC unroll 2
        for (int k = 0; k < 2; ++k)
          sum[k][half] = _mm512_fmadd_ps(x, load_columns(b, false, dim, row[k], c + 16 * half), sum[k][half]);
      }
    for (int k = 0; k < 2; ++k) {
      const float value = _mm512_reduce_add_ps(_mm512_add_ps(sum[k][0], sum[k][1]));
      if (winner < 0 || value > best) best = value, winner = row[k];
    }
  }
  return winner;
}

// For each of C partners: sums[c] += products of every own row with the partner row that this partner chose for it,
// choice[c * stride + row]. One load of the own row serves all partners; the running sums stay in registers.
// vpdpbusd multiplies unsigned by signed numbers, so 128 is added to the own ones: the caller takes 128 times the
// chosen rows' sums out again.
template <int V, int C>
static void add_products(const int8_t* own, int64_t rows, const int8_t* partner, const uint16_t* choice,
                         int64_t stride, float* sums, int64_t sums_stride) {
  constexpr int WIDTH = V * 64;
  const __m512i offset = _mm512_set1_epi8(static_cast<char>(0x80));
  __m512i sum[C][V];
#pragma GCC unroll 6
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[c][v] = _mm512_setzero_si512();
  for (int64_t r = 0; r < rows; ++r, own += WIDTH) {
    __m512i x[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) x[v] = _mm512_xor_si512(_mm512_loadu_si512(own + v * 64), offset);
#pragma GCC unroll 6
    for (int c = 0; c < C; ++c) {
      const int8_t* row = partner + static_cast<uint64_t>(choice[c * stride + r]) * WIDTH;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v)  // as an intrinsic, GCC 12 stores every sum in every round
        asm("vpdpbusd %2, %1, %0" : "+v"(sum[c][v]) : "v"(x[v]), "m"(*reinterpret_cast<const __m512i_u*>(row + v * 64)));
    }
  }
#pragma GCC unroll 6
  for (int c = 0; c < C; ++c) {
    __m512 total = _mm512_loadu_ps(sums + c * sums_stride);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) total = _mm512_add_ps(total, _mm512_cvtepi32_ps(sum[c][v]));
    _mm512_storeu_ps(sums + c * sums_stride, total);
  }
}

typedef void (*AddProducts)(const int8_t*, int64_t, const int8_t*, const uint16_t*, int64_t, float*, int64_t);
#define FILIP_PARTNERS(V) \
  {add_products<V, 1>, add_products<V, 2>, add_products<V, 3>, add_products<V, 4>, add_products<V, 5>, \
   add_products<V, 6>}
static const AddProducts ADD_PRODUCTS[4][MAX_GROUP_TEXTS] = {FILIP_PARTNERS(1), FILIP_PARTNERS(2), FILIP_PARTNERS(3),
                                                             FILIP_PARTNERS(4)};
#undef FILIP_PARTNERS

// What rounding added to a sum of maxima: both halves, from 16 partial sums each (`halves` apart), less 128 times the
// sums of the chosen rows of `partner`, in their units.
static inline float rests_total(const float* partial, int64_t halves, const Rests& partner, const uint16_t* choice,
                                int64_t count, float text_coarse, float image_coarse) {
  float total = 0;
  for (int64_t half = 0; half < 2; ++half) {
    const int32_t* sums = partner.sums + half * partner.count;
    int64_t chosen = 0;
    for (int64_t n = 0; n < count; ++n) chosen += sums[choice[n]];
    const float sum = _mm512_reduce_add_ps(_mm512_loadu_ps(partial + half * halves));
    total += (half == 0 ? text_coarse : image_coarse) * (sum - 128 * static_cast<float>(chosen));
  }
  return REST_UNIT * total;
}
