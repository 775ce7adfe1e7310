// Sums of the backward in 16-bit fixed point: twice as many numbers in a vector, for bfloat16 tokens only.
//
// A few chunks of the source are summed so, then widened and added to the float32 sums. Their weights are scaled, for
// each destination item, by the largest sum of absolute weights that one of its rows can get from them (the winners are
// counted for that), so nothing overflows. On tokens that differ from one another this loses a third of what rounding
// the result to bfloat16 loses. Where the terms all but cancel, as with collapsed features, it would be far more: so
// the expected loss of every item is added up beside its sums, and an item that lost too much is summed again in
// float32. (The expectation takes terms to be rounded independently. Those of nearly equal tokens are not: there it
// can lose three times as much as bfloat16's own rounding: bench/bfloat16.py.)

constexpr float NOISE = 1e-3f;          // of an item, relative root mean square; bfloat16 itself rounds away 1.7e-3
constexpr double LONGER_RUNS = 0.3;     // what they may add to the mean square of an item's loss, relative
constexpr float ROUNDING = 1.1f / 12;   // mean square of what a term loses, in units: its product, and its weight

// The table of weight bounds: a row for each run, in which the bounds of all destination items are followed by the largest
// number of what was copied at a time (in the row of its first run; 0: not known yet).
template <class Index>
static int64_t bounds_stride(const Side<Index>& side) {
  return side.items(true) + 1;
}

static float largest_number(const uint16_t* numbers, int64_t count) {
  int16_t largest = 0;  // the bits of positive floating point numbers are in their order
  for (int64_t n = 0; n < count; ++n) {
    const int16_t bits = static_cast<int16_t>(numbers[n] & 0x7fff);
    largest = bits > largest ? bits : largest;
  }
  return bf16_to_float(static_cast<uint16_t>(largest));
}

// Rows of bfloat16 in 16-bit fixed point. Returns what 2^15 stands for; infinity if a number is not finite, or all are
// tiny. The largest number is looked for by the first unit that comes here (or by a few at once, with one result).
template <class Index>
static float copy_source(const Side<Index>& side, Range rows, Slice slice, int64_t run, int16_t* out) {
  const int64_t dim = side.call.problem.dim;
  const uint16_t* in = static_cast<const uint16_t*>(side.source()) + rows.begin * dim + slice.first;
  const int64_t count = rows.end - rows.begin;
  float* known = side.call.weight_bounds + run * bounds_stride(side) + side.items(true);
  float most;
  __atomic_load(known, &most, __ATOMIC_RELAXED);
  if (most == 0) {
    most = largest_number(in - slice.first, count * dim);
    __atomic_store(known, &most, __ATOMIC_RELAXED);
  }
  if (!(most < __builtin_inff())) return __builtin_inff();
  if (most > 0 && most < 1e-30f) return __builtin_inff();
  const float factor = most > 0 ? 32767 / most : 1;
  for (int64_t row = 0; row < count; ++row, in += dim, out += slice.width) {
    int64_t c = 0;
    for (; c + LANES <= slice.valid; c += LANES) {
      const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + c));
      const __m512 value = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
      const __m512i fixed = _mm512_cvtps_epi32(_mm512_mul_ps(value, _mm512_set1_ps(factor)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + c), _mm512_cvtepi32_epi16(fixed));
    }
    for (; c < slice.valid; ++c) out[c] = static_cast<int16_t>(__builtin_rintf(bf16_to_float(in[c]) * factor));
    for (; c < slice.width; ++c) out[c] = 0;
  }
  return 32768 / factor;
}

// The largest sum of absolute weights that a row of destination item d can meet among these source items; infinity if
// fixed point will not do.
template <class Index>
static float weight_bound(const Side<Index>& side, int64_t d, Range sources, float* all_hits) {
  constexpr int64_t WAYS = 4;  // tables of hits: a row that wins twice in succession does not wait for itself
  const int64_t rows = side.row(true, d + 1) - side.row(true, d);
  float each = 0, total = 0, most = 0;
  for (int64_t r = 0; r < WAYS * rows; ++r) all_hits[r] = 0;
  for (int64_t s = sources.begin; s < sources.end; ++s) {
    if (side.comes(true)) each += __builtin_fabsf(side.weight(d, s, true));
    if (!side.comes(false)) continue;
    const float weight = __builtin_fabsf(side.weight(d, s, false));
    const Index* winner = side.winners(d, s, false);
    const int64_t count = side.row(false, s + 1) - side.row(false, s);
    int64_t r = 0;
    for (; r + WAYS <= count; r += WAYS)
#pragma GCC unroll 4
      for (int64_t way = 0; way < WAYS; ++way) all_hits[way * rows + winner[r + way]] += weight;
    for (; r < count; ++r) all_hits[winner[r]] += weight;
    total += weight * static_cast<float>(count);
  }
  for (int64_t r = 0; r < rows; ++r) {
    float hits = 0;
    for (int64_t way = 0; way < WAYS; ++way) hits += all_hits[way * rows + r];
    most = hits > most ? hits : most;
  }
  if (each + total == 0) return 0;
  return each + total < 1e30f && each + most > 1e-30f ? each + most : __builtin_inff();
}

// Terms that the rows of a destination item meet, all together and each at most.
template <class Index>
static int64_t terms_from(const Side<Index>& side, Range sources) {
  return side.row(false, sources.end) - side.row(false, sources.begin) + sources.end - sources.begin;
}

// What weights are multiplied by for sums that cannot overflow; rounding may add half a unit to each of them. 0: cannot
// be had.
static float weight_factor(float bound, int64_t terms) {
  return terms < 16384 ? static_cast<float>(32767 - terms) / bound : 0;
}

// Calls visit(bounds, chunks, first run) for all that is copied at a time, see next_chunks. Returns the number of runs.
template <class Index, class Visit>
static int64_t for_each_store(const Side<Index>& side, const Visit& visit) {
  const int64_t vectors = widest_slice_vectors(side.call.problem);
  int64_t bounds[MAX_CHUNKS + 1], run = 0;
  for (int64_t first = 0, chunks; first < side.items(false); first = bounds[chunks]) {
    chunks = next_chunks(side, first, vectors, bounds);
    visit(bounds, chunks, run);
    run += div_up(chunks, chunks_of_run(side.call.problem));
  }
  return run;
}

template <class Index>
static int64_t count_runs(const Side<Index>& side) {
  return for_each_store(side, [](const int64_t*, int64_t, int64_t) {});
}

// The bounds of an item are negative where its runs are made one: where this adds
// little to what rounding costs the item elsewhere. (Of a soft-max, most weights are tiny.)
template <class Index>
static void find_weight_bounds(const BackwardCall& call, bool image, Range items, char* scratch) {
  const Side<Index> side{call, image, 1 / static_cast<float>(call.problem.patches)};
  const int64_t length = chunks_of_run(call.problem), stride = bounds_stride(side);
  const auto loss = [](float bound, int64_t terms) {
    const double unit = 1 / static_cast<double>(weight_factor(bound, terms));
    return static_cast<double>(terms) * unit * unit;
  };
  Arena arena{reinterpret_cast<uintptr_t>(scratch)};
  double* lost = arena.take<double>(items.end - items.begin);
  float* hits = arena.take<float>(0);
  for (int64_t d = items.begin; d < items.end; ++d) lost[d - items.begin] = 0;
  int64_t stores = 0;
  for_each_store(side, [&](const int64_t* bounds, int64_t chunks, int64_t run) {
    ++stores;
    for (int64_t c = 0; c < chunks; c += length, ++run) {
      const Range sources{bounds[c], bounds[at_most(c + length, chunks)]};
      for (int64_t d = items.begin; d < items.end; ++d) {
        const float bound = call.weight_bounds[run * stride + d] = weight_bound(side, d, sources, hits);
        lost[d - items.begin] += loss(bound, terms_from(side, sources));
      }
    }
  });
  for_each_store(side, [&](const int64_t* bounds, int64_t chunks, int64_t first_run) {
    const Range sources{bounds[0], bounds[chunks]}, runs{first_run, first_run + div_up(chunks, length)};
    for (int64_t d = items.begin; d < items.end; ++d) {
      float bound = 0;
      for (int64_t run = runs.begin; run < runs.end; ++run) bound += call.weight_bounds[run * stride + d];
      const double added = loss(bound, terms_from(side, sources)) * static_cast<double>(stores);
      if (added > LONGER_RUNS * lost[d - items.begin]) continue;
      for (int64_t run = runs.begin; run < runs.end; ++run) call.weight_bounds[run * stride + d] *= -1;
    }
  });
}

// One group of destination items and the copied chunks, see the head of this file.
template <int V, class Index>
static void meet_all(const Side<Index>& side, Range group, const Copied<int16_t>& source, Partial<int16_t> part,
                     float* sum) {
  constexpr int STEP = lanes_of<int16_t>(), WIDTH = V * STEP;
  const int64_t row0 = side.row(true, group.begin), count = (side.row(true, group.end) - row0) * WIDTH;
  const int64_t* bounds = source.bounds;
  const int64_t length = chunks_of_run(side.call.problem), stride = bounds_stride(side);
  const float* weight_bounds = side.call.weight_bounds + source.first_run * stride;
  for (int64_t c = 0; c < count; c += STEP) store(part.rows + c, vs{});
  for (int64_t first = 0; first < source.chunks; first += length) {
    const int64_t last = at_most(first + length, source.chunks);
    Range summed[MAX_ITEMS];  // chunks that an item sums before widening: a run, or all
    float factor[MAX_ITEMS];
    for (int64_t d = group.begin; d < group.end; ++d) {
      const bool in_one = __builtin_signbit(weight_bounds[d]);
      const Range chunks = in_one ? Range{0, source.chunks} : Range{first, last};
      float bound = 0;
      for (int64_t c = chunks.begin; c < chunks.end; c += length)
        bound += __builtin_fabsf(weight_bounds[c / length * stride + d]);
      summed[d - group.begin] = chunks;
      factor[d - group.begin] = weight_factor(bound, terms_from(side, {bounds[chunks.begin], bounds[chunks.end]}));
    }
    for (int64_t c = first; c < last; ++c) {
      if (c + 1 < source.chunks) prefetch_winners(side, group, {bounds[c + 1], bounds[c + 2]});
      const int64_t from = side.row(false, bounds[c]) - side.row(false, bounds[0]);
      meet<V>(side, group, {bounds[c], bounds[c + 1]}, part.rows, source.rows + from * WIDTH, factor);
    }
    for (int64_t d = group.begin; d < group.end; ++d) {
      const Range chunks = summed[d - group.begin];
      if (last < chunks.end) continue;
      const int64_t begin = side.row(true, d) - row0, end = side.row(true, d + 1) - row0;
      const int64_t sources = bounds[chunks.end] - bounds[chunks.begin];
      const int64_t scattered = side.row(false, bounds[chunks.end]) - side.row(false, bounds[chunks.begin]);
      const float terms = static_cast<float>(sources) +
                          static_cast<float>(scattered) / static_cast<float>(end - begin);  // of a row, on average
      const float unit = source.unit / factor[d - group.begin];
      part.noise[d - group.begin] += static_cast<double>(ROUNDING * terms) * unit * unit;
      if (__builtin_isinf(factor[d - group.begin])) continue;  // of weights that are all zero: nothing was summed
      const vf units = splat(unit);
      for (int64_t c = begin * WIDTH; c < end * WIDTH; c += STEP) {
        const __m512i both = reinterpret_cast<__m512i>(load(part.rows + c));
        const __m512i low = _mm512_cvtepi16_epi32(_mm512_castsi512_si256(both));
        const __m512i high = _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(both, 1));
        store(part.rows + c, vs{});  // for the next run
        store(sum + c, load(sum + c) + units * reinterpret_cast<vf>(_mm512_cvtepi32_ps(low)));
        store(sum + c + LANES, load(sum + c + LANES) + units * reinterpret_cast<vf>(_mm512_cvtepi32_ps(high)));
      }
    }
  }
}

template <int V, class Real, class Index>
static void slice_gradient(const Side<Index>& side, Range items, Slice slice, char* scratch);

// Items that rounding has harmed more than bfloat16 will, in float32 and over what was written for them. The scratch
// memory of `sum` is used again.
template <int V, class Index>
static void sum_coarse_items_again(const Side<Index>& side, Range items, Slice slice, double* noise, const float* sum,
                                   char* scratch) {
  const int64_t row0 = side.row(true, items.begin), count = items.end - items.begin;
  bool any = false;
  for (int64_t d = 0; d < count; ++d) {
    const int64_t begin = side.row(true, items.begin + d) - row0, end = side.row(true, items.begin + d + 1) - row0;
    double squares = 0, partial[LANES] = {};
    for (int64_t c = begin * slice.width; c < end * slice.width; c += LANES)
      for (int l = 0; l < LANES; ++l) partial[l] += static_cast<double>(sum[c + l]) * sum[c + l];
    for (int l = 0; l < LANES; ++l) squares += partial[l];
    const bool fine = noise[d] * static_cast<double>((end - begin) * slice.valid) <= double{NOISE} * NOISE * squares;
    noise[d] = fine ? 0 : 1;
    any |= !fine;
  }
  if (!any) return;
  int64_t run = 0;
  for (int64_t d = 0; d < count; d += at_least(run, 1)) {
    for (run = 0; d + run < count && noise[d + run] != 0; ++run) {}
    if (run == 0) continue;
    constexpr int64_t WIDTH = V * LANES;
    for (int64_t first = 0; first < slice.valid; first += WIDTH) {
      const int64_t valid = at_most(WIDTH, slice.valid - first);
      slice_gradient<V, float>(side, {items.begin + d, items.begin + d + run}, {slice.first + first, valid, WIDTH},
                               scratch);
    }
  }
}
