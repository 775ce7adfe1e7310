"""The model that comes with the package makes sense of drawings by an artist that it has never seen."""

import re
from pathlib import Path

import pytest

from filip import load
from filip.api import Model
from filip.search import __main__ as search

ROOT = Path(__file__).resolve().parents[1]
SCENES = sorted((ROOT / "docs/scenes").glob("*.png"))
CAPTIONS = [scene.with_suffix(".txt").read_text().strip() for scene in SCENES]


@pytest.fixture(scope="module")
def model() -> Model:
    return load("emoji", device="cpu")


def test_scenes_and_captions_find_each_other(model: Model) -> None:
    result = model.similarity(SCENES, CAPTIONS)
    right = range(len(SCENES))
    assert len(SCENES) == 12
    assert sum(a == b for a, b in zip(result.t2i.argmax(0).tolist(), right, strict=True)) >= 11
    assert sum(a == b for a, b in zip(result.i2t.argmax(1).tolist(), right, strict=True)) >= 11


def test_search_answers_right_after_the_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "place_of", lambda config, model: tmp_path / "index")
    search.main(search.Search(images=str(ROOT / "docs/scenes"), text="a jellyfish", device="cpu", count=1))
    first, places = capsys.readouterr().out.splitlines()
    assert first.endswith("09.png") and re.fullmatch(r" +jellyfish at \d+,\d+,\d+,\d+", places)
