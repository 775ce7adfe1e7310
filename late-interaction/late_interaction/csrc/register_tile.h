// Sums of rows with weights by register tiles, of floats or of pairs of bfloat16: the product of both sides' tokens, and
// in the smooth maximum's gradients that of weights and tokens.
#pragma once

#include "vector.h"

namespace interaction {
namespace {

#if BFLOAT16_PAIRS
struct Pairs {
  typedef int32_t element;
  typedef vi vector;
  static vf add_product(vf sum, vi feature, vi token) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)feature, (__m512bh)token);
  }
};
#endif

// out[r][0 .. V LANES) (+)= sum over k of a[r row_step + k k_step] b[k][0 .. V LANES).
template <class Column, int R, int V, bool ADD>
static void weighted_rows(const float* a, int64_t row_step, int64_t k_step, const float* b, int64_t k, float* out,
                          int64_t out_stride) {
  vf sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = ADD ? load(out + r * out_stride + v * LANES) : vf{};
  for (; k > 0; --k, a += k_step, b += V * LANES) {
    typename Column::vector row[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) __builtin_memcpy(&row[v], b + v * LANES, VECTOR_BYTES);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      typename Column::element value;
      __builtin_memcpy(&value, a + r * row_step, sizeof value);
      const typename Column::vector weight = splat(value);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] = Column::add_product(sum[r][v], weight, row[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(out + r * out_stride + v * LANES, sum[r][v]);
}

typedef void (*WeightedRows)(const float*, int64_t, int64_t, const float*, int64_t, float*, int64_t);

#define INTERACTION_ROWS(C, R, ADD)                                                                          \
  {weighted_rows<C, R, 1, ADD>, weighted_rows<C, R, 2, ADD>, weighted_rows<C, R, 3, ADD>, \
   weighted_rows<C, R, 4, ADD>}
#define INTERACTION_ALL(C, ADD)                                                                     \
  {INTERACTION_ROWS(C, 1, ADD), INTERACTION_ROWS(C, 2, ADD), INTERACTION_ROWS(C, 3, ADD), INTERACTION_ROWS(C, 4, ADD), \
   INTERACTION_ROWS(C, 5, ADD), INTERACTION_ROWS(C, 6, ADD)}
static const WeightedRows WEIGHTED_ROWS[][2][6][4] = {
    {INTERACTION_ALL(Floats, false), INTERACTION_ALL(Floats, true)},
#if BFLOAT16_PAIRS
    {INTERACTION_ALL(Pairs, false), INTERACTION_ALL(Pairs, true)},
#endif
};
#undef INTERACTION_ALL
#undef INTERACTION_ROWS

// out[m][n] (+)= a[m][k] b[k][n], pairs of bfloat16 in both, by PyTorch. Each shape costs it a compilation, so there are few.
static void multiply_pairs(const Problem& p, const float* a, int64_t a_stride, const float* b, int64_t m, int64_t n,
                           int64_t k, float* out, int64_t out_stride, bool add) {
  constexpr int64_t ROWS = 32;
  for (int64_t r = 0; r < m; r += ROWS)
    p.multiply(at_most(ROWS, m - r), n, 2 * k, 2 * a_stride, n, out_stride, add, a + r * a_stride, b,
               out + r * out_stride, true);
}

}  // namespace
}  // namespace interaction
