"""The forward and backward passes of one contrastive batch, whole or in chunks (gradient caching)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from filip.interaction import (
    ContrastiveOutput,
    Similarity,
    add_pooled_term,
    cached_backward,
    contrastive_loss,
    distributed_late_interaction,
    distributed_pooled_similarity,
    gather_ids,
    select_tokens,
)
from filip.models import Encoded, PooledFeatures, TextFeatures
from filip.train.config import TrainConfig
from filip.train.engine import Engine, model_dtype

LossFunction = Callable[[Encoded, Tensor], ContrastiveOutput]
Inspection = Callable[[Encoded], Tensor]


@dataclass(frozen=True)
class StepOutput:
    """Of one contrastive batch, detached: this rank's loss and accuracies, the scale, and what an inspection saw."""

    contrastive: ContrastiveOutput
    logit_scale: Tensor
    special_share: Tensor


def make_loss(config: TrainConfig) -> LossFunction:
    """``loss(encoded, group)`` of this rank's pairs against those of all ranks; ``group`` [b] int64.

    Where the model gives global vectors beside its tokens, their loss is added with ``config.pooled_weight``.
    """
    name = config.precision if config.transport_dtype == "auto" else config.transport_dtype
    wire = None if name == "fp32" else model_dtype(name)

    def similarity(encoded: Encoded) -> Similarity:
        if not isinstance(encoded.text, TextFeatures):
            return distributed_pooled_similarity(encoded.image, encoded.text)
        images, texts, lengths = select_tokens(encoded.image, *encoded.text, config.token_keep_ratio)
        return distributed_late_interaction(
            images, texts, lengths, exchange=config.exchange, transport_dtype=wire, backend=config.backend
        )

    def loss(encoded: Encoded, group: Tensor) -> ContrastiveOutput:
        all_ids, offset = gather_ids(group)
        ids = (group, all_ids) if config.soft_targets else (None, None)

        def cross_entropy(both: Similarity) -> ContrastiveOutput:
            return contrastive_loss(both, encoded.logit_scale, offset=offset, ids=ids[0], all_ids=ids[1])

        output = cross_entropy(similarity(encoded))
        if encoded.pooled is None:
            return output
        pooled = cross_entropy(distributed_pooled_similarity(*encoded.pooled))
        return add_pooled_term(output, pooled, config.pooled_weight)

    return loss


def backward(
    engine: Engine, batch: dict[str, Tensor], loss: LossFunction, inspect: Inspection | None = None
) -> StepOutput:
    """Forward and backward of one contrastive batch; the optimiser steps if DeepSpeed has its micro-steps together.

    ``batch``: pixels, ids, lengths, group of this rank. ``inspect`` looks at the embeddings and gives one number.
    """
    if engine.batching.chunks > 1:
        return _cached_backward(engine, batch, loss, inspect)
    encoded = engine.encode(batch)
    output = loss(encoded, batch["group"])
    seen = _inspect(encoded, inspect)
    engine.deepspeed.backward(output.loss)
    engine.deepspeed.step()
    return StepOutput(_detached(output), encoded.logit_scale.detach(), seen)


@torch.no_grad()
def special_token_share(encoded: Encoded, pairs: int = 32) -> Tensor:
    """Share of patches whose best token of their own caption is [BOS] or [EOS], over the first ``pairs`` pairs.

    Where it nears 1 the words do no work. NaN for global vectors.
    """
    if not isinstance(encoded.text, TextFeatures):
        return torch.tensor(math.nan)
    lengths = encoded.text.lengths[:pairs].tolist()
    captions = encoded.text.tokens[: sum(lengths)].split(lengths)
    shares = []
    for image, caption in zip(encoded.image, captions, strict=False):
        best = (image.float() @ caption.float().T).argmax(dim=1)
        shares.append(((best == 0) | (best == len(caption) - 1)).float().mean())
    return torch.stack(shares).mean()


def _inspect(encoded: Encoded, inspect: Inspection | None) -> Tensor:
    return torch.tensor(math.nan) if inspect is None else inspect(encoded)


def _cached_backward(
    engine: Engine, batch: dict[str, Tensor], loss: LossFunction, inspect: Inspection | None
) -> StepOutput:
    """The same with the activations of one chunk at a time (see filip.interaction.grad_cache)."""
    kept: list[Tensor] = []

    def encode(chunk: dict[str, Tensor]) -> tuple[Tensor, ...]:
        encoded = engine.encode(chunk)
        if isinstance(encoded.text, TextFeatures):
            pooled = encoded.pooled or ()
            return encoded.image, encoded.text.tokens, encoded.logit_scale, encoded.text.lengths, *pooled
        return encoded.image, encoded.text, encoded.logit_scale

    def whole_loss(
        image: Tensor, text: Tensor, scales: Tensor, lengths: Tensor | None = None, *pooled: Tensor
    ) -> ContrastiveOutput:
        scale = scales.mean(dim=0, keepdim=True)  # one equal value per chunk
        packed = text if lengths is None else TextFeatures(text, lengths)
        encoded = Encoded(image, packed, scale, PooledFeatures(*pooled) if pooled else None)
        kept.extend((scale.detach(), _inspect(encoded, inspect)))
        return loss(encoded, batch["group"])

    def carry_back(scalar: Tensor) -> None:
        engine.deepspeed.backward(scalar / engine.batching.accumulation, scale_wrt_gas=False)
        engine.deepspeed.step()

    chunks = _chunks(batch, engine.batching.chunk)
    output = cached_backward(chunks, encode, whole_loss, carry_back, loss_scale=engine.loss_scale())
    return StepOutput(output, *kept)


def _chunks(batch: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    count = len(batch["group"]) // size
    return [{name: value[i * size : (i + 1) * size] for name, value in batch.items()} for i in range(count)]


def _detached(output: ContrastiveOutput) -> ContrastiveOutput:
    return ContrastiveOutput(*(t.detach() for t in output))
