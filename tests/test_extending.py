"""One entry in one registry is enough: everybody who uses a kind of thing finds a new one by its name."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from filip.data import engines
from filip.export import formats
from filip.export.__main__ import Export, export
from filip.export.formats import Format
from filip.models import build_model, load_preset, save_model
from filip.runs.source import ModelSource
from filip.sets import layouts
from filip.sets.image_set import open_images
from filip.sets.layout import Layout, Reading, Row
from tests.eval.miniature import picture


class OneJson(Layout):
    about = "captions.map.json: names of images, each with its captions"

    def parts(self, reading: Reading) -> list[Path]:
        file = reading.place / "captions.map.json"
        return [file] if file.is_file() else []

    def find(self, part: Path, reading: Reading) -> Iterator[Row]:
        for name, captions in json.loads(part.read_text()).items():
            yield Row(name, captions, str(part.parent / name))

    def rest(self, reading: Reading, parts: object) -> Iterator[Row]:
        yield from ()


def test_a_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(1).save(tmp_path / "a.png")
    picture(2).save(tmp_path / "b.png")
    (tmp_path / "captions.map.json").write_text(json.dumps({"a.png": ["one", "two"], "gone.png": ["three"]}))
    monkeypatch.setitem(layouts.LAYOUTS, "one_json", OneJson())
    result = open_images(Reading(tmp_path))
    assert [(item.name, item.captions) for item in result.items] == [("a.png", ["one", "two"])]
    assert result.layout == "one_json" and "such as gone.png" in result.summary()


class Shouting:
    model = "shouting 1"

    def __init__(self, pivot: str, models: str | None) -> None:
        self.pivot = pivot

    def to_pivot(self, texts: Sequence[str]) -> list[str]:
        return [text.upper() for text in texts]

    def to_english(self, texts: Sequence[str]) -> list[str]:
        return [f"{text}!" for text in texts]


def test_a_translation_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engines.ENGINES, "shouting", f"{__name__}:Shouting")
    assert engines.round_trips(engines.load_engine("shouting", "pt"), ["a dog", ""]) == ["A DOG!", ""]


def test_an_export_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(source: ModelSource, out: str) -> None:
        torch.save(source.model.state_dict(), out)

    monkeypatch.setitem(formats.FORMATS, "torch", Format(write, "file"))
    save_model(tmp_path / "m.safetensors", model := build_model(load_preset("tiny")))
    export(Export(model=str(tmp_path / "m.safetensors"), to="torch", out=str(tmp_path / "m.pt")))
    assert torch.load(tmp_path / "m.pt").keys() == model.state_dict().keys()
