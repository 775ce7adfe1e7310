"""The data sets of torchvision, in the official files that its readers expect; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from filip.common.errors import UserError
from filip.eval.benchmark import BenchmarkCard
from filip.eval.datasets import EvalSet, Sample
from filip.images.rgb import to_rgb, upright


def open_set(card: BenchmarkCard, root: str | Path) -> EvalSet:
    return TorchvisionSet(Path(root) / card.path, card.split, card.layout.options, card.name)


def _split(data_set: Callable[..., Any], folder: Path, split: str) -> Any:
    return data_set(str(folder), split=split)


def _train_flag(data_set: Callable[..., Any], folder: Path, split: str) -> Any:
    return data_set(str(folder), train=split == "train")


def _whole(data_set: Callable[..., Any], folder: Path, split: str) -> Any:
    return data_set(str(folder))  # these have no separate splits


# How each reader is given the split.
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
        return Sample(str(self.chosen[index]), to_rgb(upright(image)), int(label))


def _class_names(kind: str, data: Any) -> list[str]:
    """Return the raw class names; position = label."""
    if kind == "ImageNet":
        return list(data.wnids)  # words are ambiguous, WordNet ids are not
    if kind == "Caltech101":
        return list(data.categories)
    return [str(name) for name in data.classes]


def _in_partition(data: Any, folder: Path, partition: str) -> list[int]:
    """Return the indices of the images that a partition file of SUN397 lists (``/a/abbey/sun_….jpg``, one a line)."""
    file = folder / partition
    if not file.is_file():
        raise UserError(f"no partition file at {file}; it comes with SUN397 as Partitions.zip")
    base = folder / "SUN397"
    index = {"/" + path.relative_to(base).as_posix(): i for i, path in enumerate(map(Path, data._image_files))}
    names = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    if missing := [line for line in names if line not in index]:
        raise UserError(f"{len(missing)} images of {file} are not below {base}, e.g. {missing[0]}")
    return [index[line] for line in names]
