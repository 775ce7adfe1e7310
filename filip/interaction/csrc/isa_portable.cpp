// Whatever the compiler's base target offers (SSE2 on x86-64, NEON on ARM): the fallback of every machine.
#include "interaction.h"

#define VECTOR_BYTES 16
#define STRIP_VECTORS 2
#define TILE_ROWS 4
#define BLOCK_LANES 128
#define SLICE_VECTORS 4

namespace filip {
namespace {
#include "vector.inl"
#include "forward.inl"
#include "backward.inl"
}  // namespace

const Isa* portable_isa() {
  static const Isa isa = {"scalar", image_block, forward_bytes, forward, backward_slice_width, backward_bytes, backward};
  return &isa;
}
}  // namespace filip
