"""Benchmarks in the formats of their repositories, and data without a card, all through their real loaders.

Images are colours that are numbers (tests/eval/formats.py), and the model reads both: it is right exactly if the loader
put together what belongs together.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from filip.command import run_command
from filip.errors import UserError
from filip.eval.__main__ import Evaluation
from filip.eval.__main__ import main as evaluate
from filip.eval.cards import load_card
from filip.eval.outcomes import read_outcomes
from filip.eval.own_data import cards_of
from filip.eval.prompts import Prompt
from filip.eval.retrieval import Retrieval, retrieval_benchmark
from filip.eval.scorer import PooledScorer
from filip.eval.selection import chosen, select, winoground_outcome
from filip.eval.table import TableOptions, with_files
from filip.eval.table import main as table
from tests.eval.formats import number_of, shown
from tests.eval.miniature import write_model


class Reader:
    """Sees the number that an image shows and reads the last number of a text; they match or they do not."""

    name, token_wise, image_size, dtype, device, context_length = "reader", False, 8, torch.float32, "cpu", 8

    def transform(self, image: Image.Image) -> Tensor:
        return torch.full((3, 1, 1), float(number_of(np.asarray(image, dtype=float).mean((0, 1)))))

    def encode_images(self, pixels: Tensor) -> Tensor:
        return torch.stack([torch.eye(1000)[int(p[0, 0, 0])] for p in pixels])

    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, None]:
        return torch.stack([torch.eye(1000)[int(text.split()[-1].strip("."))] for text in texts]), None

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) + 2 for text in texts]


def save(path: Path, number: int, box: tuple[int, int, int, int] | None = None) -> None:
    """An image of a colour; with a box [x, y, w, h] only there, and another colour around it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = shown(number, 32)
    if box is not None:
        page = shown(999, 32)
        page.paste(shown(number, 32).crop((0, 0, box[2], box[3])), box[:2])
        image = page
    image.save(path, "PNG" if path.suffix == ".png" else "JPEG", quality=95)


BOX = (8, 4, 16, 20)


def sugar_crepe(root: Path, name: str) -> int:
    rows = {
        str(3 * i): {"filename": f"{i:012d}.jpg", "caption": f"a {i}", "negative_caption": f"a {i + 50}"}
        for i in range(5)
    }
    for i in range(5):
        save(root / "sugar_crepe" / "val2017" / f"{i:012d}.jpg", i)
    write_json(root / "sugar_crepe" / "data" / f"{name.removeprefix('sugar_crepe_')}.json", rows)
    return 5


def sugar_crepe_pp(root: Path, name: str) -> int:
    rows = [
        {
            "id": i,
            "filename": f"{i}.jpg",
            "caption": f"a {i}",
            "caption2": f"one {i}",
            "negative_caption": f"a {i + 50}",
        }
        for i in range(5)
    ]
    for i in range(5):
        save(root / "sugar_crepe_pp" / "val2017" / f"{i}.jpg", i)
    write_json(root / "sugar_crepe_pp" / "data" / f"{name.removeprefix('sugar_crepe_pp_')}.json", rows)
    return 5


def aro_relation(root: Path, name: str) -> int:
    x, y, w, h = BOX
    box = {"bbox_x": x, "bbox_y": y, "bbox_w": w, "bbox_h": h}
    about = {"relation_name": "on"} if name == "aro_relation" else {"attributes": ["red", "old"]}
    rows = [
        {"image_path": f"{i}.jpg", **box, "true_caption": f"a {i}", "false_caption": f"a {i + 50}", **about}
        for i in range(4)
    ]
    for i in range(4):
        save(root / "aro" / "images" / f"{i}.jpg", i, BOX)
    write_json(root / "aro" / f"visual_genome_{name.removeprefix('aro_')}.json", rows)
    return 4


def aro_order(root: Path, name: str) -> int:
    folder = root / ("coco" if "coco" in name else "flickr30k")
    rows = [
        {"image": f"v/{i}.jpg", "caption_options": [f"x {i + 50 * j}" for j in range(5)]} for i in range(4)
    ]
    for i in range(4):
        save(folder / "v" / f"{i}.jpg", i)
    write_json(folder / f"{name.removeprefix('aro_')}_test.json", rows)
    return 4


def fg_ovd(root: Path, name: str) -> int:
    files = {
        "hard": "1_attributes",
        "medium": "2_attributes",
        "easy": "3_attributes",
        "trivial": "shuffle_negatives",
    }
    rows = [
        {
            "img_path": f"val2017/{i}.jpg",
            "bbox": [float(v) for v in BOX],
            "pos_expression": [f"a {i}"],
            "neg_expression": [f"a {i + 10 * j}" for j in range(1, 11)],
        }
        for i in range(4)
    ]
    for i in range(4):
        save(root / "fg_ovd" / "coco" / "val2017" / f"{i}.jpg", i, BOX)
    file = root / "fg_ovd" / f"{files[name.removeprefix('fg_ovd_')]}_llava.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 4


def winoground(root: Path, name: str) -> int:
    rows = []
    for i in range(4):
        row: dict[str, Any] = {"id": i, "tag": "Object"}
        for side in range(2):
            row |= {f"image_{side}": f"ex_{i}_img_{side}", f"caption_{side}": f"some {2 * i + side}"}
            save(root / "winoground" / "images" / f"ex_{i}_img_{side}.png", 2 * i + side)
        rows.append(row)
    (root / "winoground" / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 4


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


ORDERS = list(itertools.permutations(range(4)))
PARTS = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
SELECTION: dict[str, Callable[[Path, str], int]] = {
    **{f"sugar_crepe_{part}": sugar_crepe for part in PARTS},
    **{f"sugar_crepe_pp_{part}": sugar_crepe_pp for part in PARTS[2:]},
    **{f"aro_{part}": aro_relation for part in ("relation", "attribution")},
    **{f"aro_{part}_order": aro_order for part in ("coco", "flickr")},
    **{f"fg_ovd_{part}": fg_ovd for part in ("hard", "medium", "easy", "trivial")},
    "winoground": winoground,
}


@pytest.mark.parametrize("name", SELECTION)
def test_every_selection_card_through_its_loader(name: str, tmp_path: Path) -> None:
    n = SELECTION[name](tmp_path, name)
    record: dict[str, Any] = {}
    scorer = PooledScorer(Reader())  # type: ignore[arg-type]
    found = select(scorer, load_card(name), str(tmp_path), batch_size=3, record=record)
    assert found["n"] == n and all(found[by]["value"] == 1 for by in ("image", "text", "mean"))
    chance = {
        "sugar_crepe_pp": 1 / 3,
        "aro_coco": 1 / 5,
        "aro_flickr": 1 / 5,
        "fg_ovd": 1 / 11,
        "winoground": 1 / 6,
    }
    expected = next((value for prefix, value in chance.items() if name.startswith(prefix)), 1 / 2)
    assert found["chance"] == pytest.approx(expected)
    assert len(record[name].key) == n
    if name == "aro_relation":
        assert found["by_category"]["of"]["on"] == {"n": 4, "image": 1, "text": 1, "mean": 1}
    if name == "winoground":
        assert found["image"]["text"]["value"] == found["image"]["image"]["value"] == 1


def test_chosen_is_the_mean_over_the_orders_of_equal_scores() -> None:
    generator = np.random.default_rng(0)
    for _ in range(40):
        scores, truths = generator.integers(0, 3, 4).tolist(), int(generator.integers(1, 4))
        orders = [
            o
            for o in itertools.permutations(range(4))
            if all(scores[a] >= scores[b] for a, b in itertools.pairwise(o))
        ]
        right = [set(order[:truths]) == set(range(truths)) for order in orders]
        assert chosen(scores, truths) == pytest.approx(np.mean(right))
    assert chosen([float("nan"), 0.0]) == 0


def test_winoground_by_its_definition_and_chance_where_all_is_equal() -> None:
    assert winoground_outcome((0.9, 0.1), (0.8, 0.2)) == (1, 1, 1)
    assert winoground_outcome((0.5, 0.1), (0.9, 0.8)) == (1, 0, 0)  # caption 0 prefers the other image
    assert winoground_outcome((0.5, 0.6), (0.9, 0.1)) == (0, 1, 0)
    assert winoground_outcome((0.5, 0.5), (0.5, 0.5)) == pytest.approx((1 / 4, 1 / 4, 1 / 6))


def test_clip_benchmark_selects_as_often(tmp_path: Path) -> None:
    """Its SugarCrepe and image_caption_selection, with a model that is right for some images and wrong for others."""
    from clip_benchmark.datasets.sugar_crepe import SugarCrepe
    from clip_benchmark.metrics import image_caption_selection
    from torch.utils.data import DataLoader

    sugar_crepe(tmp_path, "sugar_crepe_swap_att")
    folder = tmp_path / "sugar_crepe"

    class Noisy(Reader):
        def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, None]:
            numbers = [int(text.split()[-1]) for text in texts]
            mixed = [torch.randn(1000, generator=torch.Generator().manual_seed(n)) for n in numbers]
            return torch.nn.functional.normalize(torch.stack(mixed), dim=-1), None

    class Model:
        encode_image = staticmethod(Noisy().encode_images)

        @staticmethod
        def encode_text(numbers: Tensor) -> Tensor:
            return Noisy().encode_texts([f"a {int(n)}" for n in numbers])[0]

    data = SugarCrepe(str(folder / "val2017"), str(folder / "data" / "swap_att.json"), Reader().transform)

    def collate(items: list[Any]) -> tuple[Tensor, list[list[str]]]:
        return torch.stack([image for image, _ in items]), [texts for _, texts in items]

    theirs = image_caption_selection.evaluate(
        Model,
        DataLoader(data, batch_size=2, collate_fn=collate),
        lambda texts: torch.tensor([int(t.split()[-1]) for t in texts]),
        "cpu",
        amp=False,
    )
    ours = select(PooledScorer(Noisy()), load_card("sugar_crepe_swap_att"), str(tmp_path))  # type: ignore[arg-type]
    assert (
        ours["image"]["value"] == pytest.approx(theirs["text_acc"], abs=1e-6) and 0 < theirs["text_acc"] < 1
    )


LONG = ("urban1k", "docci", "iiw", "dci")


def write_long(root: Path, name: str) -> None:
    texts = [f"{'very ' * (2 * i)}long {i}" for i in range(5)]
    rows: list[dict[str, Any]] = []
    for i, text in enumerate(texts):
        if name == "urban1k":
            save(root / "Urban1k" / "image" / f"{i}.jpg", i)
            (root / "Urban1k" / "caption").mkdir(exist_ok=True)
            (root / "Urban1k" / "caption" / f"{i}.txt").write_text(text + "\n")
        elif name == "dci":
            save(root / "densely_captioned_images" / "photos" / f"sa_{i}.jpg", i)
            content = {
                "image": f"sa_{i}.jpg",
                "short_caption": "It is",
                "extra_caption": text,
                "mask_data": {},
            }
            write_json(root / "densely_captioned_images" / "complete" / f"{i}.json", content)
        elif name == "docci":
            save(root / "docci" / "images" / f"test_{i}.jpg", i)
            rows.append(
                {
                    "example_id": f"test_{i}",
                    "split": "test",
                    "image_file": f"test_{i}.jpg",
                    "description": text,
                }
            )
        else:
            save(root / "iiw" / "images" / f"aar_{i}.jpg", i)
            rows.append({"image/key": f"aar_{i}", "IIW": text, "IIW-P5B": "other"})
    if rows:
        file = root / ("docci/docci_descriptions.jsonlines" if name == "docci" else "iiw/data.jsonl")
        other = [{**rows[0], "split": "train"}] if name == "docci" else []
        file.write_text("".join(json.dumps(row) + "\n" for row in [*other, *rows]))


@pytest.mark.parametrize("name", LONG)
def test_every_long_text_card_through_its_loader_and_what_is_cut_is_counted(
    name: str, tmp_path: Path
) -> None:
    write_long(tmp_path, name)
    config = Retrieval(model="", root="", cards=[], out="")
    bare = (Prompt("", ""), Prompt("", ""))
    scorer = PooledScorer(Reader())  # type: ignore[arg-type]
    found = retrieval_benchmark(scorer, load_card(name), tmp_path, bare, config)
    assert (found["images"], found["captions"]) == (5, 5)
    assert found["i2t"]["r1"] == found["t2i"]["r1"] == 1
    assert found["cut_captions"] == (3 if name == "dci" else 2)  # of 8 tokens: words and two
    assert f"of 5 captions are longer than the model's {found['cut_at']} tokens" in found["cut_note"]


# ---- data without a card -----------------------------------------------------------------------------


def own_folder(root: Path) -> Path:
    for i in range(4):
        for n in range(2):
            save(root / "pictures" / f"class {i}" / "deep" / f"{n}.png", i)
    (root / "pictures" / "class 0" / "notes.txt").write_text("no image")
    return root / "pictures"


def own_table(root: Path, suffix: str) -> Path:
    rows = [
        {"image": f"images/{i // 2}.png", "caption": f"{'one' if i % 2 else 'two'} {i // 2}"}
        for i in range(8)
    ]
    for i in range(4):
        save(root / "images" / f"{i}.png", i)
    place = root / f"pairs{suffix}"
    if suffix == ".csv":
        with open(place, "w", newline="") as file:
            writer = csv.DictWriter(file, ["image", "caption"])
            writer.writeheader()
            writer.writerows(rows)
    elif suffix == ".jsonl":
        place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), place)
    else:
        from datasets import Dataset, Features, Value
        from datasets import Image as Picture

        for row in rows:
            row["image"] = str(root / row["image"])
        Dataset.from_list(rows, Features({"image": Picture(), "caption": Value("string")})).save_to_disk(
            place
        )
    return place


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", "_of_datasets"])
def test_a_table_of_images_and_captions_needs_no_card(suffix: str, tmp_path: Path) -> None:
    (card,) = cards_of(str(own_table(tmp_path, suffix)))
    assert (card.name, card.kind) == (f"pairs{'' if suffix[0] == '.' else suffix}", "retrieval")
    config = Retrieval(model="", root="", cards=[], out="")
    found = retrieval_benchmark(PooledScorer(Reader()), card, ".", (Prompt("", ""), Prompt("", "")), config)  # type: ignore[arg-type]
    rows_are_images = suffix == "_of_datasets"  # pictures inside the table: nothing says which are the same
    assert (found["images"], found["captions"]) == ((8, 8) if rows_are_images else (4, 8))
    assert found["t2i"]["r1"] == (0.5 if rows_are_images else 1)


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
    assert rows[0].split() == ["benchmark", "measure", "images", "chance", "tiny"]
    assert [row.split("  ")[0] for row in rows[2:]][:2] == ["pictures (zero-shot)", "pairs (retrieval)"]
    assert sum("pairs (retrieval)" in row for row in rows) == 6 and "by their mean" in said.out
    out = tmp_path / "results" / "eval" / "tiny"
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.json")) == [
        "retrieval/pairs.json",
        "selection/sugar_crepe_swap_att.json",
        "zero_shot/pictures.json",
    ]
    assert len(read_outcomes(out / "zero_shot" / "pictures.json")["pictures"].key) == 8
    zero_shot = json.loads((out / "zero_shot" / "pictures.json").read_text())
    assert zero_shot["tasks"]["pictures"]["prompts"] == 1

    evaluated(f"model={model}", data, "prompts=a photo of a {c}.")
    again = capsys.readouterr()
    assert again.out == said.out and again.err.count("done before") == 3
    evaluated(f"model={model}", data, "prompts=one {c}.")  # another prompt: not the same result
    assert capsys.readouterr().err.count("done before") == 0

    other = write_model(tmp_path / "other.safetensors", "pooled", seed=1)
    evaluated(f"model={other}", f"data={tmp_path / 'pictures'}", "protocols=[zero_shot,linear_probe]")
    assert "linear probe" in capsys.readouterr().out
    files = [str(p) for p in (tmp_path / "results").rglob("*.json")]
    run_command(table, TableOptions, argv=with_files([*files, "form=markdown"]))
    merged = capsys.readouterr().out.splitlines()
    assert merged[0].count("|") == 7 and merged[1].startswith("| --- | --- | ---:")
    assert any(
        "1 prompts of one {c}." in line and "pooled" in line for line in merged
    )  # evaluated differently


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nothing", "no benchmark card 'nothing'"),
        ("empty", "holds nothing to evaluate on: give a folder of classes"),
        ("odd.csv", "has no column of captions (caption, captions"),
        ("lost.csv", "names an image that cannot be read"),
        ("cifar10", "no data set at"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_is_encoded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    data: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd.csv").write_text("image,width\na.png,3\n")
    (tmp_path / "lost.csv").write_text("image,caption\na.png,a cat\n")
    with pytest.raises(SystemExit):
        evaluated("model=there_is_none.safetensors", f"data={data}")  # the data are looked at first
    assert message in capsys.readouterr().err


def test_a_card_with_an_option_that_its_loader_does_not_have_is_refused(tmp_path: Path) -> None:
    sugar_crepe(tmp_path, "sugar_crepe_add_att")
    (tmp_path / "card.yaml").write_text(
        "name: c\ntitle: c\nkind: selection\nmetric: accuracy\nloader: records\n"
        "layouts: {records: {path: sugar_crepe/data/add_att.json, split: test, capton: caption}}\n"
    )
    with pytest.raises(UserError, match=r"layouts\.records has no option 'capton'"):
        select(PooledScorer(Reader()), load_card(tmp_path / "card.yaml"), str(tmp_path))  # type: ignore[arg-type]
