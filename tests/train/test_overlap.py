"""``overlap_comm``: gradients reduced during the backward pass are those reduced after it."""

import json
from pathlib import Path

import pytest

from filip.resources import shipped
from tests.support.training import largest_difference, losses, run_many, train_arguments

# both hold a whole batch
WAYS = {"cached": ("gradient_cache=4",), "accumulated": ("gradient_accumulation=2",)}


@pytest.mark.slow
def test_reducing_during_the_backward_pass_changes_no_bit(squares: Path, tmp_path: Path) -> None:
    settings = json.loads((shipped("ds_configs") / "zero1_bf16.json").read_text())
    assert settings["zero_optimization"]["overlap_comm"]
    settings["zero_optimization"]["overlap_comm"] = False
    after = tmp_path / "after.json"
    after.write_text(json.dumps(settings))
    runs = []
    for way, overrides in WAYS.items():
        common = ("precision=bf16", "zero_stage=1", "max_steps=6", *overrides)
        runs.append(train_arguments(squares, tmp_path / way, *common))
        runs.append(train_arguments(squares, tmp_path / f"{way}_after", *common, f"deepspeed={after}"))
    assert run_many(2, runs, tmp_path / "log") == [0] * len(runs), (tmp_path / "log").read_text()[-3000:]
    for way in WAYS:
        assert losses(tmp_path / way) == losses(tmp_path / f"{way}_after"), way
        assert largest_difference(tmp_path / way, tmp_path / f"{way}_after") == 0, way
