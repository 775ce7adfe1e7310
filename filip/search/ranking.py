"""Rank the pictures of an index for a text or a picture."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import torch

from filip.common.errors import UserError
from filip.eval.encoders import stacked
from filip.eval.scorer import Scorer, Texts
from filip.explore.names import encode_query
from filip.index.store import Index
from filip.sets.image_set import read_image
from filip.text.words import FUNCTION_WORDS


class Ranked(NamedTuple):
    """A picture of a ranking. score: s^T of the query."""

    path: str
    score: float


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


def rank(index: Index, scorer: Scorer, query: Texts) -> list[Ranked]:
    """Return all pictures of an index, best first."""
    hits = map(Ranked, index.paths, index.scores(scorer, query).tolist())
    return sorted(hits, key=lambda hit: (-hit.score, hit.path))
