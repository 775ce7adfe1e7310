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

#if INTERACTION_HAS_AMX
#include <sys/syscall.h>
#endif

namespace interaction {
namespace {

constexpr int64_t BLOCK_ROWS = 3000;  // destination rows of a backward unit: 768 KB in slices of 64 columns

#if INTERACTION_HAS_AMX
// Whether this CPU multiplies tiles of bfloat16, and Linux lets this process use them: it asks once, and its threads and
// children may use them from then on.
bool has_tiles() {
#ifdef INTERACTION_TILES_HEADER
  return true;
#else
  constexpr unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24;
  constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  static const bool granted = [] {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & AMX_BF16) && (edx & AMX_TILE) &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
  }();
  return granted;
#endif
}
#endif

// Isas of this CPU, the newest first.
std::vector<const Isa*> available_isas() {
  std::vector<const Isa*> isas;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#if INTERACTION_HAS_AMX
  if (avx512 && __builtin_cpu_supports("avx512bf16") && has_tiles()) isas.push_back(amx_isa());
#endif
#if INTERACTION_HAS_AVX512_BF16
  if (avx512 && __builtin_cpu_supports("avx512bf16")) isas.push_back(avx512_bf16_isa());
#endif
  if (avx512) isas.push_back(avx512_isa());
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
    const int team = static_cast<int>(at_most(units, threads_));
#pragma omp parallel num_threads(team) if (team > 1)
    {
      const FlushDenormals in_this_thread;
      char* scratch = scratch_.data() + started.fetch_add(1) * bytes_;
      for (int64_t unit; (unit = next.fetch_add(1)) < units;) work(unit, scratch);
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

// Runs forward(images, texts, memory) for every block of images and every span of texts.
template <class Bytes, class Forward>
void run_tiles(const Isa& isa, const Problem& p, const Bytes& bytes, const Forward& forward) {
  const auto spans = text_spans(p, SPAN_ROWS), blocks = image_blocks(isa, p);
  const int64_t count = static_cast<int64_t>(spans.size()) - 1;
  Workers for_each_unit(p.threads, largest(blocks, bytes));
  for_each_unit((static_cast<int64_t>(blocks.size()) - 1) * count, [&](int64_t unit, char* memory) {
    const int64_t block = unit / count, span = unit % count;
    forward(Range{blocks[block], blocks[block + 1]}, Range{spans[span], spans[span + 1]}, memory);
  });
}

void run_forward(const Isa& isa, const ForwardCall& call) {
  run_tiles(
      isa, call.problem, [&](Range images) { return isa.forward_bytes(call, images); },
      [&](Range images, Range texts, char* memory) { isa.forward(call, images, texts, memory); });
}

std::vector<float> inverse_lengths(const int64_t* offsets, int64_t items) {
  std::vector<float> inverse(items);
  for (int64_t n = 0; n < items; ++n) inverse[n] = 1 / static_cast<float>(offsets[n + 1] - offsets[n]);
  return inverse;
}

void run_backward(const Isa& isa, BackwardCall call) {
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

void run_smooth_forward(const Isa& isa, const SmoothCall& call) {
  run_tiles(
      isa, call.problem, [&](Range images) { return isa.smooth_bytes(call, images, false); },
      [&](Range images, Range texts, char* memory) { isa.smooth_forward(call, images, texts, memory); });
}

void run_smooth_backward(const Isa& isa, const SmoothCall& call) {
  // One block of images after the other meets all spans of texts at once: each span owns its rows of the texts'
  // gradient, and sums that of the images apart; these are then added in the order of the spans. So the bits do not
  // depend on the number of threads, and the sums take SPANS blocks of images.
  constexpr int64_t SPANS = 32, FEWEST_ROWS = 512;
  const Problem& p = call.problem;
  const int64_t total = p.text_offsets[p.texts];
  const auto spans = text_spans(p, at_least(FEWEST_ROWS, div_up(total, SPANS))), blocks = image_blocks(isa, p);
  const int64_t count = static_cast<int64_t>(spans.size()) - 1;
  const auto rows_of = [&](Range images) { return image_rows(p, images).end - image_rows(p, images).begin; };
  const int64_t size = round_up(largest(blocks, rows_of), 32) * isa.padded_dim(p);
  Workers for_each_unit(p.threads, largest(blocks, [&](Range images) { return isa.smooth_bytes(call, images, true); }));
  std::vector<float> sums(call.grad_image ? count * size : 0);
  const auto clear = [](float* gradient, int64_t numbers) {
    if (!gradient) return;
    prefer_huge_pages(gradient, static_cast<size_t>(numbers) * sizeof(float));
    std::fill_n(gradient, numbers, 0.0f);
  };
  clear(call.grad_text, total * p.dim);
  clear(call.grad_image, p.image_offsets[p.images] * p.dim);
  for (size_t b = 0; b + 1 < blocks.size(); ++b) {
    const Range images{blocks[b], blocks[b + 1]};
    std::fill(sums.begin(), sums.end(), 0.0f);
    for_each_unit(count, [&](int64_t span, char* memory) {
      float* own = call.grad_image ? sums.data() + span * size : nullptr;
      isa.smooth_backward(call, images, {spans[span], spans[span + 1]}, own, memory);
    });
    if (!call.grad_image) continue;
    for (int64_t span = 1; span < count; ++span)
      for (int64_t n = 0; n < size; ++n) sums[n] += sums[span * size + n];
    isa.add_strips(p, sums.data(), rows_of(images), call.grad_image + p.image_offsets[images.begin] * p.dim);
  }
}

int64_t longest(const int64_t* offsets, int64_t items) {
  int64_t most = 1;
  for (int64_t n = 0; n < items; ++n) most = at_least(most, offsets[n + 1] - offsets[n]);
  return most;
}

// 0, or 1: unknown instruction set, 2: out of memory.
template <class Run>
int run(const char* isa_name, const Run& pass) {
  const Isa* isa = find_isa(isa_name);
  if (!isa) return 1;
  try {
    pass(*isa);
  } catch (const std::bad_alloc&) {
    return 2;
  }
  return 0;
}

}  // namespace
}  // namespace interaction

using namespace interaction;

extern "C" {

#define INTERACTION_EXPORT __attribute__((visibility("default")))

// The problem, as every pass takes it. An empty name means the best instruction set.
#define INTERACTION_PROBLEM                                                                                           \
  const char *isa_name, const void *image, const void *text, const int64_t *image_offsets,                      \
      const int64_t *text_offsets, int64_t images, int64_t texts, int64_t dim, int bf16, int wide, int threads
#define INTERACTION_AS_PROBLEM                                                                                        \
  Problem {                                                                                                     \
    image, text, image_offsets, text_offsets, images, texts, dim, longest(image_offsets, images),               \
        longest(text_offsets, texts), threads, bf16 != 0, wide != 0                                             \
  }

// Names of the instruction sets this CPU can run, best first, separated by spaces.
INTERACTION_EXPORT const char* interaction_isas() {
  static const std::string names = [] {
    std::string all;
    for (const Isa* isa : available_isas()) all += (all.empty() ? "" : " ") + std::string(isa->name);
    return all;
  }();
  return names.c_str();
}

// Both maps may be null.
INTERACTION_EXPORT int interaction_forward(INTERACTION_PROBLEM, float* i2t, float* t2i, void* i2t_map, void* t2i_map) {
  const ForwardCall call{INTERACTION_AS_PROBLEM, {i2t_map, t2i_map}, i2t, t2i};
  return run(isa_name, [&](const Isa& isa) { run_forward(isa, call); });
}

// Either gradient may be null.
INTERACTION_EXPORT int interaction_backward(INTERACTION_PROBLEM, const float* grad_i2t, const float* grad_t2i, void* i2t_map,
                                void* t2i_map, float* grad_image, float* grad_text) {
  const BackwardCall call{INTERACTION_AS_PROBLEM, {i2t_map, t2i_map}, grad_i2t,   grad_t2i,
                          nullptr,          nullptr,            grad_image, grad_text};
  return run(isa_name, [&](const Isa& isa) { run_backward(isa, call); });
}

// As the two above, for the smooth maximum. Nothing is saved between them.
INTERACTION_EXPORT int interaction_smooth_forward(INTERACTION_PROBLEM, float temperature, int shifted, float* i2t, float* t2i) {
  const SmoothCall call{INTERACTION_AS_PROBLEM, temperature, shifted != 0, i2t, t2i, nullptr, nullptr, nullptr, nullptr};
  return run(isa_name, [&](const Isa& isa) { run_smooth_forward(isa, call); });
}

INTERACTION_EXPORT int interaction_smooth_backward(INTERACTION_PROBLEM, float temperature, int shifted, const float* grad_i2t,
                                       const float* grad_t2i, float* grad_image, float* grad_text) {
  const SmoothCall call{INTERACTION_AS_PROBLEM, temperature, shifted != 0, nullptr, nullptr,
                        grad_i2t,         grad_t2i,    grad_image,   grad_text};
  return run(isa_name, [&](const Isa& isa) { run_smooth_backward(isa, call); });
}
}
