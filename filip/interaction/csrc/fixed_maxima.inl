// The maxima of one text's tile in either direction, each with its winner; with Settle, those in doubt are settled in
// float32.

// A similarity with its lowest bits replaced by the reversed index: one maximum finds value and lowest index.
static inline __m512i with_index(__m512i value, __m512i keep, __m512i index) {
  return _mm512_ternarylogic_epi32(value, keep, index, 0xea);  // (value & keep) | index
}

static inline int64_t add_candidates(int64_t* out, uint32_t which, int64_t first) {
  int64_t count = 0;
  for (; which; which &= which - 1) out[count++] = first + __builtin_ctz(which);
  return count;
}

// image-to-text: the best row of one text for each lane.
template <bool Settle>
static void vertical(FixedScratch& s, const Problem& p, int64_t image_row0, Range text, int64_t group_row0,
                     int32_t window, int bits, uint16_t* choice) {
  const int64_t length = text.end - text.begin, tokens = s.images * s.n1;
  const int32_t low = (1 << bits) - 1;
  const __m512i keep = _mm512_set1_epi32(~low), none = _mm512_set1_epi32(INT32_MIN);
  const __m512i first_row = _mm512_set1_epi32(static_cast<int32_t>(text.begin - group_row0));
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  int64_t unsure = 0;
  for (int64_t v = 0; v < s.vectors; ++v) {
    const int32_t* column = s.tile + v * LANES;
    __m512i best = none, second = none;
    for (int64_t r = 0; r < length; ++r) {
      const __m512i index = _mm512_set1_epi32(low - static_cast<int32_t>(r));
      const __m512i next = with_index(_mm512_loadu_si512(column + r * s.lanes), keep, index);
      if (Settle) second = _mm512_max_epi32(second, _mm512_min_epi32(best, next));
      best = _mm512_max_epi32(best, next);
    }
    // row = low - (best & low)
    const __m512i winner = _mm512_add_epi32(_mm512_andnot_si512(best, _mm512_set1_epi32(low)), first_row);
    _mm512_storeu_si512(s.best + v * LANES, best);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(choice + v * LANES), _mm512_cvtepi32_epi16(winner));
    if (!Settle) continue;
    const __mmask16 close = _mm512_cmpge_epi32_mask(second, _mm512_sub_epi32(best, _mm512_set1_epi32(window)));
    _mm512_mask_compressstoreu_epi32(s.unsure + unsure, close,
                                     _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int32_t>(v * LANES))));
    unsure += __builtin_popcount(close);
  }
  const __m512i down = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(static_cast<int32_t>(s.lanes)));
  for (int64_t n = 0; n < unsure && s.unsure[n] < tokens; ++n) {
    const int64_t lane = s.unsure[n];
    const __m512i least = _mm512_set1_epi32(s.best[lane] - window);
    int64_t count = 0;
    for (int64_t r0 = 0; r0 < length; r0 += LANES) {
      const __mmask16 valid = static_cast<__mmask16>((1u << at_most(length - r0, LANES)) - 1);
      const __m512i column = _mm512_mask_i32gather_epi32(none, valid, down, s.tile + r0 * s.lanes + lane, 4);
      count += add_candidates(s.candidates + count, _mm512_cmpge_epi32_mask(column, least), text.begin + r0);
    }
    ++s.lost;
    const int64_t row = settle(p.image, image_row0 + lane, p.text, s.candidates, count, p.dim);
    choice[lane] = static_cast<uint16_t>(row - group_row0);
    s.best[lane] = s.tile[(row - text.begin) * s.lanes + lane];
  }
}

static inline float sum_of(const int32_t* values, int64_t count, __m512i keep) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t n = 0; n < count; n += LANES) {
    const __mmask16 valid = count - n >= LANES ? 0xffff : static_cast<__mmask16>((1u << (count - n)) - 1);
    const __m512i some = _mm512_and_si512(_mm512_maskz_loadu_epi32(valid, values + n), keep);
    sum = _mm512_add_ps(sum, _mm512_cvtepi32_ps(some));
  }
  return _mm512_reduce_add_ps(sum);
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
// Returns the sum of the maxima.
template <bool Settle>
static float horizontal(FixedScratch& s, const Problem& p, int64_t image_row0, int64_t lane, Range text,
                        int32_t window, int bits, uint16_t* choice) {
  const int64_t length = text.end - text.begin;
  const int32_t low = (1 << bits) - 1;
  const __m512i keep = _mm512_set1_epi32(~low), none = _mm512_set1_epi32(INT32_MIN), step = _mm512_set1_epi32(LANES);
  const __m512i first_index = _mm512_sub_epi32(_mm512_set1_epi32(low), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
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
    sum += _mm512_mask_reduce_add_ps(valid, _mm512_cvtepi32_ps(_mm512_and_si512(top, keep)));
    if (!Settle) continue;
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
        candidates += add_candidates(s.candidates + candidates, close, image_row0 + lane + k);
      }
      ++s.lost;
      const int64_t chosen =
          settle(p.text, text.begin + r0 + r, p.image, s.candidates, candidates, p.dim) - image_row0;
      choice[r0 + r] = static_cast<uint16_t>(chosen);
      sum += static_cast<float>(row[chosen - lane]) - static_cast<float>((least[r] + window) & ~low);
    }
  }
  return sum;
}

