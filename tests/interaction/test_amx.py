"""The kernels of AMX on a CPU that has none: the same source with the tile instructions emulated."""

import os
import shlex
from pathlib import Path

import pytest

from late_interaction import native, native_build
from tests.support.processes import run_well

HERE = Path(__file__).parent
FILES = ("test_native.py", "test_fuzz.py", "test_smooth.py")


@pytest.mark.slow
@pytest.mark.skipif(
    native_build.why_not_here() or "avx512_bf16" not in native.isas(), reason="AMX's files need AVX-512 and bf16"
)
def test_with_emulated_tiles(tmp_path: Path) -> None:
    header = f'-DINTERACTION_TILES_HEADER="{HERE / "emulated_tiles.h"}"'
    variables = {**os.environ, "CXX": f"c++ {shlex.quote(header)}", native_build.CACHE_VARIABLE: str(tmp_path)}
    files = [str(HERE / name) for name in FILES]
    done = run_well("-m", "pytest", "-q", "-n", "0", "-k", "amx or tiles", *files, variables=variables)
    assert "skipped" not in done.stdout.splitlines()[-1]
