// Entry points (plain C, called through ctypes) and the division of the work among OpenMP's threads. The library is linked
// without a runtime of them: the process has PyTorch's, and the threads of a second one would compete with the first's.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include <unistd.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#include <xmmintrin.h>
#endif

#include "interaction.h"

namespace interaction {
namespace {

constexpr int64_t BLOCK_ROWS = 3000;  // destination rows of a backward unit: 768 KB in slices of 64 columns

// Isas of this CPU, the fastest first. Intel's cores take twice as long for a product of bfloat16 pairs as for one of
// floats, AMD's half as long.
std::vector<const Isa*> available_isas() {
  std::vector<const Isa*> isas;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) isas.push_back(avx512_isa());
#if INTERACTION_HAS_AVX512_BF16
  if (avx512 && __builtin_cpu_supports("avx512bf16"))
    isas.insert(isas.end() - (__builtin_cpu_is("intel") ? 0 : 1), avx512_bf16_isa());
#endif
  if (avx2) isas.push_back(avx2_isa());
#endif
  isas.push_back(portable_isa());
  return isas;
}

const Isa* find_isa(const char* name) {
  for (const Isa* isa : available_isas())
    if (*name == '\0' || std::strcmp(name, isa->name) == 0) return isa;
  return nullptr;
}

// Asks for huge pages where the system has them: the kernels jump between rows, and with pages of 4 KB a tenth of their
// time went into address translation, and more into the first touch of large gradients.
constexpr size_t HUGE_PAGE = size_t{2} << 20;
void prefer_huge_pages(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data), end = begin + bytes;
  const uintptr_t first = (begin + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE, last = end / HUGE_PAGE * HUGE_PAGE;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

class Buffer {  // uninitialised
 public:
  explicit Buffer(int64_t bytes) {
    if (bytes == 0) return;
    const size_t size = static_cast<size_t>(round_up(bytes, HUGE_PAGE));
    data_ = static_cast<char*>(std::aligned_alloc(HUGE_PAGE, size));
    if (!data_) throw std::bad_alloc();
    prefer_huge_pages(data_, size);
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  char* data() { return data_; }

 private:
  char* data_ = nullptr;
};

// While it lives, this thread takes numbers below float32's normal range for 0. At small temperatures most terms of a
// smooth maximum are such numbers, and Intel's cores take 50 times as long for an operation on one.
class FlushDenormals {
#if defined(__x86_64__)
 public:
  FlushDenormals() { _mm_setcsr(before_ | 0x8040); }  // flush to zero, denormals are zero
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  const unsigned before_ = _mm_getcsr();
#endif
};

// OpenMP's threads do not survive a fork, and a process forked after they have started would wait for them
// for ever: it works alone.
const pid_t LOADED_BY = getpid();

// Of the last pass, the most units of work that threads could take at once.
std::atomic<int64_t> most_units;

// PyTorch's product for "amx", and what a thread calls after its last one; null where it cannot be used.
Multiply torch_multiply;
void (*torch_release)(bool);

// Runs work(unit, scratch) for every unit on so many threads, each with scratch memory of its own. Units are taken
// from a counter, since a thread may be held up; whoever runs one, its result is the same.
class Workers {
 public:
  Workers(int64_t threads, int64_t scratch_bytes)
      : threads_(getpid() == LOADED_BY ? threads : 1),
        bytes_(round_up(scratch_bytes, 4096)),
        scratch_(threads_ * bytes_) {}

  template <class Work>
  void operator()(int64_t units, const Work& work) {
    std::atomic<int64_t> started{0}, next{0};
    most_units = at_least(most_units, units);
    const int team = static_cast<int>(at_most(units, threads_));
#pragma omp parallel num_threads(team) if (team > 1)
    {
      const FlushDenormals in_this_thread;
      char* scratch = scratch_.data() + started.fetch_add(1) * bytes_;
      for (int64_t unit; (unit = next.fetch_add(1)) < units;) work(unit, scratch);
      if (torch_release) torch_release(true);
    }
  }

 private:
  int64_t threads_, bytes_;
  Buffer scratch_;
};

// Cuts items whose rows start at start(item) into blocks of about `rows` rows.
template <class Start>
std::vector<int64_t> blocks_of(int64_t items, int64_t rows, const Start& start) {
  std::vector<int64_t> bounds{0};
  for (int64_t item = 1; item < items; ++item)
    if (start(item + 1) - start(bounds.back()) > rows) bounds.push_back(item);
  bounds.push_back(items);
  return bounds;
}

// A unit of the forward is one block of images against texts of about SPAN_ROWS tokens: enough that copying the images
// is a few per cent of the work, and few enough that 16 images against 8,192 texts feed forty threads.
constexpr int64_t SPAN_ROWS = 4096;

std::vector<int64_t> text_spans(const Problem& p, int64_t rows) {
  return blocks_of(p.texts, rows, [&](int64_t text) { return p.text_offsets[text]; });
}

std::vector<int64_t> image_blocks(const Isa& isa, const Problem& p) {
  std::vector<int64_t> bounds{0};
  while (bounds.back() < p.images) bounds.push_back(isa.block_end(p, bounds.back()));
  return bounds;
}

// The largest of size(range) over neighbouring bounds.
template <class Size>
int64_t largest(const std::vector<int64_t>& bounds, const Size& size) {
  int64_t most = 0;
  for (size_t b = 0; b + 1 < bounds.size(); ++b) most = at_least(most, size(Range{bounds[b], bounds[b + 1]}));
  return most;
}

void run_forward(const Isa& isa, const Call& call) {
  const auto spans = text_spans(call.problem, SPAN_ROWS), blocks = image_blocks(isa, call.problem);
  const int64_t count = static_cast<int64_t>(spans.size()) - 1;
  const auto bytes = call.temperature != 0 ? isa.smooth_bytes : isa.forward_bytes;
  const auto forward = call.temperature != 0 ? isa.smooth_forward : isa.forward;
  Workers for_each_unit(call.problem.threads, largest(blocks, [&](Range images) { return bytes(call, images); }));
  for_each_unit((static_cast<int64_t>(blocks.size()) - 1) * count, [&](int64_t unit, char* memory) {
    const int64_t block = unit / count, span = unit % count;
    forward(call, {blocks[block], blocks[block + 1]}, {spans[span], spans[span + 1]}, memory);
  });
}

std::vector<float> inverse_lengths(const int64_t* offsets, int64_t items) {
  std::vector<float> inverse(items);
  for (int64_t n = 0; n < items; ++n) inverse[n] = 1 / static_cast<float>(offsets[n + 1] - offsets[n]);
  return inverse;
}

void run_backward(const Isa& isa, Call call) {
  const Problem& p = call.problem;
  const auto inverse_image = inverse_lengths(p.image_offsets, p.images);
  const auto inverse_text = inverse_lengths(p.text_offsets, p.texts);
  call.inverse_image = inverse_image.data();
  call.inverse_text = inverse_text.data();
  const int64_t slices = div_up(p.dim, isa.slice_width(p));
  for (const bool image : {true, false}) {
    if (!(image ? call.grad_image : call.grad_text)) continue;
    const auto start = [&](int64_t item) { return (image ? p.image_offsets : p.text_offsets)[item]; };
    const int64_t items = image ? p.images : p.texts;
    prefer_huge_pages(image ? call.grad_image : call.grad_text,
                      static_cast<size_t>(start(items) * p.dim) * sizeof(float));
    // A block's sums stay in the second-level cache; smaller ones where there are threads to feed.
    const int64_t share = div_up(start(items) * slices, 2 * p.threads);
    const auto bounds = blocks_of(items, at_least(1, at_most(BLOCK_ROWS, share)), start);
    const int64_t rows = largest(bounds, [&](Range items) { return start(items.end) - start(items.begin); });
    const int64_t blocks = static_cast<int64_t>(bounds.size()) - 1;
    Workers for_each_unit(p.threads, isa.backward_bytes(p, rows));
    for_each_unit(blocks * slices, [&](int64_t unit, char* memory) {
      const Range range{bounds[unit / slices], bounds[unit / slices + 1]};
      isa.backward(call, image, range, unit % slices, memory);
    });
  }
}

void run_smooth_backward(const Isa& isa, const Call& call) {
  // At each step the blocks of images of a band work at once, each with a span of texts of its own, so nobody else adds to
  // its rows of either gradient. Fewer spans than blocks serve several groups of blocks, each with its own gradient of the
  // texts: at most UNITS * FEWEST_ROWS more rows, added in the order of the groups. Who meets whom, and when, depends on
  // the shapes alone, so the bits do not depend on the number of threads.
  constexpr int64_t UNITS = 32, FEWEST_ROWS = 512, MOST_GROUPS = 4;
  const Problem& p = call.problem;
  const int64_t total = p.text_offsets[p.texts], numbers = total * p.dim;
  const auto texts = text_spans(p, at_least(FEWEST_ROWS, div_up(total, UNITS))), images = image_blocks(isa, p);
  const int64_t spans = static_cast<int64_t>(texts.size()) - 1, blocks = static_cast<int64_t>(images.size()) - 1;
  const int64_t groups = spans == 1 ? 1 : at_most(MOST_GROUPS, div_up(at_most(UNITS, blocks), spans));
  const int64_t bands = div_up(blocks, at_most(UNITS, groups * spans)), units = div_up(blocks, bands);
  Workers for_each_unit(p.threads, largest(images, [&](Range some) { return isa.smooth_bytes(call, some); }));
  Buffer memory(call.grad_text ? (groups - 1) * numbers * static_cast<int64_t>(sizeof(float)) : 0);
  float* others = reinterpret_cast<float*>(memory.data());  // [groups - 1][total][dim], or null
  const auto in_parts = [&](int64_t numbers, const auto& work) {
    for_each_unit(units, [&](int64_t unit, char*) { work(part_of(numbers, units, unit)); });
  };
  const auto clear = [&](float* gradient, int64_t numbers) {
    if (!gradient) return;
    prefer_huge_pages(gradient, static_cast<size_t>(numbers) * sizeof(float));
    in_parts(numbers, [&](Range part) { std::fill_n(gradient + part.begin, part.end - part.begin, 0.0f); });
  };
  clear(call.grad_image, p.image_offsets[p.images] * p.dim);
  clear(call.grad_text, numbers);
  clear(others, (groups - 1) * numbers);
  for (int64_t band = 0; band < bands; ++band) {
    const Range own = part_of(blocks, bands, band);
    for (int64_t step = 0; step < spans; ++step)
      for_each_unit(own.end - own.begin, [&](int64_t unit, char* scratch) {
        const int64_t block = own.begin + unit, span = (unit / groups + step) % spans, group = unit % groups;
        Call of_group = call;
        if (others && group > 0) of_group.grad_text = others + (group - 1) * numbers;
        isa.smooth_backward(of_group, {images[block], images[block + 1]}, {texts[span], texts[span + 1]}, scratch);
      });
  }
  if (!others) return;
  in_parts(numbers, [&](Range part) {
    for (int64_t group = 1; group < groups; ++group)
      for (int64_t n = part.begin; n < part.end; ++n) call.grad_text[n] += others[(group - 1) * numbers + n];
  });
}

// The pairs of each item, one item after the other: order[start[item] .. start[item + 1]).
struct Groups {
  std::vector<int64_t> start, order;
  Groups(const int64_t* item_of, int64_t pairs, int64_t items) : start(items + 1), order(pairs) {
    for (int64_t n = 0; n < pairs; ++n) ++start[item_of[n] + 1];
    for (int64_t item = 0; item < items; ++item) start[item + 1] += start[item];
    std::vector<int64_t> next(start);
    for (int64_t n = 0; n < pairs; ++n) order[next[item_of[n]]++] = n;
  }
};

void run_pairs(const Isa& isa, Call call) {
  constexpr int64_t AT_ONCE = 16;  // pairs of a unit: enough that copying an image is little beside its products
  std::vector<int64_t> i2t_at(call.pairs + 1), t2i_at(call.pairs + 1);
  for (int64_t n = 0; n < call.pairs; ++n) {
    const Range image = call.image_rows[call.image_of[n]], text = call.text_rows[call.text_of[n]];
    i2t_at[n + 1] = i2t_at[n] + image.end - image.begin;
    t2i_at[n + 1] = t2i_at[n] + text.end - text.begin;
  }
  call.i2t_at = i2t_at.data();
  call.t2i_at = t2i_at.data();
  Workers for_each_unit(call.problem.threads, call.i2t ? isa.pairs_bytes(call) : 0);
  for (const bool image : {true, false}) {
    const int64_t items = image ? call.problem.images : call.problem.texts;
    const Groups of(image ? call.image_of : call.text_of, call.pairs, items);
    if (call.i2t && image)
      for_each_unit(div_up(call.pairs, AT_ONCE), [&](int64_t unit, char* memory) {
        isa.pairs_forward(call, of.order.data(), {unit * AT_ONCE, at_most(call.pairs, (unit + 1) * AT_ONCE)}, memory);
      });
    float* gradient = image ? call.grad_image : call.grad_text;
    if (!gradient) continue;
    const Range* rows = image ? call.image_rows : call.text_rows;
    const int64_t total = image ? call.image_total : call.text_total, dim = call.problem.dim;
    prefer_huge_pages(gradient, static_cast<size_t>(total * dim) * sizeof(float));
    for_each_unit(items, [&](int64_t item, char*) {
      const int64_t first = item ? rows[item].begin : 0, end = item + 1 < items ? rows[item + 1].begin : total;
      std::fill_n(gradient + first * dim, (end - first) * dim, 0.0f);
      isa.pairs_backward(call, image, of.order.data(), {of.start[item], of.start[item + 1]});
    });
  }
}

// Of the items' rows, from their offsets or, for given pairs, their bounds.
int64_t longest(const int64_t* rows, int64_t items, bool bounds) {
  int64_t most = 1;
  for (int64_t n = 0; n < items; ++n, rows += bounds ? 2 : 1) most = at_least(most, rows[1] - rows[0]);
  return most;
}

}  // namespace
}  // namespace interaction

using namespace interaction;

extern "C" {

#define INTERACTION_EXPORT __attribute__((visibility("default")))

// Names of the instruction sets this CPU can run, best first, separated by spaces.
INTERACTION_EXPORT const char* interaction_isas() {
  static const std::string names = [] {
    std::string all;
    for (const Isa* isa : available_isas()) all += (all.empty() ? "" : " ") + std::string(isa->name);
    return all;
  }();
  return names.c_str();
}

// Of the last pass, the most units of work that threads could take at once.
INTERACTION_EXPORT int64_t interaction_units() { return most_units; }

// Scores of items for a text, see Search. Returns 0, or 1: this CPU lacks the instructions.
INTERACTION_EXPORT int interaction_search(const void* words, const float* weights, int64_t vectors, int64_t columns,
                              const void* tokens, int64_t token_bytes, const float* scales, int64_t scale_step,
                              const int64_t* offsets, int64_t items, int int8, float* scores, int threads) {
#if INTERACTION_HAS_AVX512_BF16
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vnni")) return 1;
  constexpr int64_t AT_ONCE = 64;  // items of a unit
  const Search s = {words,  weights,    vectors, columns,   static_cast<const char*>(tokens), token_bytes,
                    scales, scale_step, offsets, int8 != 0, scores};
  Workers for_each_unit(threads, 0);
  for_each_unit(div_up(items, AT_ONCE), [&](int64_t unit, char*) {
    search(s, {unit * AT_ONCE, at_most(items, (unit + 1) * AT_ONCE)});
  });
  return 0;
#else
  return 1;
#endif
}

// Gives the functions of PyTorch whose products of bfloat16 "amx" takes. Returns 0, or 1: they do not multiply here.
INTERACTION_EXPORT int interaction_use(Multiply multiply, void (*release)(bool)) {
#if INTERACTION_HAS_AVX512_BF16
  constexpr int64_t N = 32;
  alignas(64) uint16_t ones[N * N];
  alignas(64) float sums[N * N] = {};
  std::fill_n(ones, N * N, uint16_t{0x3F80});
  try {
    multiply(N, N, N, N, N, N, false, ones, ones, sums, true);
    release(true);
  } catch (...) {  // whatever PyTorch says of this CPU
    return 1;
  }
  if (!std::all_of(sums, sums + N * N, [](float sum) { return sum == N; })) return 1;
  torch_multiply = multiply, torch_release = release;
  return 0;
#else
  return 1;
#endif
}

// Any pass: a backward where i2t is null, of the smooth maximum where there is a temperature, of given pairs where there
// are any. For these an item has a first and a last row in place of its offset, [items][2], ascending. An empty name means
// the best instruction set. Returns 0, or 1: unknown instruction set, 2: out of memory.
INTERACTION_EXPORT int interaction_run(const char* isa_name, const void* image, const void* text, const int64_t* image_rows,
                           const int64_t* text_rows, int64_t images, int64_t texts, int64_t dim, int bf16, int wide,
                           int threads, float temperature, int shifted, float* i2t, float* t2i, const float* grad_i2t,
                           const float* grad_t2i, void* i2t_map, void* t2i_map, float* grad_image, float* grad_text,
                           int64_t pairs, const int64_t* image_of, const int64_t* text_of, int64_t image_total,
                           int64_t text_total) {
  const bool amx = torch_multiply && std::strcmp(isa_name, "amx") == 0;
  const Isa* isa = find_isa(amx ? "avx512_bf16" : isa_name);
  if (!isa) return 1;
  most_units = 0;
  Call call{};
  call.problem = {image, text, image_rows, text_rows, images, texts, dim, longest(image_rows, images, pairs),
                  longest(text_rows, texts, pairs), threads, bf16 != 0, wide != 0,
                  amx ? torch_multiply : nullptr};
  call.maps = {i2t_map, t2i_map};
  call.i2t = i2t, call.t2i = t2i, call.grad_i2t = grad_i2t, call.grad_t2i = grad_t2i;
  call.grad_image = grad_image, call.grad_text = grad_text;
  call.pairs = pairs, call.image_of = image_of, call.text_of = text_of;
  call.image_rows = reinterpret_cast<const Range*>(image_rows);
  call.text_rows = reinterpret_cast<const Range*>(text_rows);
  call.temperature = temperature, call.shifted = shifted != 0, call.image_total = image_total, call.text_total = text_total;
  try {
    if (pairs)
      run_pairs(*isa, call);
    else if (i2t)
      run_forward(*isa, call);
    else
      temperature != 0 ? run_smooth_backward(*isa, call) : run_backward(*isa, call);
  } catch (const std::bad_alloc&) {
    return 2;
  }
  return 0;
}
}
