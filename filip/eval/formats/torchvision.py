"""The data sets of torchvision, in the official files that its readers expect; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filip.common.errors import UserError
from filip.eval.benchmark import BenchmarkCard
from filip.eval.datasets import EvalSet, Sample
from filip.images.rgb import to_rgb, upright


def open_set(card: BenchmarkCard, root: str | Path) -> EvalSet:
    return TorchvisionSet(Path(root) / card.path, card.split, card.layout.options, card.name)


# How each reader is given the split: by its name, by `train`, or not at all.
NAMED = ("StanfordCars", "Flowers102", "Food101", "DTD", "FGVCAircraft", "OxfordIIITPet", "ImageNet")
FLAGGED = ("CIFAR10", "CIFAR100")
WHOLE = ("Caltech101", "SUN397", "EuroSAT")


class TorchvisionSet(EvalSet):
    """One of torchvision's data sets in its official format below ``folder``; nothing is downloaded.

    options: ``dataset`` (torchvision's class name); ``partition`` (for SUN397: a file that lists the images
    of the split, such as ``Partitions/Testing_01.txt``).
    """

    def __init__(self, folder: Path, split: str, options: dict[str, Any], name: str):
        from torchvision import datasets

        kind = str(options.get("dataset"))
        if kind not in (*NAMED, *FLAGGED, *WHOLE):
            known = ", ".join(sorted((*NAMED, *FLAGGED, *WHOLE)))
            raise UserError(f"card {name}: dataset {kind!r} is not one of {known}")
        given: dict[str, Any] = {"split": split} if kind in NAMED else {}
        given |= {"train": split == "train"} if kind in FLAGGED else {}
        try:
            self.data = getattr(datasets, kind)(str(folder), **given)
        except (RuntimeError, FileNotFoundError, ValueError) as error:
            raise UserError(
                f"torchvision finds no {kind} below {folder}: {error} (nothing is downloaded here; put the "
                "official files there, see the card's homepage)"
            ) from error
        # position = label; ImageNet's words are ambiguous, WordNet ids are not
        names = {"ImageNet": "wnids", "Caltech101": "categories"}.get(kind, "classes")
        self.classes = [str(one) for one in getattr(self.data, names)]
        self.chosen: list[int] = list(range(len(self.data)))
        if partition := options.get("partition"):
            self.chosen = _in_partition(self.data, folder, str(partition))

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> Sample:
        image, label = self.data[self.chosen[index]]
        return Sample(str(self.chosen[index]), to_rgb(upright(image)), int(label))


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
