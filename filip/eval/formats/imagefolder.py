"""A folder of classes: ``<path>/<class>/*.jpg``, or below it a folder per split first."""

from __future__ import annotations

from pathlib import Path

from filip.common.errors import UserError
from filip.common.progress import say
from filip.eval.benchmark import BenchmarkCard
from filip.eval.datasets import EvalSet, Sample
from filip.images.rgb import not_read, read_rgb
from filip.sets.layout import is_picture, walk


def open_set(card: BenchmarkCard, root: str | Path) -> EvalSet:
    return ImageFolder(Path(root) / card.path, card.split)


class ImageFolder(EvalSet):
    """A folder of class folders: the classes are their names, in alphabetical order; images are in the order of their
    paths within a class.

    split: a folder of that name inside, if there is one; otherwise the folder itself is the set.
    """

    def __init__(self, folder: Path, split: str):
        if (folder / split).is_dir():
            self.others, folder = {entry.name for entry in folder.iterdir()} - {split}, folder / split
        if not folder.is_dir():
            raise UserError(f"no data set at {folder}")
        files = {entry.name: images_below(entry) for entry in sorted(folder.iterdir()) if entry.is_dir()}
        self.folder = folder
        self.classes = [name for name, images in files.items() if images]
        if len(self.classes) < 2:
            raise UserError(f"{folder} should hold a folder of images for each class; it has {len(self.classes)}")
        if left_out := not_read(path for path, _ in walk(folder)):
            say(f"{folder}: left out {left_out}")
        self.items = [(path, label) for label, name in enumerate(self.classes) for path in files[name]]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        path, label = self.items[index]
        return Sample(self.name_of(index), read_rgb(path), label)

    def name_of(self, index: int) -> str:
        return self.items[index][0].relative_to(self.folder).as_posix()


def images_below(folder: Path) -> list[Path]:
    """Return all images of a folder and the folders in it, sorted."""
    return sorted(path for path, problem in walk(folder) if problem is None and is_picture(path))
