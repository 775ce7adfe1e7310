"""Run by test_triton.py in a separate process: compile the kernels for GPUs that need not be there.

Prints, as a line of JSON per kernel, what the machine code takes (registers and stack of a thread, shared memory of a
block) and what its innermost loop does: tensor-core instructions, asynchronous copies, accesses to spilled registers,
and the comparisons, selections and other instructions of which a processor takes half a warp per scheduler and cycle
(64 lanes in all, from 7.0 to 9.0: "Throughput of Native Arithmetic Instructions" in NVIDIA's CUDA programming guide).

    python -m tests.interaction.triton_compiled [capability] [dtype] [n1] [ragged [last]]

It is the code for the first block of an image of n1 tokens, or for the last: 80 tokens have 64 rows and 16 rows.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from late_interaction import triton_backend, triton_smooth
from late_interaction import triton_kernels as kernels
from late_interaction import triton_smooth_kernels as smooth
from late_interaction.triton_launch import of_rows
from late_interaction.triton_layout import GROUP, cut

D = 256
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
KERNELS = {
    "forward": kernels.forward_kernel,
    "image": kernels.image_gradient_kernel,
    "text": kernels.text_gradient_kernel,
    "smooth_forward": smooth.smooth_forward_kernel,
    "smooth_image": smooth.smooth_image_gradient_kernel,
    "smooth_text": smooth.smooth_text_gradient_kernel,
}
HALF_RATE = "[FI]SETP|FSET|F?SEL|PLOP3|LOP3|[FI]MNMX|VIMNMX|VIADDMNMX|SHF|LEA|IADD3|VIADD|PRMT|MOV|CS2R|I?ABS"
HALF_RATE += "|F2FP|I2FP?"  # conversions
TRITON_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


def types(dtype: torch.dtype) -> dict[str, str]:
    """Return the types of the pointers that are not *i32; captions and images have at most 255 tokens."""
    tokens = f"*{TRITON_NAMES[dtype]}"
    floats = dict.fromkeys(("i2t", "t2i", "best", "gradient", "row_sums", "entry_sums"), "*fp32")
    floats |= dict.fromkeys(("to_exponent", "to_logarithm"), "fp32")
    maps = dict.fromkeys(("image_map", "text_map"), "*u8")
    integers = dict.fromkeys(("best_row", "listed"), "*i32")
    return dict.fromkeys(("images", "texts", "weight_i", "weight_t"), tokens) | floats | maps | integers


def innermost_loop(code: str) -> list[str]:
    """Return the instructions of the shortest loop that multiplies on tensor cores; where a kernel spends its time."""
    lines = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/.*$", code, re.MULTILINE)
    loops = []
    for end, line in enumerate(lines):
        target = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", line)
        if target and (begin := int(target[1], 16) // 16) < end:  # an instruction has 16 bytes
            loops.append(lines[begin : end + 1])
    return min((loop for loop in loops if count("HG?MMA", loop)), key=len)


def count(names: str, code: list[str]) -> int:
    return sum(bool(re.search(rf"(?<![.\w])(?:{names})\b", line)) for line in code)


def report(name: str, capability: int, dtype: torch.dtype, n1: int, ragged: bool, block: int = 0) -> dict[str, object]:
    kernel, short = KERNELS[name], name.removeprefix("smooth_")
    module = triton_backend if short == name else triton_smooth
    options = module.launch_options(dtype, D, capability)[short]
    start, rows = cut(n1, options["ROWS"])[block]
    options = of_rows(options, rows)
    launch = {key: options.pop(key) for key in ("num_warps", "num_stages", "maxnreg") if key in options}
    constants = {
        **options,
        "GROUP": GROUP,
        "d": D,
        "WIDEN": False,
        "RAGGED": ragged,
        "SAVE": True,
        "FIRST": start == 0,
        "LAST": start + rows >= n1,
    }
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    known = types(dtype)
    signature = {
        key: "constexpr" if key in constants else known.get(key, "*i32" if key.endswith("_ptr") else "i32")
        for key in kernel.arg_names
    }
    # What the JIT assumes too, and what changes shared memory and loads: pointers and the width divisible by 16.
    hints = {
        (position,): [["tt.divisibility", 16]]
        for position, key in enumerate(kernel.arg_names)
        if signature[key].startswith("*") or key == "width"
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=hints)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("--dump-resource-usage", "--dump-sass")
        )
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()  # type: ignore[union-attr]
    loop = innermost_loop(code)
    return {
        "kernel": name,
        "capability": capability,
        "dtype": TRITON_NAMES[dtype],
        "n1": n1,
        "ragged": ragged,
        "specialized": [p.name for p in kernel.params if signature[p.name] == "i32" and not p.do_not_specialize],
        "threads": 32 * launch["num_warps"],
        "registers": int(registers),
        "stack": int(stack),
        "shared": made.metadata.shared,
        "tensor_core": count(r"HG?MMA", loop),
        "wgmma": count("HGMMA", loop),
        "async_copies": count("LDGSTS", loop),
        "spills": count("STL|LDL", loop),
        "half_rate": count(HALF_RATE, loop),
        "instructions": len(loop),
    }


if __name__ == "__main__":
    cases = [
        (capability, dtype, 80 if ragged else n1, ragged)
        for capability, dtype, n1 in ((80, "float16", 49), (90, "bfloat16", 49), (86, "float32", 49))
        for ragged in (False, True)[: 1 if capability == 86 else 2]
    ]
    if len(sys.argv) > 1:
        cases = [(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), "ragged" in sys.argv)]
    for capability, dtype, n1, ragged in cases:
        for name in [name for name in KERNELS if capability != 86 or not name.startswith("smooth_")]:
            block = -1 if "last" in sys.argv else 0
            print(json.dumps(report(name, capability, getattr(torch, dtype), n1, ragged, block)), flush=True)
