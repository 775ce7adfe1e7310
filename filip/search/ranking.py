"""Rank the pictures of an index for a text or a picture, less the words to leave out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from filip.common.errors import UserError
from filip.eval.encoders import stacked
from filip.eval.scorer import Scorer, Texts
from filip.explore.names import encode_query
from filip.index.store import Index
from filip.sets.image_set import read_image
from filip.text.words import FUNCTION_WORDS


class Ranked(NamedTuple):
    """A picture of a ranking.

    score: s^T of the query. distance: what the ranking goes by, the score's distance from the median picture's in
    standard deviations of the pictures below the median, minus the same distance for the words to leave out.
    """

    path: str
    score: float
    distance: float


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


def rank(
    index: Index, scorer: Scorer, query: Texts, without: Sequence[str] = (), tokens: str = "content"
) -> list[Ranked]:
    """Return all pictures of an index, best first.

    A picture that shows a text of ``without`` more than the typical one does loses as many deviations.
    """
    queries = [query, *(encode_query(scorer, text, tokens) for text in without)]
    scores = torch.stack([index.scores(scorer, texts) for texts in queries])
    median, deviation = typical(scores)
    standing = (scores - median) / deviation
    distances = (standing[0] - standing[1:].clamp(min=0).sum(0)).tolist()
    hits = map(Ranked, index.paths, scores[0].tolist(), distances)
    return sorted(hits, key=lambda hit: (-hit.distance, hit.path))


def typical(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the median of each row and the deviation of the values below it, both [rows, 1].

    Unlike mean and standard deviation they do not move when a third of the pictures shows the query.
    """
    median = scores.median(1, keepdim=True).values
    below = scores <= median
    squares = ((scores - median).square() * below).sum(1, keepdim=True)
    return median, (squares / below.sum(1, keepdim=True)).sqrt().clamp(min=1e-12)
