"""Boxes of COCO's or LVIS' annotations, each cut out of its image: box classification."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from filip.errors import UserError
from filip.eval.benchmark import BenchmarkCard
from filip.eval.datasets import EvalSet, Sample, shown_box
from filip.rgb import FORMATS


def open_set(card: BenchmarkCard, root: str | Path) -> EvalSet:
    return CocoBoxes(Path(root) / card.path, **card.layout.options)


class CocoBoxes(EvalSet):
    """The boxes of a COCO file.

    folder: holds the JSON (``annotations``) and the images, at the last two parts of their ``coco_url`` (LVIS takes
    its images from COCO's train2017 and val2017) or below ``val2017`` by ``file_name``.

    The classes are the categories in the order of their ids; boxes of one image are a cluster.
    """

    def __init__(self, folder: Path, annotations: str, images: str = "val2017"):
        file = folder / annotations
        if not file.is_file():
            raise UserError(f"no annotations at {file}")
        content = json.loads(file.read_text(encoding="utf-8"))
        try:
            categories = sorted(content["categories"], key=lambda category: category["id"])
            self.classes = [str(category["name"]).replace("_", " ") for category in categories]
            label = {category["id"]: number for number, category in enumerate(categories)}
            where = {
                image["id"]: folder / Path(*Path(image["coco_url"]).parts[-2:])
                if "file_name" not in image
                else folder / images / image["file_name"]
                for image in content["images"]
            }
            self.boxes = [
                (where[one["image_id"]], one["bbox"], label[one["category_id"]], one["id"])
                for one in content["annotations"]
                if not one.get("iscrowd") and min(one["bbox"][2:]) >= 2
            ]
        except (KeyError, TypeError) as error:
            raise UserError(f"{file} is not in COCO's format: {error!r}") from error
        if not self.boxes:
            raise UserError(f"{file} has no boxes")
        if not self.boxes[0][0].is_file():
            raise UserError(f"{file} names {self.boxes[0][0]}, which is not there")

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int) -> Sample:
        path, (x, y, width, height), label, number = self.boxes[index]
        box = (x, y, x + width, y + height)
        shown = shown_box(Image.open(path, formats=FORMATS), box, tuple(round(edge) for edge in box))
        return Sample(str(number), label=label, cluster=path.stem, **shown)
