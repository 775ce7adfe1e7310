"""A training on a disk without room ends with a sentence that names the file, at a checkpoint and at its end."""

from pathlib import Path

import pytest

from tests.support.processes import run_python
from tests.support.training import train_arguments

LIMITED = """
import resource, runpy, sys
sys.dont_write_bytecode = True  # Python would cut it off
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))  # to a program the same as a full disk
runpy.run_module("filip.train", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("every", "named"), [(0, "model.safetensors"), (1, "checkpoints")])
def test_a_full_disk_is_a_sentence(every: int, named: str, squares: Path, tmp_path: Path) -> None:
    settings = ["max_steps=2", "optimizer.warmup_steps=1", f"checkpoint.every_steps={every}"]
    _, _, *arguments = train_arguments(squares, tmp_path / "run", *settings)
    found = run_python("-c", LIMITED, *arguments)
    assert found.returncode == 2 and "Traceback" not in found.stderr, found.stderr
    assert found.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'run' / named}: ")
    assert not list((tmp_path / "run").glob("*model.safetensors*"))
