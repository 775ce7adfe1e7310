"""SuperCLIP's term: a linear layer names the words of an image's caption (Zhao et al., NeurIPS 2025).

With y_c = 1 if token c is in the caption, N captions of which n_c have c, and the mean v of an image's patches:

    w_c = log(N / (1 + n_c))                                 how rare a token is
    t_c = w_c y_c / sum_k w_k y_k                            the caption as a distribution over the vocabulary
    L   = - mean over pairs of sum_c t_c log softmax(W v)_c

The paper adds L to CLIP's loss, here ``loss.pooled`` or ``loss.token_wise``. It counts n_c over the data set; here they
are counted over the contrastive batch of all ranks, so that a resumed run needs no memory of what came before. A token
of all captions, such as [BOS], would weigh a little less than nothing: it weighs nothing. v is the mean of the unit
tokens behind the projection, as every term's, times sqrt(d), the length that a LayerNorm gives; the paper takes the
features before the projection.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from filip.tokenizer import EOS
from filip.train.losses.term import BatchShape, LossInput, Term, TermOutput
from late_interaction.packing import accumulation_dtype

VOCABULARY = EOS + 1
NAME = "caption_words"


def compute(batch: LossInput) -> TermOutput:
    """Compute L over this rank's pairs; the scores of a caption's own tokens are picked out of each image's."""
    image, _ = batch.tokens
    assert batch.captions is not None
    ids, lengths = batch.captions
    firsts = first_occurrences(ids, lengths)
    wide = accumulation_dtype(image.dtype)
    with torch.autocast(image.device.type, enabled=False):
        weights = firsts * rarity(ids[firsts], len(ids)).to(wide)[ids]
        targets = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)
        seen = math.sqrt(image.shape[2]) * image.to(wide).mean(dim=1)
        scores = seen @ batch.parameters[NAME][0].to(wide).T
        log_shares = scores.gather(1, ids) - scores.logsumexp(dim=1, keepdim=True)
        loss = -(targets * log_shares).sum(dim=1).mean()
    best = (ids == scores.argmax(dim=1, keepdim=True)) & (weights > 0)
    return TermOutput(loss, {"accuracy/caption_word": best.any(dim=1).to(wide).mean()})


def first_occurrences(ids: Tensor, lengths: Tensor) -> Tensor:
    """Return a mask [b, n] of the first occurrence of each token in its caption; padding is false."""
    columns = torch.arange(ids.shape[1], device=ids.device)
    before = columns[:, None] > columns[None, :]
    repeated = ((ids[:, :, None] == ids[:, None, :]) & before).any(dim=2)
    return (columns < lengths.to(ids.device)[:, None]) & ~repeated


def rarity(tokens: Tensor, captions: int) -> Tensor:
    """Return w for the whole vocabulary, from the ``tokens`` of this rank's ``captions``, each once a caption."""
    counts = torch.bincount(tokens, minlength=VOCABULARY + 1)
    counts[VOCABULARY] = captions
    if dist.is_initialized():
        dist.all_reduce(counts)
    return torch.log(counts[VOCABULARY] / (1 + counts[:VOCABULARY])).clamp(min=0)


def initial(dim: int) -> dict[str, Tensor]:
    """Return W, with the spread of a linear layer's weights: LAMB would hardly ever leave 0."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(1, VOCABULARY, dim, generator=generator, device="cpu")
    return {NAME: drawn * dim**-0.5}


def chance(pairs: int) -> float:
    """Return the loss of an image that names all tokens alike."""
    return math.log(VOCABULARY)


def memory(shape: BatchShape) -> float:
    """Return the bytes of the scores and their gradients, of W as the loss reads it, and of this rank's patches."""
    return VOCABULARY * (shape.pairs * 12 + shape.dim * 8) + shape.pairs * shape.patches * shape.dim * 8


CAPTION_WORDS = Term(
    compute,
    "tokens",
    chance,
    memory,
    "words of the caption, named by the image",
    initial,
    clip_words=True,
    citation=("Zhao et al., SuperCLIP: CLIP with Simple Classification Supervision, NeurIPS 2025 (arXiv 2512.14480)",),
)
