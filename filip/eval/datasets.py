"""Test sets as map-style data sets of (image, label) or (image, captions), whatever their format on disk.

Formats: CLIP_benchmark's webdataset folders (here), torchvision's and Karpathy's (`local_datasets`). All give
the same :class:`Sample`, in a fixed order, so that a loader may use any number of workers.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from filip.errors import UserError
from filip.eval.cards import BenchmarkCard

__all__ = ["Batch", "EvalSet", "Sample", "WebdatasetFolder", "batches", "open_set"]

IMAGE_EXTENSIONS = ("webp", "png", "jpg", "jpeg")  # in the order in which CLIP_benchmark looks for them


@dataclass
class Sample:
    """One test image. ``label`` is -1 in retrieval sets, ``captions`` empty in classification sets."""

    key: str
    image: Image.Image  # RGB
    label: int = -1
    captions: list[str] = field(default_factory=list)
    mask: Image.Image | None = None  # where the object is, if the data set says so (mode L, 0 or 255)


class EvalSet(Dataset[Sample]):
    """A test set: ``classes`` (raw names; position = label; None for retrieval), ``len``, indexing."""

    classes: list[str] | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        raise NotImplementedError


@dataclass
class _Member:
    shard: int
    offset: int
    size: int


class WebdatasetFolder(EvalSet):
    """CLIP_benchmark's layout: ``<folder>/<split>/{nshards.txt,0.tar,…}`` with ``classnames.txt`` beside.

    A sample is an image (webp, png, jpg) and ``.cls`` (label) or ``.txt`` (captions, one a line), and
    optionally ``.mask.png``. The tars are indexed once by their headers and then read at random.
    """

    def __init__(self, folder: str | Path, split: str = "test"):
        self.folder = Path(folder)
        self.shards = self._find_shards(split)
        kind = self._text("dataset_type.txt")
        self.retrieval = kind is not None and kind.strip().lower() == "retrieval"
        names = None if self.retrieval else self._text("classnames.txt")
        if names is None and not self.retrieval:
            raise UserError(f"{self.folder} has no classnames.txt (one class name a line, first = label 0)")
        self.classes = None if names is None else [line.strip() for line in names.splitlines()]
        self.samples = [s for number, shard in enumerate(self.shards) for s in _index(number, shard)]
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        key, members = self.samples[index]
        extension = next((e for e in IMAGE_EXTENSIONS if e in members), None)
        if extension is None:
            raise UserError(f"sample {key} in {self.folder} has no image ({', '.join(IMAGE_EXTENSIONS)})")
        sample = Sample(key, Image.open(io.BytesIO(self._read(members[extension]))).convert("RGB"))
        wanted = "txt" if self.retrieval else "cls"
        if wanted not in members:
            raise UserError(f"sample {key} in {self.folder} has no .{wanted}")
        text = self._read(members[wanted]).decode("utf-8")
        if self.retrieval:
            sample.captions = text.splitlines()
        else:
            sample.label = int(text)
            if not 0 <= sample.label < len(self.classes or []):
                raise UserError(
                    f"sample {key} in {self.folder} has label {sample.label}, but classnames.txt has "
                    f"{len(self.classes or [])} names"
                )
        if "mask.png" in members:
            sample.mask = Image.open(io.BytesIO(self._read(members["mask.png"]))).convert("L")
        return sample

    def _find_shards(self, split: str) -> list[Path]:
        count = self.folder / split / "nshards.txt"
        if not count.is_file():
            splits = sorted(p.parent.name for p in self.folder.glob("*/nshards.txt"))
            raise UserError(
                f"no data set at {self.folder} (looked for {count}); "
                + (
                    f"its splits are {', '.join(splits)}"
                    if splits
                    else "see the card's homepage, or set root="
                )
            )
        shards = [self.folder / split / f"{i}.tar" for i in range(int(count.read_text()))]
        if missing := [str(s) for s in shards if not s.is_file()]:
            raise UserError(f"{count} promises {len(shards)} shards, but {missing[0]} is missing")
        return shards

    def _text(self, name: str) -> str | None:
        file = self.folder / name
        return file.read_text(encoding="utf-8") if file.is_file() else None

    def _read(self, member: _Member) -> bytes:
        if member.shard not in self._open:
            self._open[member.shard] = open(self.shards[member.shard], "rb")  # noqa: SIM115 (kept open)
        # not seek and read: forked workers share the position of a file that was open before them
        return os.pread(self._open[member.shard].fileno(), member.size, member.offset)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # workers open the tars themselves


def _index(number: int, shard: Path) -> list[tuple[str, dict[str, _Member]]]:
    """(key, {extension: where it lies}) for each sample of a tar, in the tar's order."""
    samples: dict[str, dict[str, _Member]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for item in tar:
                if item.isfile():
                    folder, _, name = item.name.rpartition("/")
                    stem, _, extension = name.partition(".")
                    key = f"{folder}/{stem}" if folder else stem
                    samples.setdefault(key, {})[extension.lower()] = _Member(
                        number, item.offset_data, item.size
                    )
    except tarfile.TarError as error:
        raise UserError(f"{shard} is not a readable tar ({error}); fetch it again") from error
    return list(samples.items())


def open_set(card: BenchmarkCard, root: str | Path) -> EvalSet:
    """The data set of a card below ``root``. Raises UserError if it is not there or has the wrong kind."""
    if card.loader == "webdataset":
        data: EvalSet = WebdatasetFolder(Path(root) / card.path, card.split)
    else:
        from filip.eval.local_datasets import open_local

        data = open_local(card, root)
    if (card.kind == "retrieval") != (data.classes is None):
        raise UserError(
            f"card {card.name} is for {card.kind}, but {Path(root) / card.path} holds the other kind "
            "(dataset_type.txt says which)"
        )
    return data


@dataclass
class Batch:
    """pixels: [b, 3, H, W] float; labels: [b] int64; captions and keys: b entries each."""

    pixels: Tensor
    labels: Tensor
    captions: list[list[str]]
    keys: list[str]
    undecodable: list[str]  # keys of images that could not be read: not among the b


class _Transformed(Dataset[Any]):
    def __init__(self, data: EvalSet, transform: Callable[[Image.Image], Tensor]):
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor | None, Sample | str]:
        try:
            sample = self.data[index]
            pixels = self.transform(sample.image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return None, f"number {index}: {error}"
        return pixels, Sample(sample.key, _NO_IMAGE, sample.label, sample.captions)


_NO_IMAGE = Image.new("RGB", (1, 1))  # decoded images do not travel between processes, pixels do


def batches(
    data: EvalSet, transform: Callable[[Image.Image], Tensor], batch_size: int, workers: int = 0
) -> Iterator[Batch]:
    """Go through a test set once, in order. Unreadable images are left out and named in the batch."""
    loader = DataLoader(
        _Transformed(data, transform), batch_size=batch_size, num_workers=workers, collate_fn=_collate
    )
    yield from loader


def _collate(items: list[tuple[Tensor | None, Sample | str]]) -> Batch:
    good = [(p, s) for p, s in items if p is not None and isinstance(s, Sample)]
    return Batch(
        torch.stack([p for p, _ in good]) if good else torch.zeros(0, 3, 1, 1),
        torch.tensor([s.label for _, s in good], dtype=torch.int64),
        [s.captions for _, s in good],
        [s.key for _, s in good],
        [s for _, s in items if isinstance(s, str)],
    )
