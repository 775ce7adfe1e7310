"""Sort captions or images by their length and cut them into tiles."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

# Elements of one tile of the similarity. On a CPU it should fit the second-level cache, on a GPU few launches matter.
_TILE_CPU, _TILE_ACCELERATOR = 1 << 18, 1 << 26


class Lengths(list[int]):
    """The numbers of tokens of some items, with what was derived from them: both passes of a step need the same."""

    def __init__(self, numbers: Iterable[int]) -> None:
        super().__init__(numbers)
        self.kept: dict[Any, Any] = {}


def derived(lengths: list[int], make: Callable[..., T], *how: Any) -> T:
    """Return ``make(lengths, *how)``; for :class:`Lengths` it is computed once and kept."""
    kept = lengths.kept if isinstance(lengths, Lengths) else {}
    if (make, *how) not in kept:
        kept[make, *how] = make(lengths, *how)
    value: T = kept[make, *how]
    return value


class Order(NamedTuple):
    """The order of items by length, so that equally long ones form a rectangle."""

    items: Tensor  # [items] the caller's index of the items, shortest first
    back: Tensor  # [items] the inverse: where each of the caller's items is in that order
    rows: Tensor  # [T] the caller's row of each packed token in that order
    lengths: list[int]  # ascending
    offsets: list[int]

    def rows_of(self, items: slice) -> slice:
        """Return where the tokens of neighbouring items are in that order."""
        return slice(self.offsets[items.start], self.offsets[items.stop])

    def block(self, items: slice) -> tuple[Tensor, Tensor]:
        """Return the caller's index of neighbouring items [n], and the rows of their tokens [n, tokens of each]."""
        return self.items[items], self.rows[self.rows_of(items)].view(items.stop - items.start, -1)


def by_length(lengths: list[int], device: torch.device) -> Order:
    """Return the order of items of ``lengths`` tokens, computed once for :class:`Lengths`."""
    return derived(lengths, _by_length, device)


def _by_length(lengths: list[int], device: torch.device) -> Order:
    numbers = torch.tensor(lengths)
    ordered, items = numbers.sort(stable=True)
    # rows before each item in the caller's order, and in the new one
    before = (numbers.cumsum(0) - numbers)[items]
    after = ordered.cumsum(0) - ordered
    rows = torch.repeat_interleave(before - after, ordered) + torch.arange(int(after[-1] + ordered[-1]))
    back = torch.empty_like(items)
    back[items] = torch.arange(len(items))
    in_order = ordered.tolist()
    return Order(items.to(device), back.to(device), rows.to(device), in_order, offsets_of(in_order))


def offsets_of(lengths: Sequence[int]) -> list[int]:
    """Return the start of each item in the packed rows, and the total at the end: len(lengths) + 1 numbers."""
    return [0, *itertools.accumulate(lengths)]


def equal_runs(ascending: Iterable[int]) -> Iterator[tuple[int, int, int]]:
    """Yield each length with the start and the end of the items that have it."""
    start = 0
    for length, run in itertools.groupby(ascending):
        end = start + sum(1 for _ in run)
        yield length, start, end
        start = end


def tiles(images: list[int], texts: list[int], device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Yield images and texts of each tile, from ascending numbers of tokens: those of a side are equally long."""
    # Roughly square tiles: as many text tokens at most, then as many images as fit with them.
    limit, widest = (_TILE_CPU, 512) if device.type == "cpu" else (_TILE_ACCELERATOR, 1 << 13)
    for length, start, end in equal_runs(texts):
        most = max(1, min(widest, limit // max(images[-1], 1)) // length)
        for first in range(start, end, most):
            last = min(first + most, end)
            rows = limit // (length * (last - first))
            for patches, begin, stop in equal_runs(images):
                at_once = max(1, rows // max(patches, 1))
                for image in range(begin, stop, at_once):
                    yield slice(image, min(image + at_once, stop)), slice(first, last)


def index_dtype(size: int) -> torch.dtype:
    """Return the smallest integer type for indices below ``size``."""
    if size <= 256:
        return torch.uint8
    return torch.int16 if size <= 1 << 15 else torch.int32
