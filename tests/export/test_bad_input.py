"""A model that cannot be exported, in whatever format: one sentence that says why, and nothing written."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from filip.common.errors import UserError
from filip.export.__main__ import Export, export
from filip.export.formats import FORMATS
from filip.models import build_model, load_preset


def refuse(model: str | Path, reason: str, to: str = "safetensors", **more: object) -> None:
    out = Path(model).parent / "exported"
    with pytest.raises(UserError, match=reason) as error:
        export(Export(model=str(model), to=to, out=str(out), **more))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert not out.exists()


def written_with(folder: Path, change: Callable[[dict, dict], None]) -> Path:
    """Write a model file whose tensors and configuration were changed by hand."""
    model = build_model(load_preset("tiny"))
    tensors, config = dict(model.state_dict()), dataclasses.asdict(model.config)
    change(tensors, config)
    metadata = {"config": json.dumps(config), "extra": "{}"}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "m.safetensors", metadata)
    return folder / "m.safetensors"


@pytest.mark.parametrize("to", sorted(FORMATS))
def test_a_truncated_file_is_refused(to: str, saved: Callable[..., str]) -> None:
    file = Path(saved())
    file.write_bytes(file.read_bytes()[:50_000])
    refuse(file, "not a safetensors file, or is damaged .*incomplete metadata", to)


def test_weights_of_another_project_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3)}, tmp_path / "m.safetensors")
    refuse(tmp_path / "m.safetensors", "without a model configuration")
    save_file({"a": torch.zeros(3)}, tmp_path / "n.safetensors", {"config": "{cut"})
    refuse(tmp_path / "n.safetensors", "the configuration in its metadata is damaged")


def test_another_architecture_than_the_file_says_is_refused(tmp_path: Path) -> None:
    refuse(
        written_with(tmp_path, lambda _, config: config["image"].update(timm="resnet50")),
        "timm cannot build .*resnet50",
    )
    refuse(written_with(tmp_path, lambda tensors, _: tensors.pop("logit_scale")), "it lacks logit_scale, of 1 tensors")
    refuse(written_with(tmp_path, lambda tensors, _: tensors.update(a=torch.zeros(1))), "it also has a, of 1 tensors")
    refuse(
        written_with(tmp_path, lambda tensors, _: tensors.update(logit_scale=torch.zeros(2))),
        r"logit_scale is \[2\] and should be \[1\]",
    )


def test_an_unknown_format_or_model_is_refused(saved: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip/config.json").write_text('{"model_type": "clip"}')
    refuse(tmp_path / "clip", r"this is not a run folder .*a model of transformers is hf:")
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    refuse(tmp_path / "run", "no finished checkpoint in .*checkpoints; was the run started")
