// Whatever the compiler's base target offers (SSE2 on x86-64, NEON on ARM): the fallback of every machine.
#include "kernels.h"

const filip::Isa* filip::portable_isa() { return kernels("scalar"); }
