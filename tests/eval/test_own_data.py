"""Data without a card, through their real loaders, and the one command that evaluates them."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image, ImageOps

from filip.cli.command import run_command
from filip.eval.__main__ import Evaluation
from filip.eval.__main__ import main as evaluate
from filip.eval.cards import load_card
from filip.eval.datasets import EvalSet
from filip.eval.encode_set import Context
from filip.eval.formats import open_set
from filip.eval.formats.imagefolder import ImageFolder
from filip.eval.formats.webdataset import WebdatasetFolder
from filip.eval.outcomes import read_outcomes
from filip.eval.own_data import cards_of
from filip.eval.protocols.retrieval import RetrievalSettings
from filip.eval.protocols.retrieval import run as retrieval
from filip.eval.table import TableOptions, with_files
from filip.eval.table import main as table
from tests.eval.benchmark_files import Reader, save, sugar_crepe
from tests.eval.miniature import picture, write_model, write_split


def own_folder(root: Path) -> Path:
    for i in range(4):
        for n in range(2):
            save(root / "pictures" / f"class {i}" / "deep" / f"{n}.png", i)
    (root / "pictures" / "class 0" / "notes.txt").write_text("no image")
    return root / "pictures"


def own_table(root: Path, suffix: str) -> Path:
    """Write a table of paths, or with ".parquet" one with the pictures in it."""
    rows = [{"image": f"images/{i // 2}.png", "caption": f"{'one' if i % 2 else 'two'} {i // 2}"} for i in range(8)]
    for i in range(4):
        save(root / "images" / f"{i}.png", i)
    place = root / f"pairs{suffix}"
    if suffix == ".csv":
        with open(place, "w", newline="") as file:
            writer = csv.DictWriter(file, ["image", "caption"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pictures = [(root / row["image"]).read_bytes() for row in rows]
        pq.write_table(pa.table({"image": pictures, "caption": [row["caption"] for row in rows]}), place)
    return place


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_of_images_and_captions_needs_no_card(suffix: str, tmp_path: Path) -> None:
    (card,) = cards_of(str(own_table(tmp_path, suffix)))
    assert (card.name, card.kind) == ("pairs", "retrieval")
    result = retrieval(Reader(), card, RetrievalSettings(), Context(), {})  # type: ignore[arg-type]
    rows_are_images = suffix == ".parquet"  # pictures inside the table: nothing says which are the same
    assert (result["images"], result["captions"]) == ((8, 8) if rows_are_images else (4, 8))
    assert result["t2i"]["r1"] == (0.5 if rows_are_images else 1)


def evaluated(*given: str) -> None:
    run_command(evaluate, Evaluation, argv=list(given))


def test_one_command_measures_all_that_fits_and_prints_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = write_model(tmp_path / "tiny.safetensors")
    sugar_crepe(tmp_path, "sugar_crepe_swap_att")
    data = f"data=[{own_folder(tmp_path)},{own_table(tmp_path, '.csv')},sugar_crepe_swap_att]"
    evaluated(f"model={model}", data, "prompts=a photo of a {c}.")
    said = capsys.readouterr()
    rows = said.out.splitlines()
    assert rows[0].split() == ["benchmark", "measure", "n", "chance", "tiny"]
    names = [row.split("  ")[0] for row in rows[2:]]
    assert names[:3] == ["pictures (zero-shot)"] * 2 + ["pairs (retrieval)"] and "top-1 by s^T" in rows[3]
    assert sum("pairs (retrieval)" in row for row in rows) == 12 and "by their mean" in said.out
    out = tmp_path / "results" / "eval" / "tiny"
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.json")) == [
        "retrieval/pairs.json",
        "selection/sugar_crepe_swap_att.json",
        "zero_shot/pictures.json",
    ]
    assert len(read_outcomes(out / "zero_shot" / "pictures.json")["pictures"].key) == 8
    zero_shot = json.loads((out / "zero_shot" / "pictures.json").read_text())
    assert zero_shot["benchmarks"]["pictures"]["prompts"] == 1

    evaluated(f"model={model}", data, "prompts=a photo of a {c}.")
    again = capsys.readouterr()
    assert again.out == said.out and again.err.count("done before") == 3
    evaluated(f"model={model}", data, "prompts=one {c}.")  # another prompt: not the same result
    assert capsys.readouterr().err.count("done before") == 1  # a selection reads no prompts

    other = write_model(tmp_path / "other.safetensors", "pooled", seed=1)
    evaluated(f"model={other}", f"data={tmp_path / 'pictures'}", "protocols=[zero_shot,linear_probe]")
    assert "linear probe" in capsys.readouterr().out
    files = [str(p) for p in (tmp_path / "results").rglob("*.json")]
    run_command(table, TableOptions, argv=with_files([f"results=[{files[0]}]", *files[1:], "form=markdown"]))
    merged = capsys.readouterr().out.splitlines()
    assert merged[0].count("|") == 7 and merged[1].startswith("| --- | --- | ---:")
    assert any("prompts one {c}." in line and "pooled" in line for line in merged)  # evaluated differently


def lying(path: Path, number: int = 0) -> np.ndarray:
    """Store a picture on its side, as phones do; return it upright."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number, 48).crop((0, 0, 48, 40)).save(path, exif=exif)
    return np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))


def own_photographs(root: Path) -> EvalSet:
    (root / "a.txt").write_text("a turned picture")
    return open_set(cards_of(str(root))[0], ".")


def class_folders(root: Path) -> EvalSet:
    for name in ("0", "1"):
        (root / name).mkdir()
        shutil.copy(root / "a.png", root / name)
    return ImageFolder(root, "")


def tars(root: Path) -> EvalSet:
    (root / "dataset_type.txt").write_text("retrieval")
    write_split(root / "test", [[("s0.png", (root / "a.png").read_bytes()), ("s0.txt", b"a turned picture")]])
    return WebdatasetFolder(root, "test", None, None)


def table_of_images(root: Path) -> EvalSet:
    (root / "rows.json").write_text(json.dumps([{"image": "a.png", "caption": "a turned picture"}]))
    columns = "{path: rows.json, split: all, image: image}"
    (root / "card.yaml").write_text(
        f"name: c\ntitle: c\nkind: retrieval\nmetric: recall\nloader: captions\nlayouts: {{captions: {columns}}}\n"
    )
    return open_set(load_card(root / "card.yaml"), root)


@pytest.mark.parametrize("layout", [own_photographs, class_folders, tars, table_of_images], ids=lambda f: f.__name__)
def test_pictures_are_seen_upright_in_every_layout(layout: Callable[[Path], EvalSet], tmp_path: Path) -> None:
    """Ingest turns them, too: evaluation sees the pictures that training saw."""
    upright = lying(tmp_path / "a.png")
    assert upright.shape == (48, 40, 3)
    assert np.array_equal(np.asarray(layout(tmp_path)[0].image), upright)
