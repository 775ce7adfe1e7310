"""Rank the pictures of an index for a text or a picture, less what is to be left out, and say which stand out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from filip.errors import UserError, plain
from filip.eval.scorer import Scorer, Texts
from filip.index.store import Index
from filip.index.tokens import pooled
from filip.sets.pictures import read_image

ENOUGH = 20  # pictures that a mean and a deviation need


@dataclass(frozen=True)
class Ranked:
    """A picture of a ranking.

    score: s^T of the query. stands_out: its distance from the mean of all pictures, in standard deviations, less those
    by which the words to leave out stand out.
    """

    path: str
    score: float
    stands_out: float


@dataclass
class Ranking:
    """All pictures, best first. surprising: the distance that chance alone reaches in half a picture of so many."""

    hits: list[Ranked]
    surprising: float

    def reason(self) -> str:
        """Say how many of the pictures stand out, and what that means."""
        count = len(self.hits)
        if count < ENOUGH:
            pictures = "1 picture is" if count == 1 else f"{count} pictures are"
            return f"{pictures} too few to say which of them stand out"
        found = sum(hit.stands_out > self.surprising for hit in self.hits)
        what = f"{found} of {count:,} stand" if found != 1 else f"1 of {count:,} stands"
        return (
            f"{what} out: more than {self.surprising:.1f} standard deviations above the mean, where chance alone would "
            "put half a picture"
        )


def query_of(scorer: Scorer, text: str, tokens: str = "content", pool: int = 1) -> Texts:
    """Encode a query: a text, or the picture in the file of that name, whose patches then take the place of words.

    tokens: those of a text that count, see :mod:`filip.eval.text_tokens`. pool: a picture's patches are averaged as
    those of the index were.
    """
    file = Path(text)
    if not is_picture(text):
        return _counting(scorer, text, tokens)
    try:
        image = read_image(file.read_bytes(), max_bytes=None)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {plain(error)}") from error
    except UserError as error:
        raise UserError(f"the picture to look for, {file}: {error}") from error
    features = scorer.encode_images(scorer.transform(image)[None]).float().cpu()
    if not scorer.token_wise:
        return Texts(features, None)
    if pool > 1:
        features, _ = pooled(features, max(1, features.shape[1] // pool))
    return Texts(features[0], torch.tensor([features.shape[1]]))


def is_picture(text: str) -> bool:
    """Return whether a query is the name of a file instead of a text."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # longer than a name may be, or with a NUL
        return False


def _counting(scorer: Scorer, text: str, tokens: str) -> Texts:
    encoded = scorer.encode_texts([text]).to("cpu")
    return scorer.with_tokens([text], encoded, tokens) if scorer.token_wise else encoded


def rank(index: Index, scorer: Scorer, query: Texts, without: Sequence[str] = (), tokens: str = "content") -> Ranking:
    """Rank all pictures of an index.

    A picture in which a text of ``without`` stands out (is above the mean of all pictures) loses as many standard
    deviations.
    """
    scores = index.scores(scorer, query)
    distance = _standard(scores)
    for text in without:
        unwanted = _standard(index.scores(scorer, _counting(scorer, text, tokens)))
        distance = distance - unwanted.clamp(min=0)
    hits = [Ranked(*one) for one in zip(index.paths, scores.tolist(), distance.tolist(), strict=True)]
    hits.sort(key=lambda hit: (-hit.stands_out, hit.path))
    return Ranking(hits, _surprising(len(hits)))


def _standard(scores: Tensor) -> Tensor:
    return (scores - scores.mean()) / scores.std(correction=0).clamp(min=1e-12)


def _surprising(count: int) -> float:
    """Return the number of deviations above which a normal distribution has half a draw of ``count``."""
    if count < ENOUGH:
        return math.inf
    return math.sqrt(2) * float(torch.special.erfinv(torch.tensor(1 - 1 / count, dtype=torch.float64)))
