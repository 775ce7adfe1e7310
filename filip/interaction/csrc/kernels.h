// Both passes for the instruction set of the file that includes this.
#pragma once

#include "backward.h"
#include "forward.h"

namespace filip {
namespace {

const Isa* kernels(const char* name) {
  static const Isa isa = {name,    image_block, forward_bytes, forward, backward_slice_width, backward_bytes,
                          backward};
  return &isa;
}

}  // namespace
}  // namespace filip
