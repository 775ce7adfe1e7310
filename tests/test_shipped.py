"""The model that comes with the package makes sense of drawings by an artist that it has never seen."""

import re
from pathlib import Path

import pytest

from filip import load, resources
from filip.api import Model
from filip.models import load_model
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


def test_the_card_has_the_licence_and_the_figures() -> None:
    card = (ROOT / "filip/resources/emoji.md").read_text()
    assert "CC BY-SA 4.0" in card and "@" not in re.sub(r"R@1", "", card)
    parameters = int(re.search(r"A FILIP of ([\d,]+) parameters", card)[1].replace(",", ""))
    model = load_model(resources.weights("emoji"))
    assert parameters == sum(p.numel() for p in model.parameters())


def test_search_answers_right_after_the_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "place_of", lambda config, model: tmp_path / "index")
    search.main(search.Search(images=str(ROOT / "docs/scenes"), text="a jellyfish", device="cpu", count=1))
    first, places = capsys.readouterr().out.splitlines()
    assert first.endswith("09.png") and re.fullmatch(r" +jellyfish at \d+,\d+,\d+,\d+", places)
