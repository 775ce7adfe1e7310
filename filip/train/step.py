"""The forward and backward passes of one contrastive batch, whole or in chunks (gradient caching)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from filip.interaction import cached_backward
from filip.models import Encoded, PooledFeatures, TextFeatures
from filip.train.engine import Engine
from filip.train.losses import LossOutput

LossFunction = Callable[[Encoded, Tensor], LossOutput]
Inspection = Callable[[Encoded], dict[str, Tensor]]


@dataclass(frozen=True)
class StepOutput:
    """Of one contrastive batch on this rank: named scalars and the scale, detached."""

    metrics: dict[str, Tensor]
    logit_scale: Tensor


def backward(
    engine: Engine, batch: dict[str, Tensor], loss: LossFunction, inspect: Inspection | None = None
) -> StepOutput:
    """Forward and backward of one contrastive batch; the optimiser steps if DeepSpeed has its micro-steps together.

    ``batch``: pixels, ids, lengths, group of this rank. ``inspect`` looks at the embeddings and returns more metrics.
    """
    if engine.batching.chunks > 1:
        return _cached_backward(engine, batch, loss, inspect)
    encoded = engine.encode(batch)
    output = loss(encoded, batch["group"])
    metrics = output.metrics | (inspect(encoded) if inspect else {})
    engine.deepspeed.backward(output.loss)
    engine.deepspeed.step()
    return StepOutput(metrics, encoded.logit_scale.detach())


@torch.no_grad()
def special_token_share(encoded: Encoded, pairs: int = 32) -> dict[str, Tensor]:
    """``tokens/bos_eos_share``: the share of patches whose best token of their own caption is [BOS] or [EOS].

    Over the first ``pairs`` pairs. Where it nears 1 the words do no work. Empty for pooled vectors.
    """
    if not isinstance(encoded.text, TextFeatures):
        return {}
    lengths = encoded.text.lengths[:pairs].tolist()
    captions = encoded.text.tokens[: sum(lengths)].split(lengths)
    shares = []
    for image, caption in zip(encoded.image, captions, strict=False):
        best = (image.float() @ caption.float().T).argmax(dim=1)
        shares.append(((best == 0) | (best == len(caption) - 1)).float().mean())
    return {"tokens/bos_eos_share": torch.stack(shares).mean()}


def _cached_backward(
    engine: Engine, batch: dict[str, Tensor], loss: LossFunction, inspect: Inspection | None
) -> StepOutput:
    """The same with the activations of one chunk at a time (see filip.interaction.grad_cache)."""
    found: list[StepOutput] = []

    def encode(chunk: dict[str, Tensor]) -> tuple[Tensor, ...]:
        encoded = engine.encode(chunk)
        if isinstance(encoded.text, TextFeatures):
            pooled = encoded.pooled or ()
            return encoded.image, encoded.text.tokens, encoded.logit_scale, encoded.text.lengths, *pooled
        return encoded.image, encoded.text, encoded.logit_scale

    def whole_loss(
        image: Tensor, text: Tensor, scales: Tensor, lengths: Tensor | None = None, *pooled: Tensor
    ) -> LossOutput:
        scale = scales.mean(dim=0, keepdim=True)  # one equal value per chunk
        packed = text if lengths is None else TextFeatures(text, lengths)
        encoded = Encoded(image, packed, scale, PooledFeatures(*pooled) if pooled else None)
        output = loss(encoded, batch["group"])
        metrics = output.metrics | (inspect(encoded) if inspect else {})
        found.append(StepOutput(metrics, scale.detach()))
        return output

    def carry_back(scalar: Tensor) -> None:
        engine.deepspeed.backward(scalar / engine.batching.accumulation, scale_wrt_gas=False)
        engine.deepspeed.step()

    chunks = _chunks(batch, engine.batching.chunk)
    cached_backward(chunks, encode, whole_loss, carry_back, loss_scale=engine.loss_scale())
    return found[0]


def _chunks(batch: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    count = len(batch["group"]) // size
    return [{name: value[i * size : (i + 1) * size] for name, value in batch.items()} for i in range(count)]
