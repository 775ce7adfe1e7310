"""Karpathy's JSON of captions and splits, with the images of Flickr30K or MS-COCO next to it."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from filip.errors import UserError
from filip.eval.cards import BenchmarkCard
from filip.eval.datasets import EvalSet, Sample


def open_set(card: BenchmarkCard, root: str | Path) -> EvalSet:
    return KarpathySet(Path(root) / card.path, card.split, **card.layout.options)


class KarpathySet(EvalSet):
    """Karpathy's ``dataset_coco.json`` / ``dataset_flickr30k.json`` and its images.

    folder: holds the JSON (``annotations``) and the images (below ``images`` if given): COCO's at
    ``<filepath>/<filename>``, Flickr30K's at ``<filename>``.
    """

    def __init__(self, folder: Path, split: str, annotations: str, images: str = ""):
        file = folder / annotations
        if not file.is_file():
            raise UserError(f"no annotations at {file} (Karpathy's caption_datasets.zip has them)")
        try:
            entries = json.loads(file.read_text(encoding="utf-8"))["images"]
            splits = {"train", "restval"} if split == "train" else {split}  # COCO's 113K are train + restval
            self.entries = [
                (
                    folder / images / entry.get("filepath", "") / entry["filename"],
                    [s["raw"].replace("\n", " ").strip() for s in entry["sentences"]],
                )
                for entry in entries
                if entry["split"] in splits
            ]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise UserError(f"{file} is not in Karpathy's format: {error!r}") from error
        if not self.entries:
            raise UserError(f"{file} has no image of the split {split!r}")
        if not self.entries[0][0].is_file():
            raise UserError(f"{file} names {self.entries[0][0]}, which is not there")
        self.classes = None

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        path, captions = self.entries[index]
        return Sample(path.stem, Image.open(path).convert("RGB"), captions=captions)
