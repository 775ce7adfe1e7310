"""What the evaluation commands share: encoding a whole test set, and saying how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from torch import Tensor

from filip.errors import UserError
from filip.eval.cards import BenchmarkCard
from filip.eval.datasets import Batch, EvalSet, batches
from filip.eval.scorer import Scorer

__all__ = ["encoded_batches", "say", "size_note"]


def say(text: str) -> None:
    """A line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def encoded_batches(
    scorer: Scorer, data: EvalSet, title: str, batch_size: int, workers: int
) -> Iterator[tuple[Tensor, Batch]]:
    """(image features, batch) through the whole set, with a line of progress every few seconds."""
    started = shown = time.monotonic()
    done = 0
    for batch in batches(data, scorer.transform, batch_size, workers):
        for problem in batch.undecodable:
            say(f"  {title}: left out an unreadable image, {problem}")
        if len(batch.keys):
            yield scorer.encode_images(batch.pixels), batch
        done += len(batch.keys) + len(batch.undecodable)
        if time.monotonic() - shown > 3:
            shown = time.monotonic()
            rate = done / (shown - started)
            left = (len(data) - done) / rate
            say(f"  {title}: {done:,} of {len(data):,} images, {rate:.0f} a second, {left:.0f} s left")
    if done == 0:
        raise UserError(f"{title}: the test set is empty")


def size_note(card: BenchmarkCard, n: int) -> str | None:
    """A warning if the number of images is not the card's: such numbers do not compare with others'."""
    if card.size is None or card.size == n:
        return None
    return f"{n} images, but the card's split has {card.size}: not comparable with published numbers"
