"""Rank the pictures of an index for a text or a picture, less the words to leave out, and mark those that stand out."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from filip.common.errors import UserError
from filip.eval.encoders import stacked
from filip.eval.scorer import Scorer, Texts
from filip.explore.names import encode_query
from filip.index.store import Index
from filip.sets.image_set import read_image
from filip.text.words import FUNCTION_WORDS

ENOUGH = 8  # pictures among which some can stand out
# Share of the distance that chance alone reaches; bench/search_words.py of commit 9d223423 measured its losses.
FOUND = 0.75


@dataclass(frozen=True)
class Ranked:
    """A picture of a ranking.

    score: s^T of the query. stands_out: its distance from the median picture, in standard deviations of the pictures
    below the median, minus the same distance for the words to leave out.
    """

    path: str
    score: float
    stands_out: float


@dataclass
class Ranking:
    """All pictures, best first. bound: a picture that stands out less shows no more of the query than others do."""

    hits: list[Ranked]
    bound: float

    def reason(self) -> str:
        """Return how many of the pictures stand out."""
        count, above = len(self.hits), sum(hit.stands_out >= self.bound for hit in self.hits)
        if count < ENOUGH:
            return f"{count} picture{'s are' if count > 1 else ' is'} too few to say which of them stand out"
        return f"{above:,} of {count:,} pictures stand{'' if above != 1 else 's'} out (by {self.bound:.1f} or more)"


def query_of(scorer: Scorer, text: str, tokens: str = "content") -> Texts:
    """Encode a query: a text, or the picture in the file of that name: its patches then replace words.

    tokens: a text's tokens that count, see :mod:`filip.eval.text_tokens`. Raises NothingKnownError for a text of which
    the model knows no word.
    """
    if not is_picture(text):
        return encode_query(scorer, text, tokens)
    try:
        image = read_image(Path(text))
    except UserError as error:
        raise UserError(f"the picture to look for, {text}: {error}") from error
    features = scorer.encode_images(stacked([scorer.transform(image)])).float().cpu()
    if not scorer.token_wise:
        return Texts(features, None)
    return Texts(features[0], torch.tensor([features.shape[1]]))


def with_article(text: str) -> str:
    """Return a name of one to three English words as captions have it: "jellyfish", "the jellyfish?": "a jellyfish".

    A small model reads the article, too: without one it found less. Plurals and all other texts stay as they are.
    """
    match = re.fullmatch(r"\s*(?:(?:an?|the)\s+)?([a-z'-]+(?: [a-z'-]+){0,2})[?.!]?\s*", text, re.IGNORECASE)
    name = match[1] if match else ""
    if not name or name.lower().endswith("s") or {*name.lower().split()} & FUNCTION_WORDS:
        return text
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def is_picture(text: str) -> bool:
    """Return whether a query is the name of a file instead of a text."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # longer than a name may be, or with a NUL
        return False


def rank(index: Index, scorer: Scorer, query: Texts, without: Sequence[str] = (), tokens: str = "content") -> Ranking:
    """Rank all pictures of an index.

    A picture in which a text of ``without`` stands out (is above the typical picture) loses as many deviations.
    """
    queries = [query, *(encode_query(scorer, text, tokens) for text in without)]
    scores = torch.stack([index.scores(scorer, texts) for texts in queries])
    median, deviation = typical(scores)
    standing = (scores - median) / deviation
    distances = (standing[0] - standing[1:].clamp(min=0).sum(0)).tolist()
    hits = [Ranked(*hit) for hit in zip(index.paths, scores[0].tolist(), distances, strict=True)]
    hits.sort(key=lambda hit: (-hit.stands_out, hit.path))
    return Ranking(hits, bound(len(hits)))


def typical(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the median of each row and the deviation of the values below it, both [rows, 1].

    Unlike mean and standard deviation they do not move when a third of the pictures shows the query.
    """
    median = scores.median(1, keepdim=True).values
    below = scores <= median
    squares = ((scores - median).square() * below).sum(1, keepdim=True)
    return median, (squares / below.sum(1, keepdim=True)).sqrt().clamp(min=1e-12)


def bound(count: int) -> float:
    """Return the distance below which the best of ``count`` pictures is no hit: a share of what chance reaches.

    Chance reaches the number of deviations that on average half a value of ``count`` normal ones exceeds.
    """
    if count < ENOUGH:
        return -math.inf
    return FOUND * math.sqrt(2) * float(torch.special.erfinv(torch.tensor(1 - 1 / count, dtype=torch.float64)))
