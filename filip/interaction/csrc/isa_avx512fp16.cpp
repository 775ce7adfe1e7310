// AVX-512 with arithmetic in 16-bit floating point: the backward of bfloat16 tokens. All else is avx512vnni's.
#include "interaction.h"

#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 16 : __GNUC__ >= 12)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512fp16,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512fp16,avx2,fma")
#endif

#define VECTOR_BYTES 64
#define HALF_SUMS
#define SLICE_VECTORS 4

namespace filip {
namespace {
#include "vector.inl"
#include "backward.inl"
}  // namespace

const Isa* avx512fp16_isa() {
  static const Isa* other = avx512vnni_isa();
  static const Isa isa = {"avx512fp16", other->image_block, other->packed_bytes, other->pack_group,
                          other->forward_bytes, other->forward, true, backward_slice_width, backward_bytes, backward};
  return &isa;
}
}  // namespace filip

#ifdef __clang__
#pragma clang attribute pop
#endif
#else
namespace filip {
const Isa* avx512fp16_isa() { return nullptr; }
}  // namespace filip
#endif
