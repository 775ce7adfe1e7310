// Backward: gradients from the arg-max maps alone, without a second product.
//
//   dX[i, k] = sum over j of                         gI[i, j] / n1    * Y[j, winner of (i, k)]
//            + sum over j and its r with winner k of  gT[i, j] / n2_j  * Y[j, r]
//
// and dY with the roles exchanged. Call the side that receives the gradient the destination. The first sum has
// one term per (destination row, source item): a gather, with destination rows in registers. The second has one term
// per source row: a scatter into destination rows.
//
// What decides the speed is that all rows touched lie in the first-level cache. So the columns are cut into slices
// of SLICE_VECTORS vectors; destinations are summed in a contiguous buffer of such slices and sources copied into one
// (rows 1 KB apart would fight for a few cache sets); and a group of destination items meets a chunk of source items
// such that both fit. Every destination row meets its terms in the order of the source: the same bits whatever the
// number of threads. Everything is summed in float32.
#pragma once

#include "vector.h"

namespace interaction {
namespace {

// Rows of either side that meet at a time (two images of 49 tokens against four captions, of 48 KB), and source rows
// copied at a time, a part of the second-level cache.
constexpr int64_t IMAGE_BYTES = 26 * 1024, TEXT_BYTES = 20 * 1024, STORE_BYTES = 200 * 1024;
constexpr int MAX_ITEMS = 6;     // images or texts among them: the widest loop below

// One direction of the backward: images as destination and texts as source, or the reverse.
template <class Index>
struct Side {
  const Call& call;
  bool image;  // is the destination

  int64_t items(bool destination) const {
    return destination == image ? call.problem.images : call.problem.texts;
  }
  int64_t row(bool destination, int64_t item) const {  // the first row of an item
    return (destination == image ? call.problem.image_offsets : call.problem.text_offsets)[item];
  }
  const void* source() const { return image ? call.problem.text : call.problem.image; }
  // Winners among the rows of `to`, one for each row of `from`.
  const Index* winners(int64_t destination, int64_t source, bool from_destination) const {
    const Problem& p = call.problem;
    const int64_t i = image ? destination : source, j = image ? source : destination;
    if (from_destination != image)
      return static_cast<const Index*>(call.maps.t2i) + i * p.text_offsets[p.texts] + p.text_offsets[j];
    const int64_t row = p.image_offsets[i], n1 = p.image_offsets[i + 1] - row;
    return static_cast<const Index*>(call.maps.i2t) + row * p.texts + j * n1;
  }
  float weight(int64_t destination, int64_t source, bool from_destination) const {
    const Problem& p = call.problem;
    const int64_t i = image ? destination : source, j = image ? source : destination;
    return from_destination == image ? call.grad_i2t[i * p.texts + j] * call.inverse_image[i]
                                     : call.grad_t2i[i * p.texts + j] * call.inverse_text[j];
  }
};

// What a few items of one side mean for one item of the other.
template <class Index>
struct Terms {
  int64_t count = 0;
  float weight[MAX_ITEMS];
  const Index* winner[MAX_ITEMS];
  const float* source[MAX_ITEMS];  // gather: the first row of each source item
  float* destination[MAX_ITEMS];   // scatter: the first row of each destination item
};

// Winners of the rows from r on, eight bytes at a time with the first in the lowest bits: loaded one by one they would
// compete with the rows for the load ports, a fifth of the time.
template <class Index>
constexpr int64_t winners_of_word() {
  return static_cast<int64_t>(sizeof(uint64_t) / sizeof(Index));
}

template <class Index>
__attribute__((noinline)) static uint64_t few_winners(const Index* winner, int64_t r, int64_t rows) {
  uint64_t word = 0;
  for (int64_t n = rows; n-- > r;) word = word << (8 * sizeof(Index)) | static_cast<uint64_t>(winner[n]);
  return word;
}

template <class Index>
static inline uint64_t winners_from(const Index* winner, int64_t r, int64_t rows) {
  if (rows < winners_of_word<Index>()) return few_winners(winner, r, rows);
  const int64_t from = at_most(r, rows - winners_of_word<Index>());  // nothing beyond the last row is read
  uint64_t word;
  __builtin_memcpy(&word, winner + from, sizeof(word));
  return word >> (8 * sizeof(Index) * static_cast<uint64_t>(r - from));
}

template <class Index>
static inline int64_t next_winner(uint64_t& word) {
  constexpr int BITS = 8 * sizeof(Index);
  const uint64_t winner = word & ((uint64_t{1} << BITS) - 1);
  word >>= BITS;
  return static_cast<int64_t>(winner);
}

// Every row of one destination item += weight * the row of each of N source items that won it.
template <int V, int N, class Index>
static void gather(float* destination, int64_t rows, const Terms<Index>& terms) {
  constexpr int WIDTH = V * LANES;
  vf weight[N];
  const Index* winner[N];  // copies, which the compiler need not fear to have changed
  const float* source[N];
#pragma GCC unroll 6
  for (int n = 0; n < N; ++n) {
    weight[n] = splat(terms.weight[n]);
    winner[n] = terms.winner[n];
    source[n] = terms.source[n];
  }
  for (int64_t r = 0; r < rows;) {
    uint64_t word[N];
#pragma GCC unroll 6
    for (int n = 0; n < N; ++n) word[n] = winners_from(winner[n], r, rows);
    for (const int64_t end = at_most(rows, r + winners_of_word<Index>()); r < end; ++r, destination += WIDTH) {
      vf sum[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[v] = load(destination + v * LANES);
#pragma GCC unroll 6
      for (int n = 0; n < N; ++n) {
        const float* row = source[n] + next_winner<Index>(word[n]) * WIDTH;
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[v] = sum[v] + weight[n] * load(row + v * LANES);
      }
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) store(destination + v * LANES, sum[v]);
    }
  }
}

// Each row of one source item is added, weighted, to the row that it won in each of N destination items. A row that
// wins twice in succession is not read back right after it was written, since other items lie between.
template <int V, int N, class Index>
static void scatter(const float* source, int64_t rows, const Terms<Index>& terms) {
  constexpr int WIDTH = V * LANES;
  vf weight[N];
  const Index* winner[N];
  float* destination[N];
#pragma GCC unroll 6
  for (int n = 0; n < N; ++n) {
    weight[n] = splat(terms.weight[n]);
    winner[n] = terms.winner[n];
    destination[n] = terms.destination[n];
  }
  for (int64_t r = 0; r < rows;) {
    uint64_t word[N];
#pragma GCC unroll 6
    for (int n = 0; n < N; ++n) word[n] = winners_from(winner[n], r, rows);
    for (const int64_t end = at_most(rows, r + winners_of_word<Index>()); r < end; ++r, source += WIDTH) {
      vf x[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) x[v] = load(source + v * LANES);
#pragma GCC unroll 6
      for (int n = 0; n < N; ++n) {
        float* to = destination[n] + next_winner<Index>(word[n]) * WIDTH;
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) store(to + v * LANES, load(to + v * LANES) + weight[n] * x[v]);
      }
    }
  }
}

#define INTERACTION_EACH_COUNT(CALL) \
  switch (terms.count) {       \
    case 1: return CALL(1);    \
    case 2: return CALL(2);    \
    case 3: return CALL(3);    \
    case 4: return CALL(4);    \
    case 5: return CALL(5);    \
    case 6: return CALL(6);    \
  }
#define INTERACTION_GATHER(N) gather<V, N>(destination, rows, terms)
#define INTERACTION_SCATTER(N) scatter<V, N>(source, rows, terms)

template <int V, class Index>
static void gather_all(float* destination, int64_t rows, const Terms<Index>& terms) {
  INTERACTION_EACH_COUNT(INTERACTION_GATHER)
}

template <int V, class Index>
static void scatter_all(const float* source, int64_t rows, const Terms<Index>& terms) {
  INTERACTION_EACH_COUNT(INTERACTION_SCATTER)
}
#undef INTERACTION_GATHER
#undef INTERACTION_SCATTER
#undef INTERACTION_EACH_COUNT

// Rows of `vectors` vectors in so many bytes.
static int64_t rows_in(int64_t bytes, int64_t vectors) { return bytes / (vectors * VECTOR_BYTES); }

// The end of a run of items from `first` that fits the cache beside one of the other side; at least one item.
template <class Index>
static int64_t run_end(const Side<Index>& side, bool destination, int64_t first, int64_t end, int64_t vectors) {
  const int64_t rows = rows_in(destination == side.image ? IMAGE_BYTES : TEXT_BYTES, vectors);
  int64_t last = first + 1;
  while (last < end && last - first < MAX_ITEMS &&
         side.row(destination, last + 1) - side.row(destination, first) <= rows)
    ++last;
  return last;
}

static int64_t backward_slice_vectors(const Problem& p) {
  int64_t vectors = SLICE_VECTORS;  // fewer where a single image of many tokens would overflow the cache
  while (vectors > 1 && p.longest_image * vectors * VECTOR_BYTES > 40 * 1024) vectors /= 2;
  return vectors;
}

static int64_t backward_slice_width(const Problem& p) { return backward_slice_vectors(p) * LANES; }

// Of the first slice, which is the widest: who meets whom depends on it in all of them.
static int64_t widest_slice_vectors(const Problem& p) {
  return slice_of(p.dim, backward_slice_width(p), 0).width / LANES;
}

// The maps are read in pieces far apart, which the processor does not foresee.
template <class Index>
static void prefetch_winners(const Side<Index>& side, Range group, Range chunk) {
  for (int64_t s = chunk.begin; s < chunk.end; ++s)
    for (int64_t d = group.begin; d < group.end; ++d) {
      __builtin_prefetch(side.winners(d, s, false));
      __builtin_prefetch(side.winners(d, s, true));
    }
}

// All terms between the destination items of one group and the source items of one chunk.
template <int V, class Index>
static void meet(const Side<Index>& side, Range group, Range chunk, float* destination, const float* source) {
  constexpr int WIDTH = V * LANES;
  const int64_t to0 = side.row(true, group.begin), from0 = side.row(false, chunk.begin);
  Terms<Index> terms;
  for (int64_t s = chunk.begin; s < chunk.end; ++s) {
    terms.count = 0;
    for (int64_t d = group.begin; d < group.end; ++d) {
      terms.weight[terms.count] = side.weight(d, s, false);
      terms.winner[terms.count] = side.winners(d, s, false);
      terms.destination[terms.count] = destination + (side.row(true, d) - to0) * WIDTH;
      terms.count += terms.weight[terms.count] != 0;
    }
    const int64_t from = side.row(false, s);
    scatter_all<V>(source + (from - from0) * WIDTH, side.row(false, s + 1) - from, terms);
  }
  for (int64_t d = group.begin; d < group.end; ++d) {
    terms.count = 0;
    for (int64_t s = chunk.begin; s < chunk.end; ++s) {
      terms.weight[terms.count] = side.weight(d, s, true);
      terms.winner[terms.count] = side.winners(d, s, true);
      terms.source[terms.count] = source + (side.row(false, s) - from0) * WIDTH;
      terms.count += terms.weight[terms.count] != 0;
    }
    const int64_t to = side.row(true, d);
    gather_all<V>(destination + (to - to0) * WIDTH, side.row(true, d + 1) - to, terms);
  }
}

// The chunks of the source from item `first`, as many as are copied at a time; where they end depends on the source
// alone. bounds[0 .. chunks] are their first items.
constexpr int MAX_CHUNKS = 512;
template <class Index>
static int64_t next_chunks(const Side<Index>& side, int64_t first, int64_t vectors, int64_t* bounds) {
  const int64_t rows = rows_in(STORE_BYTES, vectors), sources = side.items(false);
  int64_t chunks = 0;
  bounds[0] = first;
  while (bounds[chunks] < sources && chunks < MAX_CHUNKS &&
         (chunks == 0 || side.row(false, bounds[chunks]) - side.row(false, first) < rows)) {
    bounds[chunks + 1] = run_end(side, false, bounds[chunks], sources, vectors);
    ++chunks;
  }
  return chunks;
}

static int64_t backward_bytes(const Problem& p, int64_t rows) {
  const int64_t vectors = backward_slice_vectors(p);
  const int64_t longest = at_least(p.longest_image, p.longest_text);
  const int64_t chunk = longest + rows_in(at_least(IMAGE_BYTES, TEXT_BYTES), vectors);  // rows of one, at most
  Arena arena{0};
  arena.take<float>(rows * backward_slice_width(p));
  arena.take<float>((rows_in(STORE_BYTES, vectors) + chunk) * backward_slice_width(p));
  return static_cast<int64_t>(arena.next);
}

// One slice of the gradient of the given destination items.
template <int V, class Index>
static void slice_gradient(const Side<Index>& side, Range items, Slice slice, char* scratch) {
  constexpr int WIDTH = V * LANES;
  const Problem& p = side.call.problem;
  const int64_t row0 = side.row(true, items.begin), rows = side.row(true, items.end) - row0;
  const int64_t vectors = widest_slice_vectors(p);
  Arena arena{reinterpret_cast<uintptr_t>(scratch)};
  float* sum = arena.take<float>(rows * WIDTH);
  float* source = arena.take<float>(0);
  for (int64_t c = 0; c < rows * WIDTH; ++c) sum[c] = 0;
  int64_t bounds[MAX_CHUNKS + 1];
  for (int64_t first = 0; first < side.items(false);) {
    const int64_t chunks = next_chunks(side, first, vectors, bounds), source0 = side.row(false, first);
    copy_columns(side.source(), p.bf16, {source0, side.row(false, bounds[chunks])}, p.dim, slice.first, slice.valid,
                 slice.width, source);
    for (int64_t d = items.begin, next; d < items.end; d = next) {
      next = run_end(side, true, d, items.end, vectors);
      for (int64_t c = 0; c < chunks; ++c) {
        if (c + 1 < chunks) prefetch_winners(side, {d, next}, {bounds[c + 1], bounds[c + 2]});
        meet<V>(side, {d, next}, {bounds[c], bounds[c + 1]}, sum + (side.row(true, d) - row0) * WIDTH,
                source + (side.row(false, bounds[c]) - source0) * WIDTH);
      }
    }
    first = bounds[chunks];
  }
  float* out = (side.image ? side.call.grad_image : side.call.grad_text) + row0 * p.dim + slice.first;
  for (int64_t row = 0; row < rows; ++row)
    __builtin_memcpy(out + row * p.dim, sum + row * WIDTH, static_cast<size_t>(slice.valid) * sizeof(float));
}

template <class Index>
static void any_slice(const Call& call, bool image, Range items, int64_t s, char* scratch) {
  const Problem& p = call.problem;
  const Slice slice = slice_of(p.dim, backward_slice_width(p), s);
  const Side<Index> side{call, image};
  switch (slice.width / LANES) {
    case 1: return slice_gradient<1>(side, items, slice, scratch);
    case 2: return slice_gradient<2>(side, items, slice, scratch);
    case 3: return slice_gradient<3>(side, items, slice, scratch);
    case 4: return slice_gradient<4>(side, items, slice, scratch);
  }
}

static void backward(const Call& call, bool image, Range items, int64_t slice, char* scratch) {
  call.problem.wide ? any_slice<int16_t>(call, image, items, slice, scratch)
                    : any_slice<uint8_t>(call, image, items, slice, scratch);
}

}  // namespace
}  // namespace interaction
