"""Captions with one word exchanged: near misses for the loss.

A noun gives way to one of another caption of the batch, or the word that relates two things to its opposite.

Nobody tags words here. English noun phrases end in their noun ("a small red *bicycle* behind the *tree*"), so the last
of each run of content words counts as one; verbs at the end of a run do, too ("a man *running*"). Only words that
CLIP's vocabulary has in one piece are exchanged, so that the caption keeps its length. The word that comes in is taken
as often as it stands in the batch: words that the data rarely has would give a wrong caption away.

A swapped caption is never a true one by its words: what comes in stands neither in the caption nor in any other caption
of the same group in this rank's batch. A synonym or a broader word ("animal" for "dog") can still be true of the image.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from filip.tokenizer import BOS, EOS, token_texts
from filip.words import FUNCTION_WORDS

_TRIES = 8  # words that are drawn for a caption before it goes without
OPPOSITES = ("left right", "above below", "over under", "inside outside")


def with_noun_exchanged(batch: Mapping[str, Any], key: str) -> tuple[Tensor, Tensor]:
    """Return ids [b, n] and lengths [b] of the swapped captions: length 0 where a caption has nothing to exchange.

    batch: ``ids`` [b, n], ``lengths`` [b] and ``group`` [b] on the CPU. ``key`` decides every random choice.
    """
    ids, lengths, draw = batch["ids"].tolist(), batch["lengths"].tolist(), random.Random(key)
    places = [nouns(row[:length]) for row, length in zip(ids, lengths, strict=True)]
    pool = [row[place] for row, own in zip(ids, places, strict=True) for place in own]
    seen: dict[int, set[int]] = defaultdict(set)
    for group, row, length in zip(batch["group"].tolist(), ids, lengths, strict=True):
        seen[group].update(row[:length])
    swapped: Tensor = batch["ids"].clone()
    swapped_lengths: Tensor = batch["lengths"].clone()
    for i, (own, group) in enumerate(zip(places, batch["group"].tolist(), strict=True)):
        place = draw.choice(own) if own else None
        drawn = [draw.choice(pool) for _ in range(_TRIES)] if own else []
        new = next((word for word in drawn if word not in seen[group]), None)
        if place is None or new is None:
            swapped_lengths[i] = 0
        else:
            swapped[i, place] = new
    return swapped, swapped_lengths


def with_relation_reversed(batch: Mapping[str, Any], key: str) -> tuple[Tensor, Tensor]:
    """Return ids [b, n] and lengths [b] of the captions with their relation reversed, e.g. "left of" for "right of".

    The length is 0 where a caption does not have exactly one word of OPPOSITES. batch: ``ids`` [b, n] and ``lengths``
    [b] on the CPU. Nothing here is random, and ``key`` is not read.
    """
    ids, lengths = batch["ids"], batch["lengths"]
    opposite = opposites()[ids]
    reversible = (opposite >= 0) & (torch.arange(ids.shape[1]) < lengths[:, None])
    return torch.where(reversible, opposite, ids), lengths * (reversible.sum(dim=1) == 1)


@cache
def opposites() -> Tensor:
    """Return [vocabulary] int64: for each word of OPPOSITES the id of the other one; -1 for all other tokens."""
    ids = {text: token for token, text in enumerate(token_texts())}
    found = torch.full((len(token_texts()),), -1)
    for pair in OPPOSITES:
        first, second = (ids[f"{word} "] for word in pair.split())
        found[first], found[second] = second, first
    return found


def nouns(ids: list[int]) -> list[int]:
    """Return the positions of words in one piece that end a run of content words, in a caption without padding."""
    content = is_content()
    found = []
    for place, token in enumerate(ids):
        whole = bool(content[token]) and bool(ends_word()[ids[place - 1]])
        if whole and not content[ids[place + 1]]:
            found.append(place)
    return found


@cache
def ends_word() -> Tensor:
    """Return [vocabulary] bool: the token is the end of a word, or all of it."""
    ends = torch.tensor([text.endswith(" ") for text in token_texts()])
    ends[[BOS, EOS]] = True
    return ends


@cache
def is_content() -> Tensor:
    """Return [vocabulary] bool: a token in letters that ends a word which is not a function word.

    A part of a longer word, in letters, counts too.
    """
    words = [text.strip() for text in token_texts()]
    content = [
        word.isalpha() and (not text.endswith(" ") or (len(word) > 2 and word not in FUNCTION_WORDS))
        for word, text in zip(words, token_texts(), strict=True)
    ]
    return torch.tensor(content)
