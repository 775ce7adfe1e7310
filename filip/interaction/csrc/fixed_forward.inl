// One unit of the forward: screening in fixed point, what rounding added taken out again, results written.

// What rounding added to the maxima of every image of the block with every text of the group.
static void add_rests(const ForwardCall& call, int64_t first, int64_t last, const FixedScratch& s, const Rests& text) {
  const Problem& p = call.problem;
  const int64_t texts = last - first, row0 = p.offsets[first], stride = fixed_stride(p.dim);
  const int64_t sums = s.images * MAX_GROUP_TEXTS * LANES;
  for (int64_t n = 0; n < 2 * sums; ++n) s.i2t_off[n] = s.t2i_off[n] = 0;
  for (int64_t half = 0; half < 2; ++half)
    for (int64_t column = 0; column < stride; column += SLICE) {
      const int64_t width = at_most(SLICE, stride - column);
      const int8_t* image_rows = s.rests.row(half, column, 0, p.dim);
      const int8_t* text_rows = text.row(half, column, 0, p.dim);
      for (int64_t i = 0; call.i2t && i < s.images; ++i)
        ADD_PRODUCTS[width / 64 - 1][texts - 1](image_rows + i * s.n1 * width, s.n1, text_rows, s.text_choice + i * s.n1,
                                             s.lanes, s.i2t_off + half * sums + i * MAX_GROUP_TEXTS * LANES, LANES);
      // Few images at a time, for theirs are the rows chosen among.
      const int64_t parts = div_up(s.images, 3);
      for (int64_t part = 0; call.t2i && part < parts; ++part) {
        const Range some = part_of(s.images, parts, part);
        for (int64_t t = 0; t < texts; ++t) {
          const int64_t offset = p.offsets[first + t] - row0;
          ADD_PRODUCTS[width / 64 - 1][some.end - some.begin - 1](
              text_rows + offset * width, p.offsets[first + t + 1] - row0 - offset, image_rows,
              s.image_choice + some.begin * s.group_rows + offset, s.group_rows,
              s.t2i_off + half * sums + (some.begin * MAX_GROUP_TEXTS + t) * LANES, MAX_GROUP_TEXTS * LANES);
        }
      }
    }
}

// The means of the maxima in the units of the input.
static void write_means(const ForwardCall& call, Range images, int64_t first, int64_t last, const FixedScratch& s,
                        const Rests& text, const Rounding* image_rounding, const Rounding* text_rounding,
                        float lost_to_index) {
  const Problem& p = call.problem;
  for (int64_t i = 0; i < s.images; ++i) {
    for (int64_t t = 0; t < last - first; ++t) {
      const int64_t n = i * MAX_GROUP_TEXTS + t, at = (images.begin + i) * p.texts + first + t;
      const int64_t offset = p.offsets[first + t] - p.offsets[first];
      const int64_t length = p.offsets[first + t + 1] - p.offsets[first + t];
      const float unit = 1 / image_rounding[i].scale / text_rounding[t].scale;
      const int64_t from = n * LANES, halves = s.images * MAX_GROUP_TEXTS * LANES;
      if (call.i2t) {
        const uint16_t* choice = s.text_choice + t * s.lanes + i * s.n1;
        const float off = p.bf16 ? 0 : rests_total(s.i2t_off + from, halves, text, choice, s.n1, text_rounding[t].coarse,
                                                   image_rounding[i].coarse);
        call.i2t[at] = ((s.i2t_sums[n] - off) / static_cast<float>(s.n1) + lost_to_index) * unit;
      }
      if (call.t2i) {
        const uint16_t* choice = s.image_choice + i * s.group_rows + offset;
        const float off = p.bf16 ? 0 : rests_total(s.t2i_off + from, halves, s.rests, choice, length,
                                                   text_rounding[t].coarse, image_rounding[i].coarse);
        call.t2i[at] = ((s.t2i_sums[n] - off) / static_cast<float>(length) + lost_to_index) * unit;
      }
    }
  }
}

static void copy_map(void* map, bool wide, int64_t to, const uint16_t* from, int64_t count, int64_t origin) {
  if (wide) {
    int16_t* out = static_cast<int16_t*>(map) + to;
    for (int64_t n = 0; n < count; ++n) out[n] = static_cast<int16_t>(from[n] - origin);
  } else {
    uint8_t* out = static_cast<uint8_t*>(map) + to;
    for (int64_t n = 0; n < count; ++n) out[n] = static_cast<uint8_t>(from[n] - origin);
  }
}

static void write_maps(const ForwardCall& call, Range images, int64_t first, int64_t last, const FixedScratch& s) {
  const Problem& p = call.problem;
  const int64_t total = p.offsets[p.texts], row0 = p.offsets[first];
  for (int64_t i = 0; i < s.images; ++i) {
    for (int64_t t = 0; call.maps.i2t && t < last - first; ++t) {
      const uint16_t* from = s.text_choice + t * s.lanes + i * s.n1;
      const int64_t to = ((images.begin + i) * p.texts + first + t) * s.n1;
      copy_map(call.maps.i2t, p.wide, to, from, s.n1, p.offsets[first + t] - row0);
    }
    if (!call.maps.t2i) continue;
    const uint16_t* from = s.image_choice + i * s.group_rows;
    const int64_t to = (images.begin + i) * total + row0;
    copy_map(call.maps.t2i, p.wide, to, from, p.offsets[last] - row0, i * s.n1);
  }
}

static void fixed_forward(const ForwardCall& call, Range images, Range groups, Range texts, const char* packed,
                          Ahead ahead, char* scratch) {
  const Problem& p = call.problem;
  FixedScratch s(call, images.end - images.begin, reinterpret_cast<uintptr_t>(scratch));
  const PackedText text(p, texts, Arena{reinterpret_cast<uintptr_t>(const_cast<char*>(packed))});
  const int bits = index_bits(at_least(s.n1, s.longest));
  const auto plain = [&](int64_t from) {
    avx512_isa()->forward(call, images, {from, groups.end}, texts, nullptr, ahead, scratch);
  };
  if (bits > MAX_INDEX_BITS) return plain(groups.begin);
  const __m512i keep = _mm512_set1_epi32(-(1 << bits));
  Rounding rounding[FIXED_BLOCK_LANES];  // a block has at most that many images
  const float error = pack_block(p, images, s, rounding);
  for (int64_t i = 0; i < s.images; ++i)
    if (rounding[i].scale == 0) return plain(groups.begin);
  const int64_t stride = fixed_stride(p.dim), row0 = p.offsets[texts.begin], image_row0 = images.begin * s.n1;
  for (int64_t g = groups.begin; g < groups.end; ++g) {
    const int64_t first = call.groups.bounds[g], last = call.groups.bounds[g + 1];
    const int64_t group_row0 = p.offsets[first], rows = p.offsets[last] - group_row0;
    for (int64_t j = first; j < last; ++j)
      if (text.rounding[j - texts.begin].scale == 0) return plain(g);
    s.lost = 0;
    for (int64_t j = first; j < last; ++j) {
      const Range text_rows{p.offsets[j], p.offsets[j + 1]};
      const int32_t window = doubt(error, text.rounding[j - texts.begin].error, bits);
      fill_tile(s, text.fixed + (text_rows.begin - row0) * stride, text_rows.end - text_rows.begin, stride, ahead);
      if (call.i2t)
        (p.bf16 ? vertical<false> : vertical<true>)(s, p, image_row0, text_rows, group_row0, window, bits,
                                                    s.text_choice + (j - first) * s.lanes);
      for (int64_t i = 0; i < s.images; ++i) {
        const int64_t n = i * MAX_GROUP_TEXTS + j - first;
        if (call.i2t) s.i2t_sums[n] = sum_of(s.best + i * s.n1, s.n1, keep);
        if (call.t2i)
          s.t2i_sums[n] = (p.bf16 ? horizontal<false> : horizontal<true>)(
              s, p, image_row0, i * s.n1, text_rows, window, bits,
              s.image_choice + i * s.group_rows + text_rows.begin - group_row0);
      }
    }
    write_maps(call, images, first, last, s);
    const Rests rests = text.rests_of(p, texts, {first, last});
    if (!p.bf16) add_rests(call, first, last, s, rests);
    write_means(call, images, first, last, s, rests, rounding, text.rounding + first - texts.begin,
                0.5f * static_cast<float>((1 << bits) - 1));
    if (s.lost * 3 > s.images * ((call.i2t ? (last - first) * s.n1 : 0) + (call.t2i ? rows : 0)))
      return plain(g + 1);
  }
}
