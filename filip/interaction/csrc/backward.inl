// Backward: gradients from the arg-max maps alone, without a second product.
//
//   dX[i, k] = sum over j of  gI[i, j] / n1     * Y[j, winner of (i, k) in j]
//            + sum over j, r with winner k of  gT[i, j] / n2_j * Y[j, r]
//
// and dY with the roles exchanged. The first sum has one term per (destination row, foreign item): a gather
// with the destination in registers. The second is a scatter in the order of the source rows; its
// destination slice stays in the first-level cache. What decides the speed is where the *source* rows lie:
// a slice of SLICE_VECTORS vectors of a chunk of rows is copied into a small contiguous buffer (rows 1 KB
// apart would fight for a few cache sets) and serves a whole block of destinations.
// Every destination row meets its terms in the order of the source, so nothing depends on the threads.

constexpr int64_t SOURCE_BYTES = 28 * 1024;  // of a 32 or 48 KB first-level cache
constexpr int64_t MAX_ITEMS = 64;            // texts (images) of one source chunk

template <class Index>
struct Terms {  // what one destination item (an image or a text) receives from one source chunk
  int64_t count = 0;
  float weight[MAX_ITEMS];         // gather: weight per source item
  const Index* winner[MAX_ITEMS];  // gather: winning source row per destination row
  const float* source[MAX_ITEMS];  // first source row of the item
};

template <int V, int R, class Index>
static void gather(float* destination, const Terms<Index>& terms, int64_t first) {
  constexpr int WIDTH = V * LANES;
  vf sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = load(destination + r * WIDTH + v * LANES);
  for (int64_t n = 0; n < terms.count; ++n) {
    const vf weight = splat(terms.weight[n]);
    const Index* winner = terms.winner[n] + first;
    const float* source = terms.source[n];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const float* row = source + static_cast<int64_t>(winner[r]) * WIDTH;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] += weight * load(row + v * LANES);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(destination + r * WIDTH + v * LANES, sum[r][v]);
}

template <int V, class Index>
static void gather_all(float* destination, int64_t rows, const Terms<Index>& terms) {
  if (terms.count == 0) return;
  const int64_t parts = div_up(rows, GATHER_ROWS);
  for (int64_t p = 0; p < parts; ++p) {
    const Range range = part_of(rows, parts, p);
    float* to = destination + range.begin * V * LANES;
    switch (range.end - range.begin) {
      case 1: gather<V, 1>(to, terms, range.begin); break;
      case 2: gather<V, 2>(to, terms, range.begin); break;
      case 3: gather<V, 3>(to, terms, range.begin); break;
#if GATHER_ROWS > 3
      case 4: gather<V, 4>(to, terms, range.begin); break;
      case 5: gather<V, 5>(to, terms, range.begin); break;
      case 6: gather<V, 6>(to, terms, range.begin); break;
      case 7: gather<V, 7>(to, terms, range.begin); break;
#endif
    }
  }
}

template <int V, class Index>
static void scatter(float* destination, const float* source, const Index* winner, int64_t rows, float weight) {
  constexpr int WIDTH = V * LANES;
  const vf w = splat(weight);
  for (int64_t r = 0; r < rows; ++r, source += WIDTH) {
    float* to = destination + static_cast<int64_t>(winner[r]) * WIDTH;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(to + v * LANES, load(to + v * LANES) + w * load(source + v * LANES));
  }
}

static int64_t backward_slice_width(const Problem& p) {
  // An image is a source chunk of its own; one of 256 tokens only fits the cache in narrower slices.
  int64_t vectors = SLICE_VECTORS;
  while (vectors > 1 && p.patches * vectors * VECTOR_BYTES > 40 * 1024) vectors /= 2;
  return vectors * LANES;
}

static int64_t chunk_rows(int64_t width) { return SOURCE_BYTES / (width * int64_t(sizeof(float))); }

static int64_t backward_bytes(const Problem& p, int64_t rows) {
  const int64_t width = backward_slice_width(p);
  int64_t longest = p.patches;
  for (int64_t j = 0; j < p.texts; ++j) longest = at_least(longest, p.offsets[j + 1] - p.offsets[j]);
  Arena arena{0};
  arena.take<float>(rows * width);
  arena.take<float>(at_least(longest, chunk_rows(width)) * width);
  return static_cast<int64_t>(arena.next);
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

// dX of a block of images, one slice of columns: sources are chunks of texts.
template <int V, class Index>
static void image_gradient(const BackwardCall& call, Range images, Slice slice, char* scratch) {
  const Problem& p = call.problem;
  const int64_t n1 = p.patches, width = slice.width, total = p.offsets[p.texts];
  const Index* i2t = static_cast<const Index*>(call.maps.i2t);
  const Index* t2i = static_cast<const Index*>(call.maps.t2i);
  Arena arena{reinterpret_cast<uintptr_t>(scratch)};
  float* sum = arena.take<float>((images.end - images.begin) * n1 * width);
  float* source = arena.take<float>(0);
  for (int64_t c = 0; c < (images.end - images.begin) * n1 * width; ++c) sum[c] = 0;
  Terms<Index> terms;
  for (int64_t first = 0, last; first < p.texts; first = last) {
    const int64_t row0 = p.offsets[first];
    for (last = first + 1; last < p.texts && last - first < MAX_ITEMS; ++last)
      if (p.offsets[last + 1] - row0 > chunk_rows(width)) break;
    copy_columns(call.problem.text, p.bf16, {row0, p.offsets[last]}, p.dim, slice.first, slice.valid, width,
                 source);
    for (int64_t i = images.begin; i < images.end; ++i) {
      float* destination = sum + (i - images.begin) * n1 * width;
      terms.count = 0;
      for (int64_t j = first; j < last; ++j) {
        const int64_t length = p.offsets[j + 1] - p.offsets[j];
        const float* rows = source + (p.offsets[j] - row0) * width;
        const float to_image = call.grad_i2t[i * p.texts + j] / static_cast<float>(n1);
        const float to_text = call.grad_t2i[i * p.texts + j] / static_cast<float>(length);
        if (to_image != 0) {
          terms.weight[terms.count] = to_image;
          terms.winner[terms.count] = i2t + (i * p.texts + j) * n1;
          terms.source[terms.count++] = rows;
        }
        if (to_text != 0)
          scatter<V>(destination, rows, t2i + i * total + p.offsets[j], length, to_text);
      }
      gather_all<V>(destination, n1, terms);
    }
  }
  write_gradient(call.grad_image, p.bf16, {images.begin * n1, images.end * n1}, p.dim, slice, sum);
}

// dY of a block of texts, one slice of columns: sources are chunks of images.
template <int V, class Index>
static void text_gradient(const BackwardCall& call, Range texts, Slice slice, char* scratch) {
  const Problem& p = call.problem;
  const int64_t n1 = p.patches, width = slice.width, total = p.offsets[p.texts];
  const int64_t row0 = p.offsets[texts.begin], rows = p.offsets[texts.end] - row0;
  const Index* i2t = static_cast<const Index*>(call.maps.i2t);
  const Index* t2i = static_cast<const Index*>(call.maps.t2i);
  Arena arena{reinterpret_cast<uintptr_t>(scratch)};
  float* sum = arena.take<float>(rows * width);
  float* source = arena.take<float>(0);
  for (int64_t c = 0; c < rows * width; ++c) sum[c] = 0;
  const int64_t step = at_most(MAX_ITEMS, at_least(1, chunk_rows(width) / n1));
  Terms<Index> terms;
  for (int64_t first = 0; first < p.images; first += step) {
    const int64_t last = at_most(first + step, p.images);
    copy_columns(call.problem.image, p.bf16, {first * n1, last * n1}, p.dim, slice.first, slice.valid, width,
                 source);
    for (int64_t j = texts.begin; j < texts.end; ++j) {
      const int64_t length = p.offsets[j + 1] - p.offsets[j];
      float* destination = sum + (p.offsets[j] - row0) * width;
      terms.count = 0;
      for (int64_t i = first; i < last; ++i) {
        const float* image = source + (i - first) * n1 * width;
        const float to_image = call.grad_i2t[i * p.texts + j] / static_cast<float>(n1);
        const float to_text = call.grad_t2i[i * p.texts + j] / static_cast<float>(length);
        if (to_text != 0) {
          terms.weight[terms.count] = to_text;
          terms.winner[terms.count] = t2i + i * total + p.offsets[j];
          terms.source[terms.count++] = image;
        }
        if (to_image != 0)
          scatter<V>(destination, image, i2t + (i * p.texts + j) * n1, n1, to_image);
      }
      gather_all<V>(destination, length, terms);
    }
  }
  write_gradient(call.grad_text, p.bf16, {row0, row0 + rows}, p.dim, slice, sum);
}

template <class Index>
static void backward_slice(const BackwardCall& call, Range items, int64_t s, bool image, char* scratch) {
  const Slice slice = slice_of(call.problem.dim, backward_slice_width(call.problem), s);
  switch (slice.width / LANES) {
#define FILIP_CASE(V)                                                                    \
  case V:                                                                                \
    return image ? image_gradient<V, Index>(call, items, slice, scratch)                 \
                 : text_gradient<V, Index>(call, items, slice, scratch);
    FILIP_CASE(1) FILIP_CASE(2) FILIP_CASE(3) FILIP_CASE(4)
#undef FILIP_CASE
  }
}

static void backward_image(const BackwardCall& call, Range images, int64_t slice, char* scratch) {
  call.problem.wide ? backward_slice<int16_t>(call, images, slice, true, scratch)
                    : backward_slice<uint8_t>(call, images, slice, true, scratch);
}

static void backward_text(const BackwardCall& call, Range texts, int64_t slice, char* scratch) {
  call.problem.wide ? backward_slice<int16_t>(call, texts, slice, false, scratch)
                    : backward_slice<uint8_t>(call, texts, slice, false, scratch);
}
