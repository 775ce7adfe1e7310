"""An evaluation in several processes, with the environment that torchrun gives them, writes what one writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from filip.eval.outcomes import read_outcomes
from tests.eval.miniature import run_protocol, write_model, write_webdataset
from tests.support.launched_ranks import Ranks


@pytest.mark.slow
def test_two_processes_write_the_file_of_one(tmp_path: Path) -> None:
    write_webdataset(tmp_path / "demo_food", [f"dish {i}" for i in range(8)], [i % 8 for i in range(23)])
    model = write_model(tmp_path / "m.safetensors")
    given = [f"model={model}", f"root={tmp_path}", "data=demo_food", "batch_size=4", "device=cpu"]
    run_protocol("zero_shot", [*given, f"out={tmp_path}/one.json"])
    arguments = ["-m", "filip.eval", "protocols=[zero_shot]", *given, f"out={tmp_path}/two.json"]
    ranks = Ranks(2, arguments, tmp_path / "log", TORCHELASTIC_RUN_ID="torchrun")
    assert ranks.wait() == [0, 0], ranks.text()[-3000:]
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one == two and one["benchmarks"]["demo_food"]["n"] == 23
    outcomes = [read_outcomes(tmp_path / f"{name}.json")["demo_food"] for name in ("one", "two")]
    for measure in ("top1", "top5"):
        np.testing.assert_array_equal(outcomes[0].values[measure], outcomes[1].values[measure])
    assert ranks.text().count("demo_food: top1") == 1  # only the first process speaks
