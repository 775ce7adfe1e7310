"""One entry in one registry is enough: everybody who uses a kind of thing finds a new one by its name."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.optim import SGD

from filip import device
from filip.data import engines
from filip.export import formats
from filip.export.__main__ import Export, export
from filip.export.formats import Format
from filip.interaction import backends, late_interaction, reference
from filip.interaction.backends import BackendEntry
from filip.models import build_model, load_preset, save_model
from filip.runs.source import ModelSource
from filip.sets import layouts
from filip.sets.image_set import open_images
from filip.sets.layout import Layout, Reading, Row
from filip.train import optimizers
from filip.train.engine import make_optimizer
from filip.train.optimizers import OptimizerKind
from tests.eval.miniature import picture
from tests.support.training import compose


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
    found = open_images(Reading(tmp_path))
    assert [(item.name, item.captions) for item in found.items] == [("a.png", ["one", "two"])]
    assert found.layout == "one_json" and "such as gone.png" in found.summary()


def test_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def forward(tokens: Any, save_for_backward: bool = True) -> Any:
        calls.append(tokens)
        return reference.forward(tokens, save_for_backward)

    module = SimpleNamespace(forward=forward, backward=reference.backward)
    monkeypatch.setitem(sys.modules, "my_backend", module)  # type: ignore[arg-type]
    monkeypatch.setitem(backends.BACKENDS, "mine", BackendEntry("my_backend"))
    image = torch.nn.functional.normalize(torch.randn(2, 3, 8), dim=-1)
    text = torch.nn.functional.normalize(torch.randn(5, 8), dim=-1)
    found = late_interaction(image, text, torch.tensor([2, 3]), backend="mine")
    torch.testing.assert_close(found, late_interaction(image, text, torch.tensor([2, 3]), backend="reference"))
    assert calls and compose("model=tiny", "backend=mine").backend == "mine"


def test_an_optimiser(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = OptimizerKind(lambda groups, settings: SGD(groups, settings.base_lr), state_bytes=0)
    monkeypatch.setitem(optimizers.OPTIMIZERS, "sgd", kind)
    config = compose("model=tiny", "optimizer.name=sgd")
    assert isinstance(make_optimizer(build_model(config.model), config), SGD)


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
    assert engines.round_trips(engines.load_engine("shouting", "pt"), ["a dog", ""])[1] == ["A DOG!", ""]


def test_an_export_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(source: ModelSource, out: str) -> None:
        torch.save(source.model.state_dict(), out)

    monkeypatch.setitem(formats.FORMATS, "torch", Format(write, "file"))
    save_model(tmp_path / "m.safetensors", model := build_model(load_preset("tiny")))
    export(Export(model=str(tmp_path / "m.safetensors"), to="torch", out=str(tmp_path / "m.pt")))
    assert torch.load(tmp_path / "m.pt").keys() == model.state_dict().keys()


def test_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = device._Driver(
        available=lambda: True,
        count=lambda: 2,
        memory=lambda _: 3 * device.MB,
        peak_memory=lambda _: 4 * device.MB,
        reset_peak=lambda _: None,
        synchronize=lambda _: None,
        name=lambda _: "Meta",
        random_state=lambda: "state",
        restore_random_state=lambda _: None,
        pins_memory=False,
        half=lambda: "bf16",
    )
    monkeypatch.setattr(device, "_DRIVERS", {"meta": driver})
    assert device.best_device().type == "meta" and device.machine() == "2 x Meta"
    assert device.resolve("meta:1") == torch.device("meta:1")
    assert device.memory_mb(torch.device("meta")) == 3 and device.peak_memory_mb(torch.device("meta")) == 4
    assert device.best_precision(torch.device("meta")) == "bf16"
    assert device.random_state()["meta"] == "state"
