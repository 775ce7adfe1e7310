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
// number of threads.

// Rows of either side that meet at a time (two images of 49 tokens against four captions, of 48 KB), and source rows
// copied at a time, a part of the second-level cache.
constexpr int64_t IMAGE_BYTES = 26 * 1024, TEXT_BYTES = 20 * 1024, STORE_BYTES = 200 * 1024;
constexpr int MAX_ITEMS = 6;  // images or texts among them: the widest loop below

// One direction of the backward: images as destination and texts as source, or the reverse.
template <class Index>
struct Side {
  const BackwardCall& call;
  bool image;  // is the destination
  float inverse_patches;

  int64_t items(bool destination) const {
    return destination == image ? call.problem.images : call.problem.texts;
  }
  int64_t row(bool destination, int64_t item) const {  // the first row of an item
    return destination == image ? item * call.problem.patches : call.problem.offsets[item];
  }
  // Whether anything comes from the direction whose winners belong to destination (or source) rows.
  bool comes(bool from_destination) const { return from_destination == image ? call.grad_i2t : call.grad_t2i; }
  const void* source() const { return image ? call.problem.text : call.problem.image; }
  // Winners among the rows of `to`, one for each row of `from`.
  const Index* winners(int64_t destination, int64_t source, bool from_destination) const {
    const Problem& p = call.problem;
    const int64_t i = image ? destination : source, j = image ? source : destination;
    return from_destination == image ? static_cast<const Index*>(call.maps.i2t) + (i * p.texts + j) * p.patches
                                     : static_cast<const Index*>(call.maps.t2i) + i * p.offsets[p.texts] + p.offsets[j];
  }
  float weight(int64_t destination, int64_t source, bool from_destination) const {
    const Problem& p = call.problem;
    const int64_t i = image ? destination : source, j = image ? source : destination;
    return from_destination == image ? call.grad_i2t[i * p.texts + j] * inverse_patches
                                     : call.grad_t2i[i * p.texts + j] * call.inverse_length[j];
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
  for (int64_t r = 0; r < rows; ++r, destination += WIDTH) {
    vf sum[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[v] = load(destination + v * LANES);
#pragma GCC unroll 6
    for (int n = 0; n < N; ++n) {
      const float* row = source[n] + static_cast<int64_t>(winner[n][r]) * WIDTH;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[v] += weight[n] * load(row + v * LANES);
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(destination + v * LANES, sum[v]);
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
  for (int64_t r = 0; r < rows; ++r, source += WIDTH) {
    vf x[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) x[v] = load(source + v * LANES);
#pragma GCC unroll 6
    for (int n = 0; n < N; ++n) {
      float* to = destination[n] + static_cast<int64_t>(winner[n][r]) * WIDTH;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) store(to + v * LANES, load(to + v * LANES) + weight[n] * x[v]);
    }
  }
}

#define FILIP_EACH_COUNT(CALL) \
  switch (terms.count) {       \
    case 1: return CALL(1);    \
    case 2: return CALL(2);    \
    case 3: return CALL(3);    \
    case 4: return CALL(4);    \
    case 5: return CALL(5);    \
    case 6: return CALL(6);    \
  }
#define FILIP_GATHER(N) gather<V, N>(destination, rows, terms)
#define FILIP_SCATTER(N) scatter<V, N>(source, rows, terms)

template <int V, class Index>
static void gather_all(float* destination, int64_t rows, const Terms<Index>& terms) {
  FILIP_EACH_COUNT(FILIP_GATHER)
}

template <int V, class Index>
static void scatter_all(const float* source, int64_t rows, const Terms<Index>& terms) {
  FILIP_EACH_COUNT(FILIP_SCATTER)
}
#undef FILIP_GATHER
#undef FILIP_SCATTER
#undef FILIP_EACH_COUNT

static int64_t rows_in(int64_t bytes, int64_t width) { return bytes / (width * static_cast<int64_t>(sizeof(float))); }

// The end of a run of items from `first` that fits the cache beside one of the other side; at least one item.
template <class Index>
static int64_t run_end(const Side<Index>& side, bool destination, int64_t first, int64_t end, int64_t width) {
  const int64_t rows = rows_in(destination == side.image ? IMAGE_BYTES : TEXT_BYTES, width);
  int64_t last = first + 1;
  while (last < end && last - first < MAX_ITEMS &&
         side.row(destination, last + 1) - side.row(destination, first) <= rows)
    ++last;
  return last;
}

static int64_t backward_slice_width(const Problem& p) {
  int64_t vectors = SLICE_VECTORS;  // narrower where a single image of many tokens would overflow the cache
  while (vectors > 1 && p.patches * vectors * VECTOR_BYTES > 40 * 1024) vectors /= 2;
  return vectors * LANES;
}

static int64_t backward_bytes(const Problem& p, int64_t rows) {
  const int64_t width = backward_slice_width(p);
  int64_t longest = p.patches;
  for (int64_t j = 0; j < p.texts; ++j) longest = at_least(longest, p.offsets[j + 1] - p.offsets[j]);
  Arena arena{0};
  arena.take<float>(rows * width);
  arena.take<float>((rows_in(STORE_BYTES, width) + longest + rows_in(IMAGE_BYTES, width)) * width);
  return static_cast<int64_t>(arena.next);
}

// The maps are read in pieces far apart, which the processor does not foresee.
template <class Index>
static void prefetch_winners(const Side<Index>& side, Range group, Range chunk) {
  for (int64_t s = chunk.begin; s < chunk.end; ++s)
    for (int64_t d = group.begin; d < group.end; ++d) {
      if (side.comes(false)) __builtin_prefetch(side.winners(d, s, false));
      if (side.comes(true)) __builtin_prefetch(side.winners(d, s, true));
    }
}

// All terms between the destination items of one group and the source items of one chunk.
template <int V, class Index>
static void meet(const Side<Index>& side, Range group, Range chunk, float* destination, const float* source) {
  constexpr int WIDTH = V * LANES;
  const int64_t to0 = side.row(true, group.begin), from0 = side.row(false, chunk.begin);
  Terms<Index> terms;
  for (int64_t s = chunk.begin; side.comes(false) && s < chunk.end; ++s) {
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
  for (int64_t d = group.begin; side.comes(true) && d < group.end; ++d) {
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

static void write_gradient(void* out, bool bf16, Range rows, int64_t dim, Slice slice, const float* sum) {
  for (int64_t row = rows.begin; row < rows.end; ++row, sum += slice.width) {
    if (bf16) {
      uint16_t* to = static_cast<uint16_t*>(out) + row * dim + slice.first;
      for (int64_t c = 0; c < slice.valid; ++c) to[c] = float_to_bf16(sum[c]);
    } else {
      __builtin_memcpy(static_cast<float*>(out) + row * dim + slice.first, sum, slice.valid * sizeof(float));
    }
  }
}

// One slice of the gradient of the given destination items.
template <int V, class Index>
static void slice_gradient(const Side<Index>& side, Range items, Slice slice, char* scratch) {
  constexpr int WIDTH = V * LANES;
  const Problem& p = side.call.problem;
  const int64_t row0 = side.row(true, items.begin), rows = side.row(true, items.end) - row0;
  const int64_t sources = side.items(false);
  Arena arena{reinterpret_cast<uintptr_t>(scratch)};
  float* sum = arena.take<float>(rows * WIDTH);
  float* source = arena.take<float>(0);
  for (int64_t c = 0; c < rows * WIDTH; ++c) sum[c] = 0;
  for (int64_t first = 0, last; first < sources; first = last) {
    // Whole chunks up to STORE_BYTES. Where they end depends on the source alone.
    const int64_t first_row = side.row(false, first);
    int64_t bounds[512], chunks = 0;
    for (bounds[0] = last = first; last < sources && chunks < 511; bounds[++chunks] = last) {
      if (chunks > 0 && side.row(false, last) - first_row >= rows_in(STORE_BYTES, WIDTH)) break;
      last = run_end(side, false, last, sources, WIDTH);
    }
    copy_columns(side.source(), p.bf16, {first_row, side.row(false, last)}, p.dim, slice.first, slice.valid, WIDTH,
                 source);
    for (int64_t d = items.begin, next; d < items.end; d = next) {
      next = run_end(side, true, d, items.end, WIDTH);
      for (int64_t c = 0; c < chunks; ++c) {
        if (c + 1 < chunks) prefetch_winners(side, {d, next}, {bounds[c + 1], bounds[c + 2]});
        meet<V>(side, {d, next}, {bounds[c], bounds[c + 1]}, sum + (side.row(true, d) - row0) * WIDTH,
                source + (side.row(false, bounds[c]) - first_row) * WIDTH);
      }
    }
  }
  write_gradient(side.image ? side.call.grad_image : side.call.grad_text, p.bf16, {row0, row0 + rows}, p.dim, slice,
                 sum);
}

template <class Index>
static void any_slice(const BackwardCall& call, bool image, Range items, int64_t s, char* scratch) {
  const Slice slice = slice_of(call.problem.dim, backward_slice_width(call.problem), s);
  const Side<Index> side{call, image, 1 / static_cast<float>(call.problem.patches)};
  switch (slice.width / LANES) {
    case 1: return slice_gradient<1>(side, items, slice, scratch);
    case 2: return slice_gradient<2>(side, items, slice, scratch);
    case 3: return slice_gradient<3>(side, items, slice, scratch);
    case 4: return slice_gradient<4>(side, items, slice, scratch);
  }
}

static void backward(const BackwardCall& call, bool image, Range items, int64_t slice, char* scratch) {
  call.problem.wide ? any_slice<int16_t>(call, image, items, slice, scratch)
                    : any_slice<uint8_t>(call, image, items, slice, scratch);
}
