"""A result is kept only while its data, its weights and its prompts are those that are there now."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from filip.cli.command import run_command
from filip.eval.__main__ import Evaluation, main
from filip.runs.saved_files import weights_of
from tests.eval.miniature import write_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write two classes of six pictures, and a model."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for n in range(6):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{n}.png")
    write_model(tmp_path / "model.safetensors")
    return tmp_path


def evaluate(folder: Path, capsys: pytest.CaptureFixture[str], *more: str, model: str = "model.safetensors") -> str:
    """Return what a command prints on both streams."""
    given = [f"model={folder / model}", f"data={folder / 'pictures'}", f"out={folder / 'out'}", "precision=fp32", *more]
    run_command(main, Evaluation, argv=given)
    printed = capsys.readouterr()
    return printed.out + printed.err


def test_exchanged_or_added_pictures_make_new_numbers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = evaluate(folder, capsys)
    assert "done before" in evaluate(folder, capsys)

    cats, dogs = folder / "pictures" / "cat", folder / "pictures" / "dog"
    cats.rename(folder / "aside")
    dogs.rename(cats)
    (folder / "aside").rename(dogs)
    second = evaluate(folder, capsys)
    assert "done before" not in second and "made with other data" in second
    accuracies = [next(line for line in said.splitlines() if "top-1 " in line) for said in (first, second)]
    assert accuracies[0] != accuracies[1]

    for n in range(10):
        shutil.copy(cats / "0.png", cats / f"more{n}.png")
    third = evaluate(folder, capsys)
    assert "pictures: 12 images then, 22 now" in third


def test_other_weights_in_file_or_folder_make_new_numbers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "run" / "model.safetensors")
    for model in ("model.safetensors", "run/model.safetensors"):
        evaluate(folder, capsys, model=model)
        assert "done before" in evaluate(folder, capsys, model=model)
        write_model(folder / model, seed=5)
        assert "made with other weights" in evaluate(folder, capsys, model=model)


@pytest.mark.parametrize("name", ["{}", "mv:{}", "hf:{}", "declip:{}:words"])
@pytest.mark.parametrize("run", [True, False])
def test_a_model_in_a_folder_is_known_by_its_files(tmp_path: Path, name: str, run: bool) -> None:
    """Also where sizes and times are equal, as archives leave them. A run folder is what is read of it."""
    weights = tmp_path / ("finished" if run else "0_module") / "model.safetensors"
    weights.parent.mkdir()
    if run:
        (tmp_path / "checkpoints").mkdir()
        config = {"run_dir": "runs/a", "out": "models/model.safetensors"}  # its result is where it was trained
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "finished.json").write_text("{}")
    results = []
    for content, log in ((b"one", "step 1"), (b"one", "step 2" if run else "step 1"), (b"two", "step 1")):
        weights.write_bytes(content)
        os.utime(weights, (1, 1))
        (tmp_path / "log.jsonl").write_text(log)
        results.append(weights_of(name.format(tmp_path)))
    assert results[0] == results[1] != results[2]


def test_other_texts_in_the_file_of_prompts_make_new_numbers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = folder / "prompts.yaml"
    for prefix in ("a photo of a ", "a drawing of a "):
        entry = {"prefix": [prefix], "description": [""], "suffix": [""], "count": 1}
        prompts.write_text(yaml.safe_dump({"default": entry}))
        said = evaluate(folder, capsys, f"prompts={prompts}")
        assert "done before" not in said
        assert "done before" in evaluate(folder, capsys, f"prompts={prompts}")
