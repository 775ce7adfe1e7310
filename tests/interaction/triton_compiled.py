"""Run by test_triton.py in a separate process: compile all kernels for GPUs that need not be there.

Prints a line for each: target, dtype, kernel and the shared memory of a block in bytes.
"""

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from late_interaction import triton_backend, triton_smooth
from late_interaction.triton_launch import of_rows
from late_interaction.triton_layout import GROUP

CARDS = {"80": ("cuda", 80, 32), "90": ("cuda", 90, 32), "100": ("cuda", 100, 32), "gfx942": ("hip", "gfx942", 64)}
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def shared_memory(module: object, name: str, card: str, dtype: torch.dtype, d: int = 256) -> int:
    """Compile a kernel for images of 49 tokens, with what the JIT assumes: pointers are multiples of 16 bytes."""
    kernel = getattr(module.KERNELS, name)  # type: ignore[attr-defined]
    capability = int(card) if card.isdigit() else 0
    options = of_rows(module.launch_options(dtype, d, capability)[name], 64)  # type: ignore[attr-defined]
    launch = {key: options.pop(key) for key in ("num_warps", "num_stages", "maxnreg") if key in options}
    options |= {"GROUP": GROUP, "d": d, "WIDEN": False, "RAGGED": False, "SAVE": True, "FIRST": True, "LAST": True}
    constants = {key: value for key, value in options.items() if key in kernel.arg_names}
    known = dict.fromkeys(("images", "texts", "weight_i", "weight_t"), f"*{NAMES[dtype]}")
    known |= dict.fromkeys(("i2t", "t2i", "best", "gradient", "row_sums", "entry_sums"), "*fp32")
    known |= dict.fromkeys(("image_map", "text_map"), "*u8") | dict.fromkeys(("to_exponent", "to_logarithm"), "fp32")
    signature = {
        key: "constexpr"
        if key in constants
        else known.get(key, "*i32" if key.endswith("_ptr") or key == "listed" else "i32")
        for key in kernel.arg_names
    }
    hints = {
        (position,): [["tt.divisibility", 16]]
        for position, key in enumerate(kernel.arg_names)
        if signature[key].startswith("*") or key == "width"
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=hints)
    return int(triton.compile(source, target=GPUTarget(*CARDS[card]), options=launch).metadata.shared)


if __name__ == "__main__":
    for card in sys.argv[1:]:
        for dtype in [torch.bfloat16, *([torch.float32] if card == "80" else [])]:
            for module in (triton_backend, triton_smooth):
                for name in ("forward", "image", "text"):
                    print(card, NAMES[dtype], module.__name__, name, shared_memory(module, name, card, dtype))
