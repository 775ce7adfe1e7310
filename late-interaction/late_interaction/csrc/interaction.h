// The native late interaction: what the instruction-set files and the entry points share.
//
// A file that is compiled for a wider instruction set includes this and the kernels, and no header of the standard
// library: an inline function instantiated there could be merged by the linker with the one in the portable code, which
// would then die on an older CPU. So: plain structs, pointers, static inline.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace interaction {

struct Range {
  int64_t begin, end;
};

// out[m][n] (+)= a[m][k] b[k / 2][n][2] by PyTorch's at::native::cpublas::brgemm: m, n, k, the strides of a, b and out,
// whether to add, a, b, out, and that neighbouring rows of b are in pairs.
typedef void (*Multiply)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, bool, const void*, const void*, float*, bool);

// Images against texts. The tokens of either side are packed, one item after the other, row-major [rows][dim].
struct Problem {
  const void* image;             // [image_offsets[images]][dim], float or bfloat16
  const void* text;              // [text_offsets[texts]][dim], same type
  const int64_t* image_offsets;  // [images + 1] first row of each image
  const int64_t* text_offsets;   // [texts + 1] first row of each text
  int64_t images, texts, dim;
  int64_t longest_image, longest_text;  // rows
  int64_t threads;
  bool bf16;                            // the type of both inputs
  bool wide;                            // arg-max maps are int16 instead of uint8
  Multiply multiply;                    // of pairs of bfloat16; null: the register tiles
};

// The winning text token of each image token, [images][texts][rows of the image], and the winning image token of each
// text token, [images][rows of text]. Null when nobody will ask for a gradient.
struct Maps {
  void* i2t;
  void* t2i;
};

// One pass. A forward fills i2t and t2i, and the maps; a backward reads these, and fills the gradients of the tokens. What
// nobody asks for is null.
struct Call {
  Problem problem;
  Maps maps;
  float* i2t;  // [images][texts], or [pairs]
  float* t2i;  // likewise
  const float* grad_i2t;
  const float* grad_t2i;
  float* grad_image;  // [rows of image][dim]
  float* grad_text;   // [rows of text][dim]
  const float* inverse_image;  // [images] one over the number of tokens, for a backward
  const float* inverse_text;   // [texts] likewise
  float temperature;  // of the smooth maximum, which has no maps; 0: the maximum
  bool shifted;  // exponentials may leave the range of float32, so each sum is taken relative to its largest term
  // Given pairs in place of all: a problem without offsets. Rows of an item need not follow those of another, and no pair
  // need have it.
  int64_t pairs;
  const int64_t* image_of;  // [pairs]
  const int64_t* text_of;   // likewise
  const Range* image_rows;  // [images]
  const Range* text_rows;   // [texts]
  int64_t image_total, text_total;  // rows of the gradients
  const int64_t* i2t_at;    // [pairs] where a pair's winners start in the maps, n1 and n2 of it
  const int64_t* t2i_at;    // likewise
};

// One implementation. A unit of work is a block of images against a range of texts (forward), or a block of
// images (texts) and a slice of columns (backward). A unit computes the same bits whoever runs it.
struct Isa {
  const char* name;
  int64_t (*block_end)(const Problem&, int64_t first);  // the end of a forward unit's images from `first`

  int64_t (*forward_bytes)(const Call&, Range images);
  void (*forward)(const Call&, Range images, Range texts, char* scratch);

  int64_t (*slice_width)(const Problem&);  // columns per backward unit
  int64_t (*backward_bytes)(const Problem&, int64_t rows);
  // The gradient of some images (or texts), one slice of columns.
  void (*backward)(const Call&, bool image, Range items, int64_t slice, char* scratch);

  int64_t (*smooth_bytes)(const Call&, Range images);
  void (*smooth_forward)(const Call&, Range images, Range texts, char* scratch);
  // Adds to both gradients, in the rows of these images and texts.
  void (*smooth_backward)(const Call&, Range images, Range texts, char* scratch);
  int64_t (*pairs_bytes)(const Call&);
  void (*pairs_forward)(const Call&, const int64_t* order, Range some, char* scratch);
  void (*pairs_backward)(const Call&, bool image, const int64_t* order, Range some);
};

const Isa* portable_isa();
const Isa* avx2_isa();
const Isa* avx512_isa();
#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 11)
#define INTERACTION_HAS_AVX512_BF16 1
const Isa* avx512_bf16_isa();
#endif
#if INTERACTION_HAS_AVX512_BF16
// Words of one text against the tokens of items, which may have other data between them.
struct Search {
  const void* words;     // [columns][vectors][16] of 4 bytes: numbers of 16 words at a time
  const float* weights;  // [vectors][16], what a word's largest product counts
  int64_t vectors, columns;
  const char* tokens;
  int64_t token_bytes;  // from a token to the next
  const float* scales;  // a token's factor, every scale_step floats; null: 1
  int64_t scale_step;
  const int64_t* offsets;  // [items + 1] first token of each item
  bool int8;               // else bfloat16
  float* scores;           // [items]
};
void search(const Search&, Range items);
#endif

static inline Range image_rows(const Problem& p, Range images) {
  return {p.image_offsets[images.begin], p.image_offsets[images.end]};
}

static inline int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t b) { return div_up(a, b) * b; }
static inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

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

static inline float element(const void* rows, bool bf16, int64_t index) {
  return bf16 ? bf16_to_float(static_cast<const uint16_t*>(rows)[index])
              : static_cast<const float*>(rows)[index];
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

}  // namespace interaction
