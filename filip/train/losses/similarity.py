"""FILIP's loss, and CLIP's.

FILIP: each patch with its best word, each word with its best patch (Yao et al., 2022, equations 4 to 6).

    s^I_ij = mean over patches k of max over words r of <v_ik, t_jr>       s^T_ij the same with the sides exchanged

and CLIP's cross-entropy over both, each in its own direction. Public re-implementations often count padding as words,
use the transpose of s^I for s^T, or sum where the paper takes the mean. ``token_maximum`` puts something softer in
place of the maximum: ``smooth``, a log-mean-exp of temperature ``token_temperature``, which a schedule may lower to 0,
the maximum itself. It is not in the paper; evaluation uses the maximum.

CLIP's (Radford et al., 2021) has one vector per image and caption. Beside FILIP's it reads [CLS] and [EOS] through the
projections that all tokens go through. SPARC (Bica et al., 2024) found the token-wise loss alone unstable at scale, and
stable with this term added.
"""

from __future__ import annotations

import torch
from torch import Tensor

from filip.common.citations import CLIP, FILIP
from filip.models import TextFeatures
from filip.train.losses.term import SOFTMAX_BYTES, BatchShape, LossInput, LossSettings, Term, TermOutput
from late_interaction import Similarity, SmoothMaximum, distributed_late_interaction, distributed_pooled_similarity
from late_interaction.backends import Backend
from late_interaction.token_selection import TokenChoice, choose_tokens, take_tokens


def token_wise(batch: LossInput) -> TermOutput:
    """Compute the cross-entropy over the token-wise maximum similarity of all pairs."""
    similarity, metrics = batch.once("token_wise", token_wise_similarity)
    output = batch.cross_entropy(similarity)
    return TermOutput(output.loss, output.metrics | metrics)


def token_wise_similarity(batch: LossInput) -> tuple[Similarity, dict[str, Tensor]]:
    """Return s^I and s^T of own pairs with all ranks' pairs, and the metrics of the token selection.

    Several terms read it: ask for it by ``batch.once("token_wise", token_wise_similarity)``.
    """
    settings = batch.settings
    image, text = batch.tokens
    metrics: dict[str, Tensor] = {}
    keep_ratio = batch.keep_ratio
    if settings.token_keep_schedule is not None:
        metrics["tokens/keep_ratio"] = torch.full((), keep_ratio, device=image.device)  # no copy that waits
    if isinstance(settings.token_temperature, str):
        metrics["tokens/temperature"] = torch.full((), batch.token_temperature, device=image.device)
    if keep_ratio < 1:
        choice = choose_tokens(
            image,
            *text,
            keep_ratio,
            score=settings.token_score,
            minimum=settings.token_keep_minimum,
            generator=torch.Generator().manual_seed((batch.step << 24) + batch.offset),  # a resumed step draws the same
        )
        metrics |= selection_metrics(choice, image, text)
        if settings.model.exclude_special_tokens or settings.model.text.tokenizer is not None:
            metrics.pop("tokens/kept_bos_eos")  # they were gone before, or other tokens are there
        image, *selected = take_tokens(image, text.tokens, choice)
        text = TextFeatures(*selected)
    temperature = batch.token_temperature if settings.token_maximum == "smooth" else 0.0
    dtype = transport_dtype(settings)
    backend: str | Backend = settings.backend
    if backend == "auto":
        backend = batch.auto.choose(image, text, temperature, batch.encoded.logit_scale, dtype)
    similarity = distributed_late_interaction(
        image,
        *text,
        exchange=settings.exchange,
        transport_dtype=dtype,
        backend=backend,
        maximum=SmoothMaximum(temperature, unit=True) if temperature > 0 else None,
        recompute=settings.recompute,
    )
    return similarity, metrics


def transport_dtype(settings: LossSettings) -> torch.dtype | None:
    """Return the dtype in which tokens travel between ranks; None for float32, which needs no conversion."""
    name = settings.precision if settings.transport_dtype == "auto" else settings.transport_dtype
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


@torch.no_grad()
def selection_metrics(choice: TokenChoice, image: Tensor, text: TextFeatures) -> dict[str, Tensor]:
    """Measure the kept tokens, so that a self-reinforcing selection is visible in TensorBoard.

    ``tokens/kept_bos_eos``     share of the kept text tokens that are [BOS] or [EOS]; 2 / length without a preference
    ``tokens/kept_same_patch``  share of the kept patches at the most frequent position; 1 / n1 without a preference
    ``tokens/kept_text_cosine``, ``tokens/kept_image_cosine``   mean cosine of two kept tokens of the batch: 1 if they
        are all the same vector, and then the loss stays at log(batch)
    """
    ends = text.lengths.cumsum(0)
    special = torch.zeros(len(text.tokens), device=text.tokens.device)
    special[ends - 1] = 1
    special[ends - text.lengths] = 1
    positions = torch.bincount(choice.image_rows % image.shape[1], minlength=image.shape[1])
    return {
        "tokens/kept_bos_eos": special[choice.text_rows].mean(),
        "tokens/kept_same_patch": positions.max() / positions.sum(),
        "tokens/kept_text_cosine": _mean_cosine(text.tokens[choice.text_rows]),
        "tokens/kept_image_cosine": _mean_cosine(image.flatten(0, 1)[choice.image_rows]),
    }


def _mean_cosine(unit: Tensor) -> Tensor:
    """Return the mean cosine over all ordered pairs of the rows of ``unit`` [n, d], a row with itself included."""
    return unit.float().mean(dim=0).square().sum()


TILE_BYTES = 1 << 28  # of the similarity that the tiled backend holds


def token_wise_memory(shape: BatchShape) -> float:
    """Return the bytes of this rank's tokens and their gradients in float32, and of the interaction's memory.

    These are what the backend keeps for the backward, the soft-max, other ranks' packed texts, and one tile.
    """
    tokens = shape.pairs * (shape.patches + shape.words) * shape.dim * 8
    scores, all_texts = shape.pairs * shape.all_pairs, shape.all_pairs * shape.kept_words * shape.dim
    saved = scores * (shape.kept_patches + shape.kept_words) * shape.saved_bytes
    if shape.exchange == "gather":  # all tokens, their float32 gradients, and those once more padded for the wire
        remote = all_texts * (shape.token_bytes + 2 * 4)
    else:  # the block in hand and the one arriving; a gradient being computed, one leaving, one arriving
        remote = all_texts * shape.pairs // shape.all_pairs * (2 * shape.token_bytes + 3 * 4)
    tile = min(TILE_BYTES, 4 * scores * shape.kept_patches * shape.kept_words)
    return tokens + saved + SOFTMAX_BYTES * scores + remote + tile


def saved_bytes(settings: LossSettings, longest: int) -> int:
    """Return the bytes that the backend keeps for each token of an image with each text, and the reverse.

    The maximum keeps the number of a token, of at most ``longest``; of the smooth one only Triton keeps a float32 sum.
    """
    if settings.token_maximum == "smooth":
        on_gpu = settings.backend == "auto" and torch.cuda.is_available()
        return 4 if on_gpu or settings.backend == "triton" else 0
    return 1 if longest <= 256 else 2


TOKEN_WISE = Term(token_wise, "tokens", token_wise_memory, "token-wise maximum similarity", citation=(FILIP,))


def pooled(batch: LossInput) -> TermOutput:
    """Compute the cross-entropy over the cosine of all pairs of vectors."""
    return batch.cross_entropy(distributed_pooled_similarity(*batch.vectors))


def pooled_memory(shape: BatchShape) -> float:
    """Return the bytes of this rank's vectors with gradients in float32, of all ranks' vectors, and of the soft-max."""
    gathered = 2 * shape.all_pairs * shape.dim * shape.token_bytes
    return shape.pairs * 2 * shape.dim * 8 + gathered + SOFTMAX_BYTES * shape.pairs * shape.all_pairs


POOLED = Term(pooled, "vectors", pooled_memory, "cosine of [CLS] and [EOS]", citation=(CLIP,))
