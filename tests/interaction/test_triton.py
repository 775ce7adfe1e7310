"""The Triton kernels without a GPU: values in the interpreter, and machine code from the compiler."""

import os
from pathlib import Path

import pytest
import torch

from late_interaction import late_interaction
from tests.support.processes import run_well

pytest.importorskip("triton")
HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def run(*arguments: str, **environment: str) -> str:
    return run_well(*arguments, variables={**os.environ, **environment}, cwd=ROOT, timeout=550).stdout


@pytest.mark.slow
def test_in_the_interpreter() -> None:
    """The switch is read when Triton is imported, so the tests run in a process that sets it."""
    tests = str(HERE / "triton_interpreted.py")
    output = run("-m", "pytest", "-q", "-p", "no:cacheprovider", tests, TRITON_INTERPRET="1")
    assert "passed" in output and "skipped" not in output


@pytest.mark.slow
def test_kernels_compile_for_four_gpus_within_their_shared_memory(tmp_path: Path) -> None:
    most = {"80": 163, "90": 227, "100": 227, "gfx942": 64}  # KB of a block
    where = {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"}
    output = run("-m", "tests.interaction.triton_compiled", *most, **where)
    made = [line.split() for line in output.splitlines() if line.split()[0] in most]
    assert len(made) == 5 * 6
    for card, *_, shared in made:
        assert int(shared) <= 1024 * most[card], made


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter runs here")
def test_on_this_cpu_it_says_why_not() -> None:
    with pytest.raises(ValueError, match="run on CUDA devices, not on cpu; use 'tiled' or 'auto'"):
        late_interaction(torch.zeros(1, 2, 8), torch.zeros(2, 8), torch.tensor([2]), backend="triton")
