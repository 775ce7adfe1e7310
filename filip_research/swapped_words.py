"""A caption with one noun exchanged is a wrong caption: NegCLIP's loss, token-wise, with nouns of the data itself.

    L = (L_i2t + L_t2i) / 2 + 1/2 mean over i of log(1 + exp(t s^I(i, c_i') - log sum over j of exp(t s^I_ij)))

c_i' is the caption of image i in which another noun of the batch stands in place of one of its own
(:func:`with_noun_exchanged`), L_i2t and L_t2i are FILIP's. The sum is the cross-entropy of an image that chooses
among all N captions and this one, as in NegCLIP (Yuksekgonul et al., 2023). There an image sees the altered captions of
all images, which may well be true of it; here it sees its own only, as in CE-CLIP (Zhang et al., 2024), whose wrong
captions also come from exchanged words instead of from an exchange of places: "a dog and a cat" stays true in another
order. Images without a noun to exchange have no such term.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from filip.common import citations
from filip.common.errors import UserError
from filip.models import TextFeatures
from filip.models.dual_encoder import without_ends
from filip.text.tokenizer import BOS, EOS, token_texts
from filip.text.words import FUNCTION_WORDS
from filip.train.losses.similarity import token_wise_memory, token_wise_similarity
from filip.train.losses.term import BatchShape, LossInput, LossSettings, Term, TermOutput, sum_of
from late_interaction import Similarity


def compute(batch: LossInput) -> TermOutput:
    """Compute FILIP's loss and the swapped captions' part.

    The metrics also hold the share of images that prefer their true caption.
    """
    plain, added, exists = against_altered(batch, "swapped")
    return TermOutput(sum_of([plain.loss, 0.5 * (added * exists).mean()]), plain.metrics)


def against_altered(batch: LossInput, name: str) -> tuple[TermOutput, Tensor, Tensor]:
    """Return FILIP's loss, each image's gain in cross-entropy by its altered caption [b], and which have one [b].

    The metrics hold the share of images that prefer their true caption, and the share of captions that were altered.
    """
    similarity, metrics = batch.once("token_wise", token_wise_similarity)
    altered = batch.encoded.further
    assert altered is not None, "the encoder was given no altered captions"
    if batch.settings.model.exclude_special_tokens:
        altered = without_ends(altered)
    smooth = batch.settings.token_maximum == "smooth"
    wrong = own_similarity(batch.encoded.image, altered, batch.token_temperature if smooth else 0.0)
    plain, added, exists = gain(batch, similarity, wrong, name)
    return plain._replace(metrics=plain.metrics | metrics), added, exists


def gain(batch: LossInput, similarity: Similarity, wrong: Tensor, name: str) -> tuple[TermOutput, Tensor, Tensor]:
    """Return the same from the similarity of all pairs and that of each image with its altered caption [b]."""
    plain = batch.cross_entropy(similarity)
    scale = batch.encoded.logit_scale.to(similarity.i2t.dtype)
    normaliser = (scale * similarity.i2t).logsumexp(dim=1)
    assert batch.encoded.further is not None
    exists = (batch.encoded.further.lengths > 0).to(wrong)  # lengths may stay on the host
    own_score = similarity.i2t[:, batch.offset : batch.offset + len(wrong)].diagonal()
    right = ((own_score > wrong).to(wrong.dtype) * exists).sum() / exists.sum().clamp(min=1)
    metrics = {f"accuracy/{name}": right, f"tokens/{name}_share": exists.mean()}
    return TermOutput(plain.loss, plain.metrics | metrics), F.softplus(scale * wrong - normaliser), exists


def own_similarity(image: Tensor, text: TextFeatures, temperature: float = 0.0) -> Tensor:
    """Return s^I of each image with the text of the same row [b], in at least float32.

    The value is arbitrary where the row has no text. ``temperature`` is the smooth maximum's; 0 = the hard one.
    """
    width = int(text.lengths.max().clamp(min=1))
    columns = text.lengths.new_ones(len(text.lengths), width).cumsum(1) - 1
    mask = (columns < text.lengths[:, None]).to(text.tokens.device)
    padded = text.tokens.new_zeros(*mask.shape, text.tokens.shape[1])
    padded = padded.masked_scatter(mask[..., None], text.tokens)
    similarity = image.to(padded.dtype) @ padded.transpose(1, 2)
    lowest = similarity.masked_fill(~mask[:, None], -2.0)  # below the cosine of any two vectors
    if temperature:
        words = text.lengths.clamp(min=1).to(lowest)
        masked = (similarity / temperature).masked_fill(~mask[:, None], -torch.inf)
        masked = masked.masked_fill(text.lengths.to(mask.device)[:, None, None] == 0, 0.0)
        return temperature * (masked.logsumexp(dim=2).mean(dim=1) - words.log())
    # If several are equal, one takes the whole gradient, as in the engine.
    return lowest.gather(2, lowest.argmax(dim=2, keepdim=True)).squeeze(2).mean(dim=1)


def check(settings: LossSettings) -> None:
    """Raise UserError if altered captions would be compared otherwise than the true ones."""
    for name, default in (("token_keep_ratio", 1.0), ("token_keep_schedule", None)):
        if getattr(settings, name) != default:
            raise UserError(
                "loss.swapped_words compares by the maximum over all "
                f"tokens, and {name}={getattr(settings, name)} compares otherwise; leave {name} at its default, or the "
                "term out"
            )


def memory(shape: BatchShape) -> float:
    """Return the bytes of token_wise, own swapped tokens with gradients, and own pairs' similarities twice."""
    return token_wise_memory(shape) + shape.pairs * shape.words * 8 * (shape.dim + shape.patches)


_TRIES = 8  # words that are drawn for a caption before it goes without


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


SWAPPED_WORDS = Term(
    compute,
    "tokens",
    memory,
    "token-wise similarity against own captions with one noun exchanged, too",
    check=check,
    captions=with_noun_exchanged,
    clip_words=True,
    citation=(
        citations.BAGS_OF_WORDS,
        "Zhang et al., Contrasting Intra-Modal and Ranking Cross-Modal Hard Negatives to Enhance Visio-Linguistic "
        "Compositional Understanding, CVPR 2024 (arXiv 2306.08832)",
    ),
)
