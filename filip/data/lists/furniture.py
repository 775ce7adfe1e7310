"""Tell the furniture of web pages ("Add to cart", "Image may contain: sky", "Build Status") from captions.

A logistic regression over the groups of one to six letters in a caption, of which each has a cell in a table of
weights, ``furniture.npz``. ``python -m bench.furniture`` trained it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

BITS = 18  # of the number of a cell
LONGEST = 6  # letters of a group
TABLE = Path(__file__).with_name("furniture.npz")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_START, _END = "\x02", "\x03"  # so that "Next" alone is not the first word of a sentence
_DIGITS = str.maketrans("123456789", "000000000")


def cells(captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells of all groups of letters, and the caption (its position) to which each belongs; both (n,)."""
    texts = [f"{_START}{caption.lower().translate(_DIGITS)}{_END}".encode() for caption in captions]
    letters = np.frombuffer(b"".join(texts), np.uint8).astype(np.uint64)
    owners = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    hashes, found = np.zeros(len(letters), np.uint64), [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for length in range(1, min(LONGEST, len(letters)) + 1):
        inside = owners[: len(owners) - length + 1] == owners[length - 1 :]
        hashes = (hashes[: len(inside)] + letters[length - 1 :] + np.uint64(1)) * _MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
        found.append(((hashes[inside] >> np.uint64(64 - BITS)).astype(np.int64), owners[: len(inside)][inside]))
    return np.concatenate([cell for cell, _ in found]), np.concatenate([own for _, own in found])


def odds(captions: Sequence[str]) -> np.ndarray:
    """Return the log odds that each caption is furniture, above 0 where the rule drops it; (captions,)."""
    weights, bias = _model()
    cell, owner = cells(captions)
    counts = np.bincount(owner, minlength=len(captions))
    return np.bincount(owner, weights[cell], len(captions)) / np.sqrt(counts) + bias


@cache
def _model() -> tuple[np.ndarray, float]:
    with np.load(TABLE) as table:
        return table["weights"].astype(np.float32), float(table["bias"])
