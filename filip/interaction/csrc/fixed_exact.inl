// float32 products of chosen pairs of tokens, from the sliced copies.

struct Sliced {
  const float* rows;  // [slice][row][width]
  int64_t count;      // rows
};

// Of the candidates (rows of b, ascending), the first whose product with a row of `a` is the largest. Usually there are
// two; taken two at a time, they do not wait for each other's sums.
static int64_t settle(const Sliced& a, int64_t row_a, const Sliced& b, const uint16_t* candidates, int64_t count,
                      int64_t dim) {
  float best = 0;
  int64_t winner = -1;
  for (int64_t n = 0; n < count; n += 2) {
    const int64_t row[2] = {candidates[n], candidates[n + 1 < count ? n + 1 : n]};
    __m512 sum[2][2] = {};
    int64_t first = 0;
    for (; first + SLICE <= dim; first += SLICE) {  // whole slices, then what remains
      const float* x = a.rows + a.count * first + row_a * SLICE;
#pragma GCC unroll 4
      for (int v = 0; v < SLICE_VECTORS; ++v)
#pragma GCC unroll 2
        for (int c = 0; c < 2; ++c)
          sum[c][v % 2] = _mm512_fmadd_ps(
              _mm512_loadu_ps(x + v * LANES),
              _mm512_loadu_ps(b.rows + b.count * first + row[c] * SLICE + v * LANES), sum[c][v % 2]);
    }
    if (first < dim) {
      const int64_t width = round_up(dim - first, LANES);
      const float* x = a.rows + a.count * first + row_a * width;
      for (int64_t v = 0; v < width; v += LANES)
        for (int c = 0; c < 2; ++c)
          sum[c][0] = _mm512_fmadd_ps(_mm512_loadu_ps(x + v),
                                      _mm512_loadu_ps(b.rows + b.count * first + row[c] * width + v), sum[c][0]);
    }
    for (int c = 0; c < 2; ++c) {
      const float value = _mm512_reduce_add_ps(_mm512_add_ps(sum[c][0], sum[c][1]));
      if (winner < 0 || value > best) best = value, winner = row[c];
    }
  }
  return winner;
}

// For each of C partners: sum[c] += products of every own row with the foreign row that this partner chose for it,
// choice[c * stride + row]. One load of the own row serves all partners; the running sums stay in registers.
template <int V, int C>
static void add_products(const float* own, int64_t rows, const float* foreign, const uint16_t* choice, int64_t stride,
                         float* sums, int64_t sums_stride) {
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
      const float* row = foreign + static_cast<uint64_t>(choice[c * stride + r]) * WIDTH;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[c][v] = _mm512_fmadd_ps(x[v], _mm512_loadu_ps(row + v * LANES), sum[c][v]);
    }
  }
#pragma GCC unroll 6
  for (int c = 0; c < C; ++c) {
    __m512 total = _mm512_loadu_ps(sums + c * sums_stride);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) total = _mm512_add_ps(total, sum[c][v]);
    _mm512_storeu_ps(sums + c * sums_stride, total);
  }
}

typedef void (*AddProducts)(const float*, int64_t, const float*, const uint16_t*, int64_t, float*, int64_t);
#define FILIP_PARTNERS(V) \
  {add_products<V, 1>, add_products<V, 2>, add_products<V, 3>, add_products<V, 4>, add_products<V, 5>, \
   add_products<V, 6>}
static const AddProducts ADD_PRODUCTS[4][MAX_GROUP_TEXTS] = {FILIP_PARTNERS(1), FILIP_PARTNERS(2), FILIP_PARTNERS(3),
                                                             FILIP_PARTNERS(4)};
#undef FILIP_PARTNERS
