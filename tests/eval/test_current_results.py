"""A result is kept only while its data, its weights and its prompts are those that are there now."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from filip.cli.command import run_command
from filip.eval.__main__ import Evaluation, main
from filip.runs.saved_files import weights_of
from tests.eval.miniature import write_model
from tests.support.processes import Process

COUNT = 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write pictures of two classes, all of one size and time, in a folder of classes and elsewhere, and a model."""
    rng = np.random.default_rng(0)
    for n in range(2 * COUNT):
        place = tmp_path / "elsewhere" / ("cat" if n < COUNT else "dog") / f"{n}.bmp"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(place)
        os.utime(place, (1, 1))
    files = sorted((tmp_path / "elsewhere").rglob("*.bmp"), key=lambda file: int(file.stem))
    rows = [f"elsewhere/{file.parent.name}/{file.name}" for file in files]
    (tmp_path / "labels.csv").write_text("image,label\n" + "".join(f"{row},{row.split('/')[1]}\n" for row in rows))
    pairs = "".join(f"{row},number {n} of them\n" for n, row in enumerate(rows))
    (tmp_path / "pairs.csv").write_text("image,caption\n" + pairs)
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "pictures")
    (tmp_path / "linked").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "linked" / name).symlink_to(tmp_path / "elsewhere" / name)
    write_model(tmp_path / "model.safetensors")
    return tmp_path


def evaluate(folder: Path, data: str, *more: str, model: str = "model.safetensors") -> tuple[str, dict[str, object]]:
    """Return what a command says of the kept result, "" if it has none, and its numbers."""
    given = [f"model={folder / model}", f"data={folder / data}", f"out={folder / 'out'}"]
    run_command(main, Evaluation, argv=[*given, "precision=fp32", *more])
    results = sorted((folder / "out").glob(f"*/{Path(data).stem}.json"))
    return str(results[0]), {file.parent.name: json.loads(file.read_text())["benchmarks"] for file in results}


def exchange(folder: Path) -> None:
    """Give each cat the bytes of a dog and the other way round; sizes and times stay."""
    cats, dogs = (sorted(folder.glob(f"{name}/*.bmp")) for name in ("cat", "dog"))
    for cat, dog in zip(cats, dogs, strict=True):
        cat_bytes, dog_bytes = cat.read_bytes(), dog.read_bytes()
        cat.write_bytes(dog_bytes)
        dog.write_bytes(cat_bytes)
        os.utime(cat, (1, 1))
        os.utime(dog, (1, 1))


def reword(folder: Path) -> None:
    """Replace captions by others of the same length, and keep the table's time."""
    table = folder / "pairs.csv"
    time = table.stat().st_mtime_ns
    table.write_text(table.read_text().replace("of them", "of dogs"))
    os.utime(table, ns=(time, time))


def rename(folder: Path) -> None:
    """Exchange the folders of classes by their names alone: no picture is touched."""
    for old, new in (("cat", "aside"), ("dog", "cat"), ("aside", "dog")):
        (folder / "pictures" / old).rename(folder / "pictures" / new)


def delete(folder: Path) -> None:
    for file in sorted((folder / "elsewhere" / "dog").glob("*.bmp"))[1:]:
        file.unlink()


def other_version(folder: Path) -> None:
    for file in (folder / "out").rglob("*.json"):
        result = json.loads(file.read_text())
        for request in result["requests"].values():
            request["version"] = "another"
        file.write_text(json.dumps(result))


CHANGES: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...]]] = {
    "two classes exchanged behind a table": ("labels.csv", lambda f: exchange(f / "elsewhere"), ()),
    "pictures exchanged behind captions": ("pairs.csv", lambda f: exchange(f / "elsewhere"), ()),
    "pictures in linked folders": ("linked", lambda f: exchange(f / "elsewhere"), ()),
    "pictures of the same size and time": ("pictures", lambda f: exchange(f / "pictures"), ()),
    "two folders renamed": ("pictures", rename, ()),
    "pictures deleted behind a table": ("labels.csv", delete, ()),
    "captions of the same length": ("pairs.csv", reword, ()),
    "another model of that name": ("pictures", lambda f: write_model(f / "model.safetensors", seed=5), ()),
    "another precision": ("pairs.csv", lambda f: None, ("precision=bf16",)),
    "another version of the protocol": ("pictures", other_version, ()),
    "outcomes cut short": ("pictures", lambda f: next(f.glob("out/*/*.npz")).write_bytes(b"P"), ()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_under_an_evaluation_makes_new_numbers(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data, change, more = CHANGES[name]
    evaluate(folder, data)
    capsys.readouterr()
    change(folder)
    _, numbers = evaluate(folder, data, *more)
    assert "done before" not in capsys.readouterr().err
    assert numbers == evaluate(folder, data, *more, "overwrite=true")[1]
    capsys.readouterr()
    assert evaluate(folder, data, *more)[1] == numbers
    assert "done before" in capsys.readouterr().err


def test_equal_bytes_with_other_times_are_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, numbers = evaluate(folder, "labels.csv")
    shutil.copytree(folder / "elsewhere", folder / "copied")
    shutil.rmtree(folder / "elsewhere")
    (folder / "copied").rename(folder / "elsewhere")
    capsys.readouterr()
    assert evaluate(folder, "labels.csv")[1] == numbers
    assert "done before" in capsys.readouterr().err


def test_a_set_with_another_name_has_its_own_results(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = evaluate(folder, "pictures")
    (folder / "pictures").rename(folder / "renamed")
    capsys.readouterr()
    second, _ = evaluate(folder, "renamed")
    assert first != second and "done before" not in capsys.readouterr().err


def test_another_number_of_images_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(folder, "labels.csv")
    capsys.readouterr()
    delete(folder)
    evaluate(folder, "labels.csv")
    said = capsys.readouterr().err
    assert "labels: 12 images then, 7 now" in said and "made with other data" in said


def test_other_texts_in_the_file_of_prompts_make_new_numbers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = folder / "prompts.yaml"
    for prefix in ("a photo of a ", "a drawing of a "):
        entry = {"prefix": [prefix], "description": [""], "suffix": [""], "count": 1}
        prompts.write_text(yaml.safe_dump({"default": entry}))
        for said in (False, True):
            evaluate(folder, "pictures", f"prompts={prompts}")
            assert ("done before" in capsys.readouterr().err) == said


@pytest.mark.slow
def test_two_evaluations_of_one_job_at_once_both_end(folder: Path) -> None:
    code = (
        "import sys; from filip.cli.command import run_command; from filip.eval.__main__ import Evaluation, main\n"
        "for _ in range(20): run_command(main, Evaluation, argv=sys.argv[1:])"
    )
    given = [f"model={folder / 'model.safetensors'}", f"data={folder / 'pictures'}", f"out={folder / 'out'}"]
    running = [Process(["-c", code, *given, "overwrite=true"], log=folder / f"{n}.log") for n in range(2)]
    assert [one.wait() for one in running] == [0, 0], (folder / "0.log").read_text() + (folder / "1.log").read_text()


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
