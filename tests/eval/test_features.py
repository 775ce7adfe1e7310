"""Kept features, and sets that several jobs share, give the numbers of one plain run."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from filip.command import run_command
from filip.eval.__main__ import Evaluation
from filip.eval.__main__ import main as evaluate
from filip.eval.cards import load_card
from filip.eval.encoders import FilipEncoder, load_encoder
from filip.eval.features import FeatureStore, KeptSet, model_key
from tests.eval.benchmark_files import sugar_crepe
from tests.eval.miniature import write_model, write_webdataset

DATA = "data=[demo_food,demo_fluent,sugar_crepe_swap_att]"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write three benchmarks, one with a training split and one with an image that cannot be read, and a model."""
    folder = tmp_path_factory.mktemp("features")
    dishes = [f"dish {i}" for i in range(8)]
    write_webdataset(folder / "demo_food", dishes, [i % 8 for i in range(23)])
    write_webdataset(folder / "demo_food", dishes, [i % 8 for i in range(40)], split="train")
    write_webdataset(folder / "demo_fluent", None, [[f"text {i}", "more"][: 1 + i % 2] for i in range(11)])
    sugar_crepe(folder, "sugar_crepe_swap_att")
    write_model(folder / "m.safetensors")
    return folder


def results(root: Path, out: Path, *more: str) -> dict[str, Any]:
    """Run ``filip eval`` and return the numbers of every protocol by file."""
    protocols = "protocols=[zero_shot,retrieval,selection,linear_probe]"
    given = [f"model={root}/m.safetensors", DATA, f"root={root}", "prompts=a {c}", "batch_size=4", protocols]
    run_command(evaluate, Evaluation, argv=[*given, f"out={out}", *more])
    return {str(p.relative_to(out)): json.loads(p.read_text()) for p in sorted(out.rglob("*.json"))}


@pytest.fixture(scope="module")
def plain(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    result = results(root, tmp_path_factory.mktemp("plain"))
    assert [Path(name).parent.name for name in result] == ["linear_probe", "retrieval", "selection", "zero_shot"]
    return result


def test_kept_features_give_the_same_numbers_and_no_image_is_encoded_again(
    root: Path, plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = f"features={tmp_path / 'kept'}"
    assert results(root, tmp_path / "first", kept) == plain
    encoded = []

    def refuse(self: FilipEncoder, pixels: Tensor) -> Tensor:
        encoded.append(len(pixels))
        return torch.zeros(0)

    monkeypatch.setattr(FilipEncoder, "encode_images", refuse)
    monkeypatch.setattr(FilipEncoder, "probe_features", refuse)
    monkeypatch.setattr(FilipEncoder, "image_and_probe", refuse)
    assert results(root, tmp_path / "second", kept) == plain
    assert encoded == []
    # Both splits of the classification set, each of the others once.
    names = sorted(place.name.rpartition("-")[0] for place in (tmp_path / "kept").iterdir())
    assert names == ["demo_fluent", "demo_food", "demo_food", "sugar_crepe_swap_att"]


@pytest.mark.parametrize("order", [("zero_shot", "linear_probe"), ("linear_probe", "zero_shot")])
@pytest.mark.parametrize("interaction", ["token_wise", "pooled"])
def test_one_pass_over_the_images_is_enough_for_zero_shot_and_the_probe(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[str, str], interaction: str
) -> None:
    write_model(tmp_path / "m.safetensors", interaction)
    given = [f"model={tmp_path}/m.safetensors", "data=[demo_food]", f"root={root}", "prompts=a {c}", "batch_size=4"]

    def run(out: str, protocol: str, *more: str) -> Any:
        run_command(evaluate, Evaluation, argv=[*given, f"protocols=[{protocol}]", f"out={tmp_path / out}", *more])
        return json.loads((tmp_path / out / protocol / "demo_food.json").read_text())

    without = [run("plain", protocol) for protocol in order]
    encoded: list[str] = []

    def counted(trunk: Any, inputs: tuple[Tensor]) -> None:
        encoded.extend("image" for _ in inputs[0])

    load = FilipEncoder.__init__

    def watched(self: FilipEncoder, model: Any, *args: Any, **kwargs: Any) -> None:
        load(self, model, *args, **kwargs)
        model.image.trunk.register_forward_pre_hook(counted)

    monkeypatch.setattr(FilipEncoder, "__init__", watched)
    kept = f"features={tmp_path / 'kept'}"
    assert [run("kept", protocol, kept) for protocol in order] == without
    assert len(encoded) == 23 + 40  # the test split once, and the training split


def test_parts_of_the_images_put_together_are_one_run(
    root: Path, plain: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = f"features={tmp_path / 'kept'}"
    for part in ("2/3", "0/3"):  # in any order; the second one never ran
        assert results(root, tmp_path / "parts", kept, f"shard={part}") == {}
    said = capsys.readouterr()
    assert "run the same without shard=" in said.out and "demo_food: 2 of 6 batches are encoded" in said.err
    kept_files = {p.name for p in (tmp_path / "kept").glob("demo_fluent-*/*.pt")}
    assert kept_files == {"0.image.pt", "2.image.pt"}
    assert results(root, tmp_path / "parts", kept) == plain


def test_what_features_depend_on_is_another_set(root: Path, tmp_path: Path) -> None:
    card = load_card("demo_food")

    def where(model: str = "m.safetensors", card: Any = card, **loading: Any) -> str:
        encoder = load_encoder(str(tmp_path / model), **loading)
        store = FeatureStore(tmp_path / "kept", model_key(str(tmp_path / model), encoder), 10**9)
        return store.of_set(card, tmp_path, 64).folder.name

    write_model(tmp_path / "m.safetensors")
    write_model(tmp_path / "other.safetensors", seed=1)
    (tmp_path / "same.safetensors").write_bytes((tmp_path / "m.safetensors").read_bytes())
    (tmp_path / "demo_food").mkdir()
    (tmp_path / "demo_food" / "0.tar").write_bytes(b"data")
    assert where() == where() == where("same.safetensors")
    layout = replace(card, layout=replace(card.layout, split="train"))
    changed = [where("other.safetensors"), where(card=layout), where(precision="bf16"), where(image_size=64)]
    before = where()
    (tmp_path / "demo_food" / "0.tar").write_bytes(b"other data")
    changed.append(where())
    os.utime(tmp_path / "demo_food" / "0.tar", (1, 1))
    changed.append(where())
    assert len({before, *changed}) == len(changed) + 1


def test_a_folder_holds_no_more_than_it_may(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = FeatureStore(tmp_path, {}, limit=2500)
    sets = [KeptSet(tmp_path / name) for name in ("oldest", "older", "used", "now")]
    for age, kept in enumerate(sets):
        kept.folder.mkdir()
        (kept.folder / "0.pt").write_bytes(bytes(1000))
        os.utime(kept.folder, (age, age))
    sets[0].used()
    store.trim(sets[3])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["now", "oldest"]
    assert "older: removed 1 kB, features= may hold 2 kB" in capsys.readouterr().err
    store.trim(replace(sets[3]))
    assert (tmp_path / "now").is_dir()


def test_a_kept_batch_that_cannot_be_read_is_encoded_again(root: Path, plain: dict[str, Any], tmp_path: Path) -> None:
    kept = f"features={tmp_path / 'kept'}"
    results(root, tmp_path / "first", kept)
    for file in (tmp_path / "kept").glob("*/1.*.pt"):
        file.write_bytes(b"half written")
    assert results(root, tmp_path / "second", kept) == plain


def test_a_part_needs_a_folder(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        results(root, tmp_path / "out", "shard=1/2")
    assert "shard=1/2 needs features=FOLDER" in capsys.readouterr().err


def test_an_image_that_cannot_be_read_is_left_out_of_kept_features_too(root: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    for number in range(6):
        (pictures / f"class {number % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (40 * number, 90, 10)).save(pictures / f"class {number % 2}" / f"{number}.png")
    (pictures / "class 1" / "3.png").write_bytes(b"no image")
    given = [f"model={root}/m.safetensors", f"data={pictures}", "batch_size=1", f"features={tmp_path / 'kept'}"]
    for out in ("a", "b"):
        run_command(evaluate, Evaluation, argv=[*given, f"out={tmp_path / out}"])
    first, second = (json.loads((tmp_path / out / "zero_shot" / "pictures.json").read_text()) for out in "ab")
    assert first == second and first["benchmarks"]["pictures"]["n"] == 5
