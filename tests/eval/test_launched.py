"""An evaluation that torchrun starts in several processes writes what one process writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from filip.eval.outcomes import read_outcomes
from tests.eval.miniature import run_protocol, write_model, write_webdataset

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_two_processes_write_the_file_of_one(tmp_path: Path) -> None:
    write_webdataset(tmp_path / "demo_food", [f"dish {i}" for i in range(8)], [i % 8 for i in range(23)])
    model = write_model(tmp_path / "m.safetensors")
    given = [f"model={model}", f"root={tmp_path}", "data=demo_food", "batch_size=4", "device=cpu"]
    run_protocol("zero_shot", [*given, f"out={tmp_path}/one.json"])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = subprocess.run(
        [*launcher, "-m", "filip.eval", "protocols=[zero_shot]", *given, f"out={tmp_path}/two.json"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one == two and one["benchmarks"]["demo_food"]["n"] == 23
    outcomes = [read_outcomes(tmp_path / f"{name}.json")["demo_food"] for name in ("one", "two")]
    for measure in ("top1", "top5"):
        np.testing.assert_array_equal(outcomes[0].values[measure], outcomes[1].values[measure])
    assert run.stderr.count("demo_food: top-1") == 1  # only the first process speaks
