"""SPARC's local term: the words of a caption against patches gathered from its own image (Bica et al., 2024).

With the tokens t_j of a caption and the P patches v_k of its image, both of unit length here:

    s_jk = <t_j, v_k>
    s_jk = (s_jk - min_k s_jk) / (max_k s_jk - min_k s_jk)                       eq. 2, for each word
    s_jk = s_jk if s_jk >= 1 / P else 0                                          eq. 3
    c_j  = sum_k a_jk v_k  with  a_jk = s_jk / sum_r s_jr                        eq. 4
    L    = 1/2 mean over captions of mean over words j of                        eq. 5
           - log softmax_k(<c_j, t_k> / temperature)[j] - log softmax_k(<t_j, c_k> / temperature)[j]

Eq. 1 is CLIP's loss and eq. 6 the weighted sum of both, here ``loss.pooled``: the local term needs it beside it,
since within one caption nothing tells images apart. c_j is normalised before eq. 5. No pair meets another: there are
no messages, and what is held for a pair are its own words times its own patches.

Where the paper's own pseudo-code (its listing; no code was released) differs from its equation: it averages over all
words of the batch, which counts a long caption more; here each caption counts the same, as in eq. 5. The paper's
global image vector is the mean of the patches through an adapter; ours is [CLS] through the projection of all tokens.
A word that all patches are equally similar to has no minimum and maximum to scale by: it gathers all patches equally.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from filip import citations
from filip.train.losses.term import BatchShape, LossInput, Term, TermOutput, sum_of
from late_interaction.packing import accumulation_dtype

TYPICAL_WORDS = 18  # in a web caption, [BOS] and [EOS] included


def compute(batch: LossInput) -> TermOutput:
    """Compute eq. 5 over this rank's pairs; captions of one length at a time, so that none is padded."""
    image, text = batch.tokens
    lengths: list[int] = text.lengths.tolist()
    captions = text.tokens.split(lengths)
    losses, hits = [], []
    for length in sorted(set(lengths)):
        members = [i for i, other in enumerate(lengths) if other == length]
        words = torch.stack([captions[i] for i in members])
        loss, right = local_loss(image[members], words, batch.encoded.logit_scale)
        losses.append(loss.sum())
        hits.append(right.sum())
    count = len(lengths)
    return TermOutput(sum_of(losses) / count, {"accuracy/word": sum_of(hits) / count})


def local_loss(image: Tensor, words: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return eq. 5 [m] for pairs of ``image`` [m, P, d] and ``words`` [m, n, d], and a share of words [m].

    The share is of the words to which what they gathered is closer than what the others gathered.
    """
    wide = accumulation_dtype(image.dtype)
    with torch.autocast(image.device.type, enabled=False):
        image, words, scale = image.to(wide), words.to(wide), scale.to(wide).reshape(())
        gathered = F.normalize(torch.bmm(patch_weights(words, image), image), dim=2)
        logits = scale * torch.bmm(words, gathered.mT)  # [m, word, what a word gathered]
        positions = torch.arange(words.shape[1], device=words.device).expand(len(words), -1)
        halves = [F.cross_entropy(side.mT, positions, reduction="none").mean(dim=1) for side in (logits, logits.mT)]
        right = (logits.argmax(dim=2) == positions).to(wide).mean(dim=1)
        return (halves[0] + halves[1]) / 2, right


def patch_weights(words: Tensor, image: Tensor) -> Tensor:
    """Return a of eq. 4 [m, n, P]: the weight of each patch for each word; not negative, with sum 1."""
    similarity = torch.bmm(words, image.mT)
    low, high = similarity.amin(dim=2, keepdim=True), similarity.amax(dim=2, keepdim=True)
    flat = high == low
    scaled = (similarity - low) / torch.where(flat, torch.ones_like(high), high - low)
    scaled = torch.where(flat, torch.ones_like(scaled), scaled)
    above = torch.where(scaled >= 1 / image.shape[1], scaled, torch.zeros_like(scaled))
    return above / above.sum(dim=2, keepdim=True)


def chance(pairs: int) -> float:
    """Return the loss of a caption of typical length with words equally close to everything.

    The number of pairs does not matter.
    """
    return math.log(TYPICAL_WORDS)


def memory(shape: BatchShape) -> float:
    """Return the bytes of this rank's tokens and their gradients in float32, and of the similarities per pair.

    The latter are words with patches and words with words, each several times.
    """
    tokens = shape.pairs * (shape.patches + 3 * shape.words) * shape.dim * 8
    return tokens + shape.pairs * shape.words * (8 * shape.patches + 6 * shape.words) * 4


SPARC = Term(
    compute, "tokens", chance, memory, "words and what they gather from their own image", citation=(citations.SPARC,)
)
