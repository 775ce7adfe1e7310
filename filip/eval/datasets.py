"""Read test sets as (image, label) or (image, captions), and batch them.

How they lie on disk is the concern of :mod:`filip.eval.formats`. All give the same :class:`Sample`, in a fixed
order, so that a loader may use any number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from filip.common.errors import UserError, first_line
from filip.common.worker_pool import LOADER_START
from filip.eval.encoders import stacked
from filip.images.rgb import UNDECODABLE


@dataclass
class Thing:
    """Something in an image that the captions call ``label``: the pixels of ``shown`` (mode L) of value ``number``.

    number: None if ``shown`` is the mask of its place. file: of ``shown``, for messages.
    """

    label: str
    shown: Image.Image  # as large as the image; decoded on first access, which most protocols never make
    number: int | None = None
    file: str = ""

    @property
    def mask(self) -> Image.Image:
        """Return the mask of its place: mode L, 0 or 255. Raises UserError if its picture is broken."""
        try:
            self.shown.load()
        except UNDECODABLE as error:
            raise UserError(f"{self.file} cannot be read ({first_line(error)}); fetch the test set again") from error
        if self.number is None:
            return self.shown
        return Image.fromarray(np.where(np.asarray(self.shown) == self.number, np.uint8(255), np.uint8(0)))


@dataclass
class Sample:
    """One test image. ``label`` is -1 in sets of captions, ``captions`` empty in classification sets."""

    key: str
    image: Image.Image  # RGB
    label: int = -1
    captions: list[str] = field(default_factory=list)
    cluster: str = ""  # samples with an equal one are not independent, e.g. two drawings of a concept; "" = alone
    mask: Image.Image | None = None  # where the object is, if the data set has it (mode L, 0 or 255)
    things: list[Thing] = field(default_factory=list)  # where each thing of a scene is, if it has that
    segments: np.ndarray | None = None  # [height, width] int: the class of each pixel, negative = unlabelled
    truths: int = 1  # in sets to select from: the captions that are true, which come first
    category: str = ""  # a category for which the results are also reported separately, "" = none


class EvalSet(Dataset[Sample]):
    """A test set: ``classes`` (raw names; position = label; None for retrieval), ``len``, indexing."""

    classes: list[str] | None = None
    others: Collection[str] = ()  # splits that it has beside the one that was opened

    def __len__(self) -> int:
        raise NotImplementedError

    def files(self) -> list[str]:
        """Return the files that it reads beyond its card's path."""
        return []

    def name_of(self, index: int) -> str:
        """Return the name of an image, readable or not, for messages."""
        return f"number {index}"

    def read(self, index: int) -> tuple[Sample | None, str]:
        """Return a sample, or None and a message if its image cannot be read."""
        try:
            return self[index], ""
        except UNDECODABLE as error:  # none of them is a UserError
            return None, self.problem(index, error)

    def needed(self, index: int) -> Sample:
        """Return a sample. Raises UserError if its image cannot be read."""
        sample, problem = self.read(index)
        if sample is None:
            raise UserError(f"the test set has an unreadable image, {problem}; fetch it again")
        return sample

    def problem(self, index: int, error: Exception) -> str:
        """Return a sentence on an image that cannot be read."""
        unknown = isinstance(error, UnidentifiedImageError)  # its text names an address in memory
        return f"{self.name_of(index)}: {'it is not an image' if unknown else first_line(error)}"


@dataclass
class Batch:
    """A batch. pixels: as the encoder takes them; labels: [b] int64; lists up to clusters: b each, see Sample."""

    pixels: Any
    labels: Tensor
    captions: list[list[str]]
    keys: list[str]
    clusters: list[str]  # as in Sample; the key of a sample that shares its cluster with none
    undecodable: list[str]  # keys of images that could not be read: not among the b
    truths: list[int] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)


class _Transformed(Dataset[Any]):
    def __init__(self, data: EvalSet, transform: Callable[[Image.Image], Tensor]):
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor | None, Sample | str]:
        sample, problem = self.data.read(index)
        if sample is None:
            return None, problem
        try:
            pixels = self.transform(sample.image)
        except UNDECODABLE as error:
            return None, self.data.problem(index, error)
        bare = replace(sample, image=_NO_IMAGE, mask=None, things=[], segments=None)
        return pixels, bare


_NO_IMAGE = Image.new("RGB", (1, 1))  # decoded images do not travel between processes, pixels do


def batches(
    data: EvalSet, transform: Callable[[Image.Image], Tensor], batch_size: int, workers: int = 0
) -> Iterator[Batch]:
    """Go through a test set once, in order. Unreadable images are left out and named in the batch."""
    loader = DataLoader(
        _Transformed(data, transform),
        batch_size=batch_size,
        num_workers=workers,
        multiprocessing_context=LOADER_START if workers else None,
        collate_fn=_collate,
    )
    yield from loader


def _collate(items: list[tuple[Tensor | None, Sample | str]]) -> Batch:
    good = [(p, s) for p, s in items if p is not None and isinstance(s, Sample)]
    return Batch(
        stacked([p for p, _ in good]) if good else torch.zeros(0, 3, 1, 1),
        torch.tensor([s.label for _, s in good], dtype=torch.int64),
        [s.captions for _, s in good],
        [s.key for _, s in good],
        [s.cluster or s.key for _, s in good],
        [s for _, s in items if isinstance(s, str)],
        [s.truths for _, s in good],
        [s.category for _, s in good],
    )
