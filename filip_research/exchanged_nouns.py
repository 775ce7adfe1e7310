"""A caption with two of its nouns exchanged is a wrong caption: NegCLIP's loss, for one vector a side.

    L = (L_i2t + L_t2i) / 2 + 1/2 mean over i of log(1 + exp(t <v_i, u_i'> - log sum over j of exp(t <v_i, u_j>)))

u_i' is the vector of image i's caption after two nouns have changed places: "a red car and a blue cat" for "a red cat
and a blue car". L_i2t and L_t2i are CLIP's. In NegCLIP (Yuksekgonul et al., 2023) an image chooses among the altered
captions of the whole batch, too; here it sees only its own, as in :mod:`filip_research.swapped_words`. A caption
without two nouns has no such term. "A cat and a car" stays true in the other order: use it on captions with properties.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

from torch import Tensor

from filip.common import citations
from filip.train.losses.similarity import pooled_memory
from filip.train.losses.term import BatchShape, LossInput, TermOutput, sum_of
from filip_research.swapped_words import SWAPPED_WORDS, gain, nouns, own_similarity
from late_interaction import distributed_pooled_similarity


def compute(batch: LossInput) -> TermOutput:
    """Compute CLIP's loss and the part of the altered captions."""
    assert batch.encoded.further is not None, "the encoder was given no altered captions"
    wrong = own_similarity(batch.vectors.image[:, None], batch.encoded.further)
    plain, added, exists = gain(batch, distributed_pooled_similarity(*batch.vectors), wrong, "exchanged")
    return TermOutput(sum_of([plain.loss, 0.5 * (added * exists).mean()]), plain.metrics)


def memory(shape: BatchShape) -> float:
    """Return the bytes of pooled, and of the altered captions' vectors with gradients."""
    return pooled_memory(shape) + shape.pairs * shape.dim * 8


def with_nouns_exchanged(batch: Mapping[str, Any], key: str) -> tuple[Tensor, Tensor]:
    """Return ids [b, n] and lengths [b] of captions in which two nouns changed places; length 0 without two nouns.

    batch: ``ids`` [b, n] and ``lengths`` [b] on the CPU. ``key`` decides every random choice.
    """
    ids, lengths, draw = batch["ids"].clone(), batch["lengths"].clone(), random.Random(key)
    for i, row in enumerate(ids):
        places = nouns(row[: int(lengths[i])].tolist())
        pairs = [list(pair) for pair in combinations(places, 2) if row[pair[0]] != row[pair[1]]]
        if pairs:
            pair = draw.choice(pairs)
            row[pair] = row[pair[::-1]]
        else:
            lengths[i] = 0
    return ids, lengths


EXCHANGED_NOUNS = replace(
    SWAPPED_WORDS,
    compute=compute,
    features="vectors",
    memory=memory,
    about="cosine of vectors against own captions with two nouns exchanged, too",
    check=lambda settings: None,
    captions=with_nouns_exchanged,
    citation=(citations.BAGS_OF_WORDS,),
)
