"""Licence, attribution and training data go with the weights from any format into any other."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from filip.export.__main__ import Export, export
from filip.export.formats import FORMATS
from filip.runs.source import read_source

WORKS = {"openmoji": {"license": "CC-BY-SA-4.0", "author": "HfG"}, "noto": {"license": "Apache-2.0"}}
WEIGHTS = {"hf": "model.safetensors"}  # in a folder


def card_of(folder: Path) -> str:
    return re.sub(r"```.*?```", "", (folder / "README.md").read_text(), flags=re.DOTALL)


@pytest.fixture
def trained(saved: Callable[..., str], tmp_path: Path) -> str:
    """Write a model with the records that a study leaves around it."""
    file = Path(saved())
    source = tmp_path / "data" / "shards"
    source.mkdir(parents=True)
    (source / "manifest.json").write_text(json.dumps({"title": "Emoji", "license": "CC-BY-SA-4.0"}))
    sources = [{"shards": str(source), "manifest": str(source / "manifest.json"), "weight": 1.0}]
    config = {"run": "squares", "run_dir": str(tmp_path), "optimizer": {"base_lr": 0.5}, "data": {"sources": sources}}
    record = {"run": "squares", "config": config, "steps": 12, "pairs": 3456, "epochs": 1.5}
    file.with_suffix(".json").write_text(json.dumps(record))
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "zero_shot.md").write_text("| model | CIFAR-10 |\n")
    (tmp_path / "data" / "attribution.json").write_text(json.dumps(WORKS))
    return str(file)


@pytest.mark.slow
@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("by", ["safetensors", "compact", "hf"])
def test_facts_reach_every_format_by_way_of_every_other(by: str, to: str, trained: str, tmp_path: Path) -> None:
    export(Export(model=trained, to=to, out=str(tmp_path / "expected")))
    export(Export(model=trained, to=by, out=str(tmp_path / "elsewhere" / "by")))
    alone = tmp_path / "alone"
    alone.mkdir()
    left = tmp_path / "elsewhere" / "by" / WEIGHTS[by] if by in WEIGHTS else tmp_path / "elsewhere" / "by"
    if by in WEIGHTS:  # it reads its configuration beside it
        (alone / "config.json").write_bytes(left.with_name("config.json").read_bytes())
    (alone / "m.safetensors").write_bytes(left.read_bytes())
    export(Export(model=str(alone / "m.safetensors"), to=to, out=str(tmp_path / "out")))
    if FORMATS[to].out == "file":
        first, second = (read_source(str(tmp_path / name)) for name in ("expected", "out"))
        assert first.to_save == second.to_save and str(tmp_path) not in json.dumps(second.to_save)
        assert (second.licence, json.loads(second.attributions["attribution.json"])) == ("cc-by-sa-4.0", WORKS)
        return
    card = card_of(tmp_path / "out")
    assert card == card_of(tmp_path / "expected")
    assert "license: cc-by-sa-4.0\n" in card and "Emoji, licence CC-BY-SA-4.0" in card and "| CIFAR-10 |" in card
    assert json.loads((tmp_path / "out" / "attribution.json").read_text()) == WORKS
