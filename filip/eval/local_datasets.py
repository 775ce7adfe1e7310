"""Test sets in the formats they were published in: torchvision's readers, Karpathy's JSON for captions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from filip.errors import UserError
from filip.eval.cards import BenchmarkCard
from filip.eval.datasets import EvalSet, Sample

__all__ = ["KarpathySet", "TorchvisionSet", "open_local"]


def open_local(card: BenchmarkCard, root: str | Path) -> EvalSet:
    """The data set of a card whose loader is torchvision or karpathy."""
    folder = Path(root) / card.path
    if card.loader == "torchvision":
        return TorchvisionSet(folder, card.split, card.layout.options, card.name)
    return KarpathySet(folder, card.split, **card.layout.options)


def _split(data_set: Callable[..., Any], folder: Path, split: str) -> Any:
    return data_set(str(folder), split=split)


def _train_flag(data_set: Callable[..., Any], folder: Path, split: str) -> Any:
    return data_set(str(folder), train=split == "train")


def _whole(data_set: Callable[..., Any], folder: Path, split: str) -> Any:
    return data_set(str(folder))  # these have no split of their own


# How each reader is told which split to read.
READERS: dict[str, Callable[..., Any]] = {
    "CIFAR10": _train_flag,
    "CIFAR100": _train_flag,
    "Caltech101": _whole,
    "StanfordCars": _split,
    "Flowers102": _split,
    "Food101": _split,
    "SUN397": _whole,
    "DTD": _split,
    "FGVCAircraft": _split,
    "OxfordIIITPet": _split,
    "EuroSAT": _whole,
    "ImageNet": _split,
}


class TorchvisionSet(EvalSet):
    """One of torchvision's data sets in its official format below ``folder``; nothing is downloaded.

    options: ``dataset`` (torchvision's class name); ``partition`` (for SUN397: a file that lists the images
    of the split, such as ``Partitions/Testing_01.txt``).
    """

    def __init__(self, folder: Path, split: str, options: dict[str, Any], name: str):
        from torchvision import datasets

        kind = str(options.get("dataset"))
        if kind not in READERS:
            raise UserError(f"card {name}: dataset {kind!r} is not one of {', '.join(sorted(READERS))}")
        try:
            self.data = READERS[kind](getattr(datasets, kind), folder, split)
        except (RuntimeError, FileNotFoundError, ValueError) as error:
            raise UserError(
                f"torchvision finds no {kind} below {folder}: {error} (nothing is downloaded here; put the "
                "official files there, see the card's homepage)"
            ) from error
        self.classes = _class_names(kind, self.data)
        self.chosen: list[int] = list(range(len(self.data)))
        if partition := options.get("partition"):
            self.chosen = _in_partition(self.data, folder, str(partition))

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Sample:
        image, label = self.data[self.chosen[index]]
        return Sample(str(self.chosen[index]), image.convert("RGB"), int(label))


def _class_names(kind: str, data: Any) -> list[str]:
    """Raw class names; position = label."""
    if kind == "ImageNet":
        return list(data.wnids)  # words are ambiguous, WordNet ids are not
    if kind == "Caltech101":
        return list(data.categories)
    return [str(name) for name in data.classes]


def _in_partition(data: Any, folder: Path, partition: str) -> list[int]:
    """Indices of the images that a partition file of SUN397 lists (``/a/abbey/sun_….jpg``, one a line)."""
    file = folder / partition
    if not file.is_file():
        raise UserError(f"no partition file at {file}; it comes with SUN397 as Partitions.zip")
    base = folder / "SUN397"
    index = {
        "/" + path.relative_to(base).as_posix(): i for i, path in enumerate(map(Path, data._image_files))
    }
    wanted = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    if missing := [line for line in wanted if line not in index]:
        raise UserError(f"{len(missing)} images of {file} are not below {base}, e.g. {missing[0]}")
    return [index[line] for line in wanted]


class KarpathySet(EvalSet):
    """Karpathy's ``dataset_coco.json`` / ``dataset_flickr30k.json`` with the images beside.

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
