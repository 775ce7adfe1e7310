// The native late interaction: what the instruction-set files and the entry points share.
//
// Every file that is compiled for a wider instruction set includes only this header and <immintrin.h>: an
// inline function of the standard library instantiated there could be merged by the linker with the one in
// the portable code, which would then die on an older CPU. So: plain structs, pointers, static inline.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace filip {

// b images of n1 tokens against t texts packed one after the other; both row-major [rows][dim].
struct Problem {
  const void* image;       // [images * patches][dim], float or bfloat16
  const void* text;        // [offsets[texts]][dim], same type
  const int64_t* offsets;  // [texts + 1] first row of each text
  int64_t images, patches, texts, dim;
  bool bf16;  // the type of both inputs (and of the gradients)
  bool wide;  // arg-max maps are int16 instead of uint8
};

// The winning text token of each image token [images][texts][patches] and the winning image token of each
// text token [images][rows of text]. Null when nobody will ask for a gradient.
struct Maps {
  void* i2t;
  void* t2i;
};

// Texts are handled in groups whose rows stay in the first-level cache: group g is texts
// [bounds[g], bounds[g + 1]).
struct Groups {
  const int64_t* bounds;
};

struct ForwardCall {
  Problem problem;
  Maps maps;
  Groups groups;
  float* i2t;  // [images][texts], or null: that direction is not computed
  float* t2i;  // likewise
};

struct BackwardCall {
  Problem problem;
  Maps maps;
  const float* grad_i2t;  // [images][texts], or null: none comes from there
  const float* grad_t2i;  // likewise
  const float* inverse_length;  // [texts] one over the number of tokens
  void* grad_image;  // like image, or null
  void* grad_text;   // like text, or null
  float* weight_bounds;  // see Isa::find_weight_bounds, or null
};

struct Range {
  int64_t begin, end;
};

// Memory that will be read soon: prefetched a few cache lines at a time while the arithmetic runs.
struct Ahead {
  const char *next, *end;
  inline void fetch(int64_t lines) {
    for (; lines > 0 && next < end; --lines, next += 64) __builtin_prefetch(next, 0, 2);
  }
};

// One implementation. A unit of work is a block of images against a range of groups (forward), or a block of
// images (texts) and a slice of columns (backward). A unit computes the same bits whoever runs it.
struct Isa {
  const char* name;
  int64_t (*image_block)(const Problem&);  // images per forward unit

  // Text in the form the forward wants, shared by all threads; null when it reads the caller's rows.
  int64_t (*packed_bytes)(const Problem&, Range texts);
  void (*pack_group)(const ForwardCall&, Range texts, int64_t group, char* packed);

  int64_t (*forward_bytes)(const ForwardCall&);
  void (*forward)(const ForwardCall&, Range images, Range groups, Range packed_texts, const char* packed,
                  Ahead ahead, char* scratch);

  int64_t (*slice_width)(const Problem&);  // columns per backward unit
  int64_t (*backward_bytes)(const Problem&, int64_t rows);
  // For sums in fixed point: upper bounds on the sum of the absolute weights that contribute to a row of an image (or
  // text), one bound for each run of the other side; the same for all slices. weight_bound_count: how many bounds there
  // are (0: sums are in float32). find_weight_bounds: computes those of some items.
  int64_t (*weight_bound_count)(const BackwardCall&, bool image);
  void (*find_weight_bounds)(const BackwardCall&, bool image, Range items, char* scratch);
  // The gradient of some images (or texts), one slice of columns.
  void (*backward)(const BackwardCall&, bool image, Range items, int64_t slice, char* scratch);
};

const Isa* portable_isa();
const Isa* avx2_isa();
const Isa* avx512_isa();
const Isa* avx512vnni_isa();

constexpr int MAX_GROUP_TEXTS = 6;

static inline int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t b) { return div_up(a, b) * b; }
static inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

// The next part when `left` rows are cut into parts of at most `most`, without a tiny last one (and without a
// division, which would be felt in the inner loops).
static inline int64_t next_part(int64_t left, int64_t most) {
  return left <= most ? left : left >= most + 4 ? most : (left + 1) / 2;
}

// Part p of `total` split into `parts` nearly equal ones: 20 rows in 4 parts are 5, 5, 5, 5 and not 6, 6, 6, 2.
static inline Range part_of(int64_t total, int64_t parts, int64_t p) {
  return {total * p / parts, total * (p + 1) / parts};
}

static inline float bf16_to_float(uint16_t bits) {
  uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  __builtin_memcpy(&value, &wide, 4);
  return value;
}

static inline uint16_t float_to_bf16(float value) {  // round to nearest even; NaN stays NaN
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

static inline float element(const void* rows, bool bf16, int64_t index) {
  return bf16 ? bf16_to_float(static_cast<const uint16_t*>(rows)[index])
              : static_cast<const float*>(rows)[index];
}

static inline int64_t load_map(const void* map, bool wide, int64_t index) {
  return wide ? static_cast<const int16_t*>(map)[index] : static_cast<const uint8_t*>(map)[index];
}

static inline void store_map(void* map, bool wide, int64_t index, int64_t value) {
  if (wide)
    static_cast<int16_t*>(map)[index] = static_cast<int16_t>(value);
  else
    static_cast<uint8_t*>(map)[index] = static_cast<uint8_t>(value);
}

// Hands out 64-byte aligned pieces of a scratch buffer. With base 0 it only counts.
struct Arena {
  uintptr_t next;
  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(next);
    next += static_cast<uintptr_t>(round_up(count * static_cast<int64_t>(sizeof(T)), 64));
    return piece;
  }
};

}  // namespace filip
