// All passes for the instruction set of the file that includes this.
#pragma once

#include "backward.h"
#include "pairs.h"
#include "smooth.h"

namespace interaction {
namespace {

const Isa* kernels(const char* name) {
  static const Isa isa = {name,           block_end,    forward_bytes, forward,        backward_slice_width,
                          backward_bytes, backward,     smooth_bytes,  smooth_forward, smooth_backward,
                          pairs_bytes,    pairs_forward, pairs_backward};
  return &isa;
}

}  // namespace
}  // namespace interaction
