"""Benchmarks in the files of their repositories, small, and a model that reads what their images and texts show.

Images are colours that are numbers, so that a test knows the truth from the pixels, and the model reads both: it is
right exactly if the loader put together what belongs together.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

STEP = 25  # between colour levels: more than JPEG disturbs


def colour(number: int) -> tuple[int, int, int]:
    """Return three decimal digits as three levels."""
    return (number // 100 * STEP + 12, number // 10 % 10 * STEP + 12, number % 10 * STEP + 12)


def number_of(mean: np.ndarray) -> int:
    """Return the inverse of :func:`colour` from the mean colour of an image (0..255)."""
    hundreds, tens, ones = np.rint((mean - 12) / STEP).astype(int)
    return int(100 * hundreds + 10 * tens + ones)


def shown(number: int, side: int = 16) -> Image.Image:
    return Image.new("RGB", (side, side), colour(number))


class Reader:
    """A model that sees the number of an image and reads the last number of a text; they match or they do not."""

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
    """Save an image of a colour; with a box [x, y, w, h] only there, and another colour around it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = shown(number, 32)
    if box is not None:
        page = shown(999, 32)
        page.paste(shown(number, 32).crop((0, 0, box[2], box[3])), box[:2])
        image = page
    image.save(path, "PNG" if path.suffix == ".png" else "JPEG", quality=95)


BOX = (8, 4, 16, 20)


def save_all(folder: Path, count: int, box: tuple[int, int, int, int] | None = None, name: str = "{}.jpg") -> None:
    for i in range(count):
        save(folder / name.format(i), i, box)


def sugar_crepe(root: Path, name: str) -> int:
    rows = {
        str(3 * i): {"filename": f"{i:012d}.jpg", "caption": f"a {i}", "negative_caption": f"a {i + 50}"}
        for i in range(5)
    }
    save_all(root / "sugar_crepe" / "val2017", 5, name="{:012d}.jpg")
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
    save_all(root / "sugar_crepe_pp" / "val2017", 5)
    write_json(root / "sugar_crepe_pp" / "data" / f"{name.removeprefix('sugar_crepe_pp_')}.json", rows)
    return 5


def aro_relation(root: Path, name: str) -> int:
    box = dict(zip(("bbox_x", "bbox_y", "bbox_w", "bbox_h"), BOX, strict=True))
    about = {"relation_name": "on"} if name == "aro_relation" else {"attributes": ["red", "old"]}
    rows = [
        {"image_path": f"{i}.jpg", **box, "true_caption": f"a {i}", "false_caption": f"a {i + 50}", **about}
        for i in range(4)
    ]
    save_all(root / "aro" / "images", 4, BOX)
    write_json(root / "aro" / f"visual_genome_{name.removeprefix('aro_')}.json", rows)
    return 4


def aro_order(root: Path, name: str) -> int:
    folder = root / ("coco" if "coco" in name else "flickr30k")
    rows = [{"image": f"v/{i}.jpg", "caption_options": [f"x {i + 50 * j}" for j in range(5)]} for i in range(4)]
    save_all(folder / "v", 4)
    write_json(folder / f"{name.removeprefix('aro_')}_test.json", rows)
    return 4


def fg_ovd(root: Path, name: str) -> int:
    files = {"hard": "h_attributes", "medium": "m_attributes", "easy": "e_attributes", "trivial": "shuffle_negatives"}
    wrong = [[f"a {i + 10 * j}" for j in range(1, 11)] for i in range(4)]
    rows = [
        {"img_path": f"val2017/{i}.jpg", "bbox": [*BOX], "pos_expression": [f"a {i}"], "neg_expression": wrong[i]}
        for i in range(4)
    ]
    save_all(root / "fg_ovd" / "coco" / "val2017", 4, BOX)
    write_lines(root / "fg_ovd" / f"{files[name.removeprefix('fg_ovd_')]}_llava.jsonl", rows)
    return 4


def half_truths(root: Path, name: str) -> int:
    rows = [
        {"image": f"{i}.jpg", "caption": f"a {i}", "half_truth": f"a {i + 50}", "kind": ("entity", "relation")[i % 2]}
        for i in range(4)
    ]
    save_all(root / "half_truths" / "val2017", 4)
    write_json(root / "half_truths" / "half_truths.json", rows)
    return 4


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_lines(path: Path, rows: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


PARTS = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
SELECTION: dict[str, Callable[[Path, str], int]] = {
    **{f"sugar_crepe_{part}": sugar_crepe for part in PARTS},
    **{f"sugar_crepe_pp_{part}": sugar_crepe_pp for part in PARTS[2:]},
    **{f"aro_{part}": aro_relation for part in ("relation", "attribution")},
    **{f"aro_{part}_order": aro_order for part in ("coco", "flickr")},
    **{f"fg_ovd_{part}": fg_ovd for part in ("hard", "medium", "easy", "trivial")},
    "half_truths_coco": half_truths,
}


LONG = ("docci", "iiw")


def write_long(root: Path, name: str) -> None:
    texts = [f"{'very ' * (2 * i)}long {i}" for i in range(5)]
    rows: list[dict[str, Any]] = []
    for i, text in enumerate(texts):
        if name == "docci":
            save(root / "docci" / "images" / f"test_{i}.jpg", i)
            rows.append(
                {"example_id": f"test_{i}", "split": "test", "image_file": f"test_{i}.jpg", "description": text}
            )
        else:
            save(root / "iiw" / "images" / f"aar_{i}.jpg", i)
            rows.append({"image/key": f"aar_{i}", "IIW": text, "IIW-P5B": "other"})
    file = root / ("docci/docci_descriptions.jsonlines" if name == "docci" else "iiw/data.jsonl")
    write_lines(file, [*([{**rows[0], "split": "train"}] if name == "docci" else []), *rows])
