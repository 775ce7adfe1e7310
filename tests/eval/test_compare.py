"""One table of several models on details of captions, in the files of the benchmarks and of the models."""

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from filip.command import run_command
from filip.eval.compare import CompareOptions, main
from filip.export.hf_folder import clip_tokenizer
from filip.models import build_model
from tests.eval.benchmark_files import SELECTION
from tests.eval.miniature import tiny_config, write_model
from tests.eval.test_scenes import write_scenes
from tests.support.clips import hf_folder
from tests.support.late_interaction_models import KINDS, write_late_interaction_model

COLUMNS = [
    "Half-truths, COCO, not balanced",
    "Half-truths, a name, balanced",
    "SugarCrepe",
    "SugarCrepe++",
    "ARO relations",
]
COLUMNS += ["ARO attributes", "ARO order", "Winoground text", "Winoground image", "Winoground group", "pointing"]
TEXTS = ["a red cat", "two dogs", "red dogs the cat"]
PARTS = ["swap_att", "replace_rel"]
CARDS = [*(f"sugar_crepe_{part}" for part in PARTS), "sugar_crepe_pp_swap_obj", "aro_relation", "aro_attribution"]
CARDS += ["aro_coco_order", "winoground", "half_truths_coco"]


def compare(root: Path, models: list[str], *more: str) -> None:
    given = [f"models=[{','.join(models)}]", f"root={root}", f"out={root / 'out'}", *more]
    run_command(main, CompareOptions, argv=given)


def captions(root: Path, part: str) -> tuple[list[Image.Image], list[list[str]]]:
    """Return images and captions of a part of SugarCrepe, the true caption first."""
    rows = json.loads((root / "sugar_crepe" / "data" / f"{part}.json").read_text()).values()
    images = [Image.open(root / "sugar_crepe" / "val2017" / row["filename"]) for row in rows]
    return images, [[row["caption"], row["negative_caption"]] for row in rows]


@pytest.mark.slow
def test_five_models_in_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in CARDS:
        SELECTION[name](tmp_path, name)
    for part in PARTS:  # in words that all of the models know
        file = tmp_path / "sugar_crepe" / "data" / f"{part}.json"
        rows = json.loads(file.read_text())
        for n, row in enumerate(rows.values()):
            row["caption"], row["negative_caption"] = TEXTS[n % 3], TEXTS[(n + len(part)) % 3]
        file.write_text(json.dumps(rows))
    write_scenes(tmp_path / "demo_scenes_new")
    models = {
        "FILIP": write_model(tmp_path / "filip.safetensors"),
        "CLIP": f"hf:{tmp_path / 'clip'}",
        **{kind: write_late_interaction_model(tmp_path / kind, kind) for kind in KINDS},
    }
    hf_folder(tmp_path / "clip")
    clip_tokenizer(build_model(tiny_config())).save_pretrained(tmp_path / "clip")
    data = f"data=[{','.join([*CARDS, 'demo_half_name', 'demo_whole_name', 'demo_pointing'])}]"
    compare(tmp_path, list(models.values()), data, "form=csv")
    printed = capsys.readouterr().out
    rows = list(csv.DictReader(printed[printed.index("model,by,") :].splitlines()))
    assert list(dict.fromkeys(row["title"] for row in rows)) == COLUMNS
    chances = {(row["title"], round(float(row["chance"]), 3)) for row in rows if row["chance"]}
    expected = [0.5, 0.5, 0.5, 0.333, 0.5, 0.5, 0.2, 0.25, 0.25, 0.167, 0.238]
    assert chances == {*zip(COLUMNS, expected, strict=True), ("pointing", 0.25)}  # by a model's patches
    lines = list(dict.fromkeys((row["model"], row["by"], row["own"]) for row in rows))
    by = {name: [(by, own) for model, by, own in lines if model == models[name]] for name in models}
    assert by["CLIP"] == [("mean", "True")]
    assert by["FILIP"] == [("image", "False"), ("text", "False"), ("mean", "True")]
    assert all(by[kind] == [("image", "False"), ("text", "True")] for kind in KINDS)

    def number(model: str, column: str) -> float:
        (result,) = {
            r["value"] for r in rows if r["model"] == models[model] and r["title"] == column and r["own"] == "True"
        }
        return float(result or "nan")

    for model in ("CLIP", "ColQwen2", "EmbeddingGemma 2"):
        expected = [accuracy(models[model], *captions(tmp_path, part)) for part in PARTS]
        assert (
            number(model, "SugarCrepe") == pytest.approx(sum(expected) / len(PARTS))
            and 0 < number(model, "SugarCrepe") < 1
        )
    assert [name for name in models if number(name, "pointing") >= 0] == ["FILIP", "CLIP"]  # the others give no places

    compare(tmp_path, list(models.values()), data)  # from the results that are kept
    again = capsys.readouterr()
    assert "done before" in again.err and "balanced" in again.out and "25.0 / 23.8" in again.out
    shown = next(line for line in again.out.splitlines() if line.startswith("filip, mean of both *"))
    assert f"{100 * number('FILIP', COLUMNS[1]):.1f}" in shown


def accuracy(model: str, images: list[Image.Image], texts: list[list[str]]) -> float:
    """Return how often the first of an image's texts scores highest, by the model's own library."""
    from sentence_transformers import MultiVectorEncoder
    from transformers import CLIPModel, CLIPProcessor

    kind, _, folder = model.partition(":")
    right = []
    for image, own in zip(images, texts, strict=True):
        if kind == "mv":
            theirs = MultiVectorEncoder(folder, device="cpu")
            scores = theirs.similarity(theirs.encode_query(own), theirs.encode_document([image]))[:, 0]
        else:
            inputs = CLIPProcessor.from_pretrained(folder)(text=own, images=[image], return_tensors="pt", padding=True)
            with torch.inference_mode():
                scores = CLIPModel.from_pretrained(folder)(**inputs).logits_per_image[0]
        right.append(float(scores[0] > scores[1]) + 0.5 * float(scores[0] == scores[1]))
    return sum(right) / len(right)


def test_without_any_of_the_benchmarks_it_says_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare(tmp_path, [write_model(tmp_path / "m.safetensors")])
    assert f"root={tmp_path} has no set of captions" in capsys.readouterr().err


def test_a_card_without_a_column_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare(tmp_path, ["emoji"], "data=[winoground,demo_select_name,mscoco]")
    assert "data=demo_select_name,mscoco: the table has no column" in capsys.readouterr().err
