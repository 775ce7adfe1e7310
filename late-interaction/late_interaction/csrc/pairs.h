// Given pairs of an image and a text, such as a query's own documents: each is a problem of one image and one text, whose
// products are those of the forward. The gradients touch few rows, n1 + n2 of a pair, and are summed where they belong.
#pragma once

#include "forward.h"

namespace interaction {
namespace {

struct OnePair {
  int64_t image_offsets[2], text_offsets[2];
  Call call;

  OnePair(const Call& pairs, int64_t pair) : call{pairs.problem} {
    call.i2t = pairs.i2t + pair;
    call.t2i = pairs.t2i + pair;
    Problem& p = call.problem;
    const Range image = pairs.image_rows[pairs.image_of[pair]], text = pairs.text_rows[pairs.text_of[pair]];
    const int64_t row_bytes = p.dim * (p.bf16 ? 2 : 4), index_bytes = p.wide ? 2 : 1;
    image_offsets[0] = text_offsets[0] = 0;
    image_offsets[1] = image.end - image.begin;
    text_offsets[1] = p.longest_text = text.end - text.begin;
    p.image = static_cast<const char*>(p.image) + image.begin * row_bytes;
    p.text = static_cast<const char*>(p.text) + text.begin * row_bytes;
    p.image_offsets = image_offsets;
    p.text_offsets = text_offsets;
    p.images = p.texts = 1;
    if (!pairs.maps.i2t) return;
    call.maps.i2t = static_cast<char*>(pairs.maps.i2t) + pairs.i2t_at[pair] * index_bytes;
    call.maps.t2i = static_cast<char*>(pairs.maps.t2i) + pairs.t2i_at[pair] * index_bytes;
  }
};

static int64_t pairs_bytes(const Call& call) {
  Call largest{call.problem};
  const int64_t offsets[] = {0, call.problem.longest_image};
  largest.problem.image_offsets = offsets;
  return forward_bytes(largest, {0, 1});
}

// The pairs order[some], in which those of one image follow one another: it is copied once for all of them.
static void pairs_forward(const Call& call, const int64_t* order, Range some, char* scratch) {
  int64_t packed = -1;
  for (int64_t n = some.begin; n < some.end; ++n) {
    const OnePair one(call, order[n]);
    const Problem& p = one.call.problem;
    const ForwardScratch s(one.call, {0, 1}, reinterpret_cast<uintptr_t>(scratch));  // an image's panel stays in place
    if (packed != call.image_of[order[n]]) pack_panel(p, {0, 1}, s.vectors, s.panel);
    packed = call.image_of[order[n]];
    product_tile(p, text_columns(p, {0, p.longest_text}, s.text), p.longest_text, s.panel, s.vectors, s.tile);
    finish_text(one.call, {0, 1}, 0, s.tile, s);
  }
}

// target[own row] += weight * source[other row] for each of n rows and the row that it won on the other side.
template <class Index>
static void add_winners(const Problem& p, const void* winners, int64_t n, float weight, bool own_rows, const void* source,
                        int64_t first, float* target) {
  if (weight == 0) return;
  for (int64_t r = 0; r < n; ++r) {
    const int64_t winner = static_cast<const Index*>(winners)[r];
    float* to = target + (own_rows ? r : winner) * p.dim;
    const int64_t from = (first + (own_rows ? winner : r)) * p.dim;
    for (int64_t c = 0; c < p.dim; ++c) to[c] += weight * element(source, p.bf16, from + c);
  }
}

// Adds to the gradient of one image (or text) what the pairs order[some] say, which are all of its own.
static void pairs_backward(const Call& call, bool image, const int64_t* order, Range some) {
  const Problem& p = call.problem;
  const auto add = p.wide ? add_winners<int16_t> : add_winners<uint8_t>;
  for (int64_t n = some.begin; n < some.end; ++n) {
    const int64_t pair = order[n];
    const Range images = call.image_rows[call.image_of[pair]], texts = call.text_rows[call.text_of[pair]];
    const OnePair one(call, pair);
    float* target = image ? call.grad_image + images.begin * p.dim : call.grad_text + texts.begin * p.dim;
    const void* source = image ? p.text : p.image;
    const int64_t first = image ? texts.begin : images.begin;
    const int64_t n1 = images.end - images.begin, n2 = texts.end - texts.begin;
    add(p, one.call.maps.i2t, n1, call.grad_i2t[pair] / static_cast<float>(n1), image, source, first, target);
    add(p, one.call.maps.t2i, n2, call.grad_t2i[pair] / static_cast<float>(n2), !image, source, first, target);
  }
}

}  // namespace
}  // namespace interaction
