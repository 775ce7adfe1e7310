// A text's words against the tokens of many items, one direction: the words stay in registers, each item is read once.
// Tokens are bfloat16, or int8 with a scale each, by AVX-512's products of two and of four numbers.
#include "interaction.h"

#if INTERACTION_HAS_AVX512_BF16
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512vnni,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512vnni,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl")
#endif

namespace interaction {
namespace {

constexpr int MOST_ROWS = 8;  // tokens at once: as many sums hide the latency of a product

struct Pairs {  // of bfloat16
  typedef __m512 sum;
  static sum add(sum to, __m512i words, __m512i token) {
    return _mm512_dpbf16_ps(to, reinterpret_cast<__m512bh>(words), reinterpret_cast<__m512bh>(token));
  }
  static __m512 value(sum own, sum) { return own; }
};

// Of int8. The instruction wants one side without a sign, so words have 128 added, which the last lane of each vector,
// a word of nothing but 128, takes off again.
struct Fours {
  typedef __m512i sum;
  static sum add(sum to, __m512i words, __m512i token) { return _mm512_dpbusd_epi32(to, words, token); }
  static __m512 value(sum own, sum first) {
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(own, _mm512_permutexvar_epi32(_mm512_set1_epi32(15), first)));
  }
};

// The largest products of ROWS tokens with 16 * VECTORS words, beside those of the item's tokens before.
template <class Numbers, int VECTORS, int ROWS>
void tile(const Search& s, const __m512i* words, int64_t row, __m512* best) {
  const char* tokens = s.tokens + row * s.token_bytes;
  typename Numbers::sum sums[ROWS][VECTORS] = {};
  for (int64_t c = 0; c < s.columns; ++c) {
    for (int r = 0; r < ROWS; ++r) {
      int32_t numbers;
      __builtin_memcpy(&numbers, tokens + r * s.token_bytes + 4 * c, 4);
      for (int v = 0; v < VECTORS; ++v)
        sums[r][v] = Numbers::add(sums[r][v], _mm512_loadu_si512(words + c * s.vectors + v), _mm512_set1_epi32(numbers));
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    const __m512 scale = _mm512_set1_ps(s.scales ? s.scales[(row + r) * s.scale_step] : 1);
    for (int v = 0; v < VECTORS; ++v) {
      const __m512 value = _mm512_mul_ps(Numbers::value(sums[r][v], sums[r][0]), scale);
      const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);  // which the maximum would pass over
      best[v] = _mm512_mask_mov_ps(_mm512_max_ps(value, best[v]), is_nan, value);
    }
  }
}

template <class Numbers, int VECTORS>
float item_score(const Search& s, int64_t first_vector, Range rows) {
  typedef void (*Tile)(const Search&, const __m512i*, int64_t, __m512*);
  static constexpr Tile tiles[MOST_ROWS] = {
      tile<Numbers, VECTORS, 1>, tile<Numbers, VECTORS, 2>, tile<Numbers, VECTORS, 3>, tile<Numbers, VECTORS, 4>,
      tile<Numbers, VECTORS, 5>, tile<Numbers, VECTORS, 6>, tile<Numbers, VECTORS, 7>, tile<Numbers, VECTORS, 8>};
  __m512 best[VECTORS];
  for (int v = 0; v < VECTORS; ++v) best[v] = _mm512_set1_ps(-__builtin_inff());
  const int64_t count = rows.end - rows.begin, parts = div_up(count, MOST_ROWS);
  for (int64_t p = 0; p < parts; ++p) {
    const Range some = part_of(count, parts, p);
    tiles[some.end - some.begin - 1](s, static_cast<const __m512i*>(s.words) + first_vector, rows.begin + some.begin, best);
  }
  float score = 0;
  for (int v = 0; v < VECTORS; ++v)
    score += _mm512_reduce_add_ps(_mm512_mul_ps(best[v], _mm512_loadu_ps(s.weights + 16 * (first_vector + v))));
  return score;
}

template <class Numbers>
void search_items(const Search& s, Range items) {
  for (int64_t item = items.begin; item < items.end; ++item) {
    const Range rows = {s.offsets[item], s.offsets[item + 1]};
    float score = 0;
    int64_t v = 0;
    for (; v + 2 <= s.vectors; v += 2) score += item_score<Numbers, 2>(s, v, rows);
    s.scores[item] = v < s.vectors ? score + item_score<Numbers, 1>(s, v, rows) : score;
  }
}

}  // namespace

void search(const Search& s, Range items) { s.int8 ? search_items<Fours>(s, items) : search_items<Pairs>(s, items); }

}  // namespace interaction

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
