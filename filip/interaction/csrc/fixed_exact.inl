// float32 products of chosen pairs of tokens, from the sliced copies.

struct Sliced {
  const float* rows;  // [slice][row][width]
  int64_t count;      // rows
};

static float exact_product(const Sliced& a, int64_t row_a, const Sliced& b, int64_t row_b, int64_t dim) {
  __m512 sum = _mm512_setzero_ps();
  const int64_t slices = slice_count(dim, SLICE);
  for (int64_t s = 0; s < slices; ++s) {
    const Slice slice = slice_of(dim, SLICE, s);
    const float* x = a.rows + a.count * slice.first + row_a * slice.width;
    const float* y = b.rows + b.count * slice.first + row_b * slice.width;
    for (int64_t c = 0; c < slice.width; c += 16)
      sum = _mm512_fmadd_ps(_mm512_loadu_ps(x + c), _mm512_loadu_ps(y + c), sum);
  }
  return _mm512_reduce_add_ps(sum);
}

// For each of C partners: sum[c] += products of every own row with the row of partner c that it chose. One load of
// the own row serves all partners; the running sums stay in registers.
template <int V, int C>
static void add_products(const float* own, int64_t rows, const float* const* partner, const uint16_t* const* choice,
                         float* const* sums) {
  constexpr int WIDTH = V * LANES;
  __m512 sum[C][V];
#pragma GCC unroll 6
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[c][v] = _mm512_setzero_ps();
  for (int64_t r = 0; r < rows; ++r, own += WIDTH) {
    __m512 x[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) x[v] = _mm512_loadu_ps(own + v * LANES);
#pragma GCC unroll 6
    for (int c = 0; c < C; ++c) {
      const float* row = partner[c] + static_cast<int64_t>(choice[c][r]) * WIDTH;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[c][v] = _mm512_fmadd_ps(x[v], _mm512_loadu_ps(row + v * LANES), sum[c][v]);
    }
  }
#pragma GCC unroll 6
  for (int c = 0; c < C; ++c) {
    __m512 total = _mm512_loadu_ps(sums[c]);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) total = _mm512_add_ps(total, sum[c][v]);
    _mm512_storeu_ps(sums[c], total);
  }
}

typedef void (*AddProducts)(const float*, int64_t, const float* const*, const uint16_t* const*, float* const*);
#define FILIP_PARTNERS(V) \
  {add_products<V, 1>, add_products<V, 2>, add_products<V, 3>, add_products<V, 4>, add_products<V, 5>, \
   add_products<V, 6>}
static const AddProducts ADD_PRODUCTS[4][MAX_GROUP_TEXTS] = {FILIP_PARTNERS(1), FILIP_PARTNERS(2), FILIP_PARTNERS(3),
                                                             FILIP_PARTNERS(4)};
#undef FILIP_PARTNERS
