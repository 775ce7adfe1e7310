"""Run by test_triton.py in a process of its own: compile the kernels for GPUs that need not be there.

Prints one line per kernel: name, compute capability, tensor-core instructions, bytes of machine code, and
bytes of shared memory.
"""

from __future__ import annotations

import re

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from filip.interaction import triton_kernel as k

POINTERS = {
    "i2t": "*fp32",
    "t2i": "*fp32",
    "gradient": "*fp32",
    "weight_i": "*fp32",
    "weight_t": "*fp32",
    "image_map": "*u8",
    "text_map": "*u8",
    "row_ptr": "*i32",
    "length_ptr": "*i32",
    "text_ptr": "*i32",
}
TRITON_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


def compile_kernel(kernel: triton.JITFunction, options: dict[str, int], tokens: str, capability: int) -> None:
    warps = options.pop("num_warps")
    constants = {**options, "WIDEN": False, "SAVE": True}
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in ("images", "texts"):
            signature[name] = f"*{tokens}"
        else:
            signature[name] = POINTERS.get(name, "i32")
    # What the JIT assumes too, and what changes shared memory and loads: pointers and the width divisible by 16.
    hints = {
        (position,): [["tt.divisibility", 16]]
        for position, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or name == "d"
    }
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=hints)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    instructions = len(re.findall(r"wgmma\.mma_async|mma\.sync", made.asm["ptx"]))
    print(kernel.__name__, capability, instructions, len(made.asm["cubin"]), made.metadata.shared)


if __name__ == "__main__":
    for capability, dtype, size in ((80, torch.float16, 32), (90, torch.bfloat16, 128)):
        options = k.launch_options(dtype, 256, size)
        for name, kernel in (
            ("forward", k._forward_kernel),
            ("image", k._image_gradient_kernel),
            ("text", k._text_gradient_kernel),
        ):
            compile_kernel(kernel, dict(options[name]), TRITON_NAMES[dtype], capability)
