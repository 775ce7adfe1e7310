"""Iterates over a whole test set with a progress display, and notes when its size is unexpected."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from PIL import Image
from torch import Tensor

from filip.errors import UserError
from filip.eval.cards import BenchmarkCard
from filip.eval.datasets import Batch, EvalSet, batches
from filip.eval.scorer import Scorer
from filip.progress import Progress, say


def image_batches(
    data: EvalSet, transform: Callable[[Image.Image], Tensor], title: str, batch_size: int, workers: int
) -> Iterator[Batch]:
    """The whole set in order, without the images that cannot be read: a line on stderr names each of those.

    Raises UserError if nothing is left.
    """
    read = 0
    with Progress(title, "images", len(data)) as progress:
        for batch in batches(data, transform, batch_size, workers):
            for problem in batch.undecodable:
                say(f"{title}: left out an unreadable image, {problem}")
            if len(batch.keys):
                yield batch
            read += len(batch.keys)
            progress.add(len(batch.keys) + len(batch.undecodable))
    if read == 0:
        raise UserError(f"{title}: the test set has no readable image")


def encoded_batches(
    scorer: Scorer, data: EvalSet, title: str, batch_size: int, workers: int
) -> Iterator[tuple[Tensor, Batch]]:
    """(image features, batch) through the whole set; see :func:`image_batches`."""
    for batch in image_batches(data, scorer.transform, title, batch_size, workers):
        yield scorer.encode_images(batch.pixels), batch


def size_note(card: BenchmarkCard, n: int) -> str | None:
    """A warning if the published numbers are of other images, or if the number of images is not the card's."""
    if card.published_size not in (None, n):
        return f"{n} images, but the published numbers are of {card.published_size}: not comparable"
    if card.size is None or card.size == n:
        return None
    return f"{n} images, but the card's split has {card.size}: not comparable with published numbers"
