"""The Triton kernels without a GPU: values in the interpreter, and machine code from the compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_in_the_interpreter() -> None:
    """The switch is read when Triton is imported, so the tests run in a process that sets it."""
    tests = HERE / "triton_interpreted.py"
    output = run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests), TRITON_INTERPRET="1")
    assert "passed" in output and "skipped" not in output


@pytest.mark.slow
def test_compiles_to_tensor_core_code(tmp_path: Path) -> None:
    output = run(
        "-m", "tests.interaction.triton_compiled", TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0"
    )
    lines = [line.split() for line in output.splitlines()]
    assert len(lines) == 6
    for name, capability, tensor_core, machine_code, shared in lines:
        assert int(tensor_core) > 0 and int(machine_code) > 0, name
        assert int(shared) <= {"80": 163, "90": 227}[capability] * 1024, name


def test_on_this_cpu_it_says_why_not() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter runs here")
    code = """
import torch
from filip.interaction import late_interaction
try:
    late_interaction(torch.zeros(1, 2, 8), torch.zeros(2, 8), torch.tensor([2]), backend="triton")
except ValueError as error:
    print(error)
"""
    assert "run on CUDA devices, not on cpu; use 'tiled' or 'auto'" in run("-c", code)
