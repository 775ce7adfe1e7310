"""A caption with two of its nouns exchanged is a wrong caption: NegCLIP's loss, for one vector a side.

    L = (L_i2t + L_t2i) / 2 + 1/2 mean over i of log(1 + exp(t <v_i, u_i'> - log sum over j of exp(t <v_i, u_j>)))

u_i' is the vector of image i's caption after two nouns have changed places: "a red car and a blue cat" for "a red cat
and a blue car". L_i2t and L_t2i are CLIP's. In NegCLIP (Yuksekgonul et al., 2023) an image chooses among the altered
captions of the whole batch, too, which may well be true of it; here it sees only its own. A caption without two nouns
has no such term. "A cat and a car" stays true in the other order: use it on captions with properties.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cache
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from filip.common import citations
from filip.text.tokenizer import BOS, EOS, token_texts
from filip.text.words import FUNCTION_WORDS
from filip.train.losses.similarity import pooled_memory
from filip.train.losses.term import BatchShape, LossInput, Term, TermOutput
from late_interaction import distributed_pooled_similarity


def compute(batch: LossInput) -> TermOutput:
    """Compute CLIP's loss and the part of the altered captions.

    The metrics also hold the share of images that prefer their true caption, and of captions that were altered.
    """
    altered = batch.encoded.further
    assert altered is not None, "the encoder was given no altered captions"
    image, text = batch.vectors
    similarity = distributed_pooled_similarity(image, text)
    plain = batch.cross_entropy(similarity)
    exists = (altered.lengths > 0).to(image)  # lengths may stay on the host
    vectors = altered.tokens.new_zeros(image.shape).masked_scatter(exists.bool()[:, None], altered.tokens)
    wrong = (image.to(vectors.dtype)[:, None] @ vectors[:, :, None])[:, 0, 0]  # 0 without an altered caption
    scale = batch.encoded.logit_scale.to(similarity.i2t.dtype)
    added = F.softplus(scale * wrong - (scale * similarity.i2t).logsumexp(dim=1))
    own = similarity.i2t[:, batch.offset : batch.offset + len(wrong)].diagonal()
    right = ((own > wrong).to(wrong.dtype) * exists).sum() / exists.sum().clamp(min=1)
    metrics = {"accuracy/exchanged": right, "tokens/exchanged_share": exists.mean()}
    return TermOutput(plain.loss + 0.5 * (added * exists).mean(), plain.metrics | metrics)


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


def nouns(ids: list[int]) -> list[int]:
    """Return the positions of words in one piece that end a run of content words, in a caption without padding."""
    content = is_content()
    places = []
    for place, token in enumerate(ids):
        whole = bool(content[token]) and bool(ends_word()[ids[place - 1]])
        if whole and not content[ids[place + 1]]:
            places.append(place)
    return places


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


EXCHANGED_NOUNS = Term(
    compute,
    "vectors",
    memory,
    "cosine of vectors against own captions with two nouns exchanged, too",
    captions=with_nouns_exchanged,
    clip_words=True,
    citation=(citations.BAGS_OF_WORDS,),
)
