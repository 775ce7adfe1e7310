"""Iterates over a whole test set with a progress display, and notes when its size is unexpected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from PIL import Image
from torch import Tensor

from filip.errors import UserError
from filip.eval.cards import BenchmarkCard
from filip.eval.datasets import Batch, EvalSet, Sample, batches
from filip.eval.scorer import Scorer
from filip.progress import Progress, say

T = TypeVar("T")


def image_batches(
    data: EvalSet, transform: Callable[[Image.Image], Tensor], title: str, batch_size: int, workers: int
) -> Iterator[Batch]:
    """The whole set in order, without the images that cannot be read: a line on stderr names each of those.

    Raises UserError if nothing is left.
    """
    found = False
    for batch in _all_batches(data, transform, title, batch_size, workers):
        if batch.keys:
            found = True
            yield batch
    _require(found, title)


def encoded_batches(
    scorer: Scorer, data: EvalSet, title: str, batch_size: int, workers: int
) -> Iterator[tuple[Tensor, Batch]]:
    """(image features, batch) through the whole set; see :func:`image_batches`."""
    for batch in image_batches(data, scorer.transform, title, batch_size, workers):
        yield scorer.encode_images(batch.pixels), batch


def collect(
    scorer: Scorer,
    data: EvalSet,
    title: str,
    batch_size: int,
    workers: int,
    keep: Callable[[Tensor, Batch], T],
) -> list[T]:
    """``keep(image features, batch)`` of every batch of a set, in order; see :func:`image_batches`.

    Processes that evaluate together read and encode some of the batches each, and all get what was kept of all.
    """

    def encode(numbers: Iterable[int]) -> list[T | None]:
        part = _SomeBatches(data, batch_size, numbers)
        read = _all_batches(part, scorer.transform, title, batch_size, workers)
        return [keep(scorer.encode_images(batch.pixels), batch) if batch.keys else None for batch in read]

    found = scorer.share.together(-(-len(data) // batch_size), encode)
    kept = [of_batch for of_batch in found if of_batch is not None]
    _require(bool(kept), title)
    return kept


class _SomeBatches(EvalSet):
    """Some batches of a set, in order, one after the other; only the last batch of the set may be a short one."""

    def __init__(self, data: EvalSet, batch_size: int, numbers: Iterable[int]) -> None:
        self.data, self.classes = data, data.classes
        self.places = [
            place
            for number in numbers
            for place in range(number * batch_size, min((number + 1) * batch_size, len(data)))
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        return self.data[self.places[index]]


def _all_batches(
    data: EvalSet, transform: Callable[[Image.Image], Tensor], title: str, batch_size: int, workers: int
) -> Iterator[Batch]:
    """Also those of which no image can be read."""
    with Progress(title, "images", len(data)) as progress:
        for batch in batches(data, transform, batch_size, workers):
            for problem in batch.undecodable:
                say(f"{title}: left out an unreadable image, {problem}")
            yield batch
            progress.add(len(batch.keys) + len(batch.undecodable))


def _require(found: bool, title: str) -> None:
    if not found:
        raise UserError(f"{title}: the test set has no readable image")


class CutTexts:
    """Counts the texts that a model does not read to their end."""

    def __init__(self, scorer: Scorer):
        self.encoder, self.texts, self.cut, self.longest = scorer.encoder, 0, 0, 0

    def count(self, texts: Sequence[str]) -> None:
        counts = self.encoder.token_counts(texts)
        self.texts += len(counts)
        self.cut += sum(count > self.encoder.context_length for count in counts)
        self.longest = max(self.longest, *counts)

    def result(self) -> dict[str, Any]:
        """For the result file: how many texts were cut at how many tokens; nothing if none was."""
        if not self.cut:
            return {}
        said = (
            f"{self.cut:,} of {self.texts:,} captions are longer than the model's {self.encoder.context_length} tokens "
            f"(the longest has {self.longest}) and were cut"
        )
        return {"cut_captions": self.cut, "cut_at": self.encoder.context_length, "cut_note": said}


def size_note(card: BenchmarkCard, n: int) -> str | None:
    """A warning if the published numbers are of other images, or if the number of images is not the card's."""
    if card.published_size not in (None, n):
        return f"{n} images, but the published numbers are of {card.published_size}: not comparable"
    if card.size is None or card.size == n:
        return None
    return f"{n} images, but the card's split has {card.size}: not comparable with published numbers"
