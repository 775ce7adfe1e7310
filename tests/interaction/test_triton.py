"""The Triton kernels without a GPU: values in the interpreter, and machine code from the compiler."""

import json
import os
from pathlib import Path

import pytest

from tests.support.processes import run_python

pytest.importorskip("triton")
HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def run(*arguments: str, **environment: str) -> str:
    done = run_python(*arguments, variables={**os.environ, **environment}, cwd=ROOT, timeout=550)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_in_the_interpreter() -> None:
    """The switch is read when Triton is imported, so the tests run in a process that sets it.

    The interpreter multiplies with NumPy, and OpenBLAS's kernel for Haswell and Zen gives equal rows of one product
    different last bits: of two equal tokens the second may win. Sandybridge's does not.
    """
    how = {"TRITON_INTERPRET": "1", "OPENBLAS_CORETYPE": "Sandybridge"}
    output = run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "triton_interpreted.py"), **how)
    assert "passed" in output and "skipped" not in output


@pytest.mark.slow
def test_machine_code_of_what_is_launched(tmp_path: Path) -> None:
    """Two blocks of the forward fit on a processor; no loop lives off spilled registers; no batch recompiles."""
    output = run("-m", "tests.interaction.triton_compiled", TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    made = [json.loads(line) for line in output.splitlines()]
    assert [(kernel["kernel"], kernel["capability"], kernel["ragged"]) for kernel in made] == [
        (f"{kind}{name}", capability, ragged)
        for capability, kinds in ((80, ("", "smooth_")), (90, ("", "smooth_")), (86, ("",)))
        for ragged in (False, True)[: len(kinds)]
        for kind in kinds
        for name in ("forward", "image", "text")
    ]
    shared_memory = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024}  # per processor, with 65,536 registers
    smooth = [kernel for kernel in made if kernel["kernel"].startswith("smooth")]
    for kernel in smooth:  # one block a processor; tiles come while others multiply
        assert kernel["shared"] + 1024 <= shared_memory[kernel["capability"]], kernel
        assert kernel["spills"] == 0 and kernel["tensor_core"] > 0 and kernel["async_copies"] > 0, kernel
        assert kernel["wgmma"] == kernel["tensor_core"] * (kernel["capability"] == 90), kernel
        assert kernel["specialized"] == ["n1", "width"][: 1 + kernel["kernel"].endswith("forward")]
    for kernel in [kernel for kernel in made if kernel not in smooth]:
        blocks = 2 if kernel["kernel"] == "forward" and kernel["dtype"] != "fp32" else 1
        assert blocks * kernel["threads"] * kernel["registers"] <= 65_536, kernel
        assert blocks * (kernel["shared"] + 1024) <= shared_memory[kernel["capability"]] + 1024, kernel
        assert kernel["tensor_core"] > 0 and kernel["wgmma"] == kernel["tensor_core"] * (kernel["capability"] == 90)
        # Triton 3.9 spills 29 registers of the ragged text gradient on Hopper, 3.7 one: within the cycles below.
        assert kernel["spills"] <= 29 * (kernel["ragged"] and kernel["kernel"] == "text"), kernel
        # Comparisons, and all that is issued, take at most 0.72 of the product's cycles: 1,024 a tile on Hopper.
        warps = kernel["threads"] / 32 / 4  # of each scheduler
        cycles = warps * max(2 * kernel["half_rate"], kernel["instructions"])
        tiles = 2 if kernel["kernel"] == "text" else 1
        assert kernel["capability"] != 90 or cycles <= 0.72 * 1024 * tiles, kernel
        # Hopper's forward has no room for a second tile of text; its other block works while it waits.
        assert (kernel["async_copies"] > 0) == ((kernel["kernel"], kernel["capability"]) != ("forward", 90))
        assert kernel["specialized"] == ["n1", "width"][: 1 + kernel["kernel"].endswith("forward")]


@pytest.mark.slow
def test_on_this_cpu_it_says_why_not() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter runs here")
    code = """
import torch
from late_interaction import late_interaction
try:
    late_interaction(torch.zeros(1, 2, 8), torch.zeros(2, 8), torch.tensor([2]), backend="triton")
except ValueError as error:
    print(error)
"""
    assert "run on CUDA devices, not on cpu; use 'tiled' or 'auto'" in run("-c", code)
