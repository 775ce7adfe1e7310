"""Winoground: pairs of images and of captions that have the same words, as its repository on the hub has them."""

from __future__ import annotations

from pathlib import Path

from filip.common.errors import UserError
from filip.common.progress import say
from filip.eval.benchmark import BenchmarkCard
from filip.eval.datasets import EvalSet, Sample
from filip.eval.formats.records import read_records
from filip.images.rgb import read_rgb

COLUMNS = ("id", "image_0", "image_1", "caption_0", "caption_1")


def open_set(card: BenchmarkCard, root: str | Path) -> EvalSet:
    return Winoground(Path(root) / card.path, **card.layout.options)


class Winoground(EvalSet):
    """Two samples per example, one after the other: each image with its caption first and the other one second.

    folder: holds ``annotations`` (examples.jsonl) and the unpacked ``images``. The example is the cluster.
    """

    def __init__(self, folder: Path, annotations: str = "examples.jsonl", images: str = "images"):
        self.folder = folder / images
        self.rows = read_records(folder / annotations)
        if missing := [name for name in COLUMNS if name not in self.rows.columns]:
            raise UserError(f"{folder / annotations} has no {missing[0]}: it is not Winoground's")
        if left := self.rows.account.line():
            say(f"{folder / annotations}: left out: {left}")
        self.classes = None
        self[0]  # a missing image stops the command here

    def __len__(self) -> int:
        return 2 * len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row, side = self.rows[index // 2], index % 2
        path = self.folder / str(row[f"image_{side}"])
        path = path if path.suffix else path.with_name(f"{path.name}.png")
        if not path.is_file():
            raise UserError(f"Winoground's image {path} is missing (unpack images.zip there)")
        captions = [str(row[f"caption_{side}"]), str(row[f"caption_{1 - side}"])]
        example = str(row["id"])
        return Sample(f"{example} {side}", read_rgb(path), captions=captions, cluster=example)
