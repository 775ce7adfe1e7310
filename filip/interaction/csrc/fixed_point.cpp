// AVX-512 with VNNI: the product in 16-bit fixed point; arg-maxima and values of float32 tokens still those of float32.
//
// vpdpwssd multiplies 32 pairs of int16 and adds them exactly in int32, twice the work of a float32
// FMA (and, where measured, four times that of vdpbf16ps). Each image and each text is scaled so that its longest
// token has length 45000: by Cauchy-Schwarz no partial sum overflows, and the error of a similarity is at most
//     |du| |v| + |u| |dv|        (u, v the rounded tokens; du, dv what rounding changed, measured per token),
// about 2e-4 of the largest possible similarity at d = 256. A maximum that leads by more than twice this bound is
// certainly the right one. For float32 tokens, where others lie within it (1.4 % of the maxima of random tokens) all
// candidates are computed again in float32, and the lowest index among the largest wins; then the rounding is taken
// back out of the values: du.v + u.dv of every winning pair, computed in int8 (vpdpbusd, a few per cent of the product),
// leaves them within some 1e-6 of float32's.
// For bfloat16 tokens neither is done. Scaled by a power of two, all but their small numbers are integers already, and
// the winners that differ are a fiftieth of those that rounding the tokens to bfloat16 has changed, or fewer
// (bench/bfloat16.py). Equal tokens still tie exactly.
//
// If a third of a group's maxima are in doubt (all tokens nearly alike, as with collapsed features), the rest of the
// unit is done by the plain float32 kernel: screening would cost more than it saves.
#include "interaction.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define FILIP_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,popcnt,bmi,bmi2"
#ifdef __clang__
#pragma clang attribute push(__attribute__((target(FILIP_TARGET))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,popcnt,bmi,bmi2")
#endif


namespace filip {
namespace {
constexpr int LANES = 16;
#include "fixed_pack.inl"
#include "fixed_exact.inl"
#include "fixed_product.inl"
#include "fixed_maxima.inl"
#include "fixed_forward.inl"
}  // namespace

const Isa* avx512vnni_isa() {
  static const Isa* plain = avx512_isa();
  static const Isa isa = {"avx512vnni", fixed_image_block, fixed_packed_bytes, fixed_pack_group, fixed_bytes,
                          fixed_forward, plain->slice_width, plain->backward_bytes, plain->weight_bound_count,
                          plain->find_weight_bounds, plain->backward};
  return &isa;
}
}  // namespace filip

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif
