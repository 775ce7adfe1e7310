"""The forward and backward passes of one contrastive batch, whole or in chunks (gradient caching)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from filip.interaction import (
    ContrastiveOutput,
    Similarity,
    contrastive_loss,
    distributed_global_similarity,
    distributed_late_interaction,
    gather_ids,
    keep_tokens,
)
from filip.models import Encoded, TextFeatures
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
    """``loss(encoded, group)`` of this rank's pairs against those of all ranks; ``group`` [b] int64."""
    name = config.precision if config.transport_dtype == "auto" else config.transport_dtype
    wire = None if name == "fp32" else model_dtype(name)

    def similarity(encoded: Encoded) -> Similarity:
        if not isinstance(encoded.text, TextFeatures):
            return distributed_global_similarity(encoded.image, encoded.text)
        images, texts, lengths = keep_tokens(encoded.image, *encoded.text, config.token_share)
        return distributed_late_interaction(
            images, texts, lengths, form=config.form, transport_dtype=wire, backend=config.backend
        )

    def loss(encoded: Encoded, group: Tensor) -> ContrastiveOutput:
        all_ids, offset = gather_ids(group)
        ids = (group, all_ids) if config.soft_targets else (None, None)
        return contrastive_loss(
            similarity(encoded), encoded.logit_scale, offset=offset, ids=ids[0], all_ids=ids[1]
        )

    return loss


def backward(
    engine: Engine, batch: dict[str, Tensor], loss: LossFunction, inspect: Inspection | None = None
) -> StepOutput:
    """Forward and backward of one contrastive batch; the optimiser steps if DeepSpeed has its micro-steps together.

    ``batch``: pixels, ids, lengths, group of this rank. ``inspect`` looks at the embeddings and gives one number.
    """
    if engine.batching.chunks > 1:
        return _cached_backward(engine, batch, loss, inspect)
    encoded = engine.deepspeed(batch["pixels"], batch["ids"], batch["lengths"])
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
    """Gradient caching (Gao et al., 2021): the exact gradient of the whole batch with the memory of one chunk.

    All chunks are encoded without a graph, the loss gives the gradient of every embedding, and each chunk is
    encoded once more to carry its share back into the weights.
    """
    chunks = _chunks(batch, engine.batching.chunk)
    states, pieces = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state(chunk["pixels"].device))
            pieces.append(engine.deepspeed(chunk["pixels"], chunk["ids"], chunk["lengths"]))
    leaves = [_leaves(piece) for piece in pieces]
    scale = leaves[0][2]
    joined = _join(leaves, [c["lengths"] for c in chunks], scale)
    output = loss(joined, batch["group"])
    seen = _inspect(joined, inspect)
    output.loss.backward()
    for i, (chunk, state, (image, text, _)) in enumerate(zip(chunks, states, leaves, strict=True)):
        assert image.grad is not None and text.grad is not None and scale.grad is not None
        _restore_random_state(state)
        encoded = engine.deepspeed(chunk["pixels"], chunk["ids"], chunk["lengths"])
        tokens = encoded.text.tokens if isinstance(encoded.text, TextFeatures) else encoded.text
        surrogate = (encoded.image * image.grad).sum() + (tokens * text.grad).sum()
        # The scale has one gradient for the whole batch: the first chunk carries it, the others a zero.
        surrogate = surrogate + (encoded.logit_scale * (scale.grad if i == 0 else 0 * scale.grad)).sum()
        engine.deepspeed.backward(surrogate * len(chunks))  # DeepSpeed divides by the number of micro-steps
        engine.deepspeed.step()
    return StepOutput(_detached(output), scale.detach(), seen)


def _chunks(batch: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    count = len(batch["group"]) // size
    return [{name: value[i * size : (i + 1) * size] for name, value in batch.items()} for i in range(count)]


def _leaves(encoded: Encoded) -> tuple[Tensor, Tensor, Tensor]:
    text = encoded.text.tokens if isinstance(encoded.text, TextFeatures) else encoded.text
    image, text, scale = (t.detach().requires_grad_() for t in (encoded.image, text, encoded.logit_scale))
    return image, text, scale


def _join(leaves: list[tuple[Tensor, Tensor, Tensor]], lengths: list[Tensor], scale: Tensor) -> Encoded:
    image = torch.cat([leaf[0] for leaf in leaves])
    text: Any = torch.cat([leaf[1] for leaf in leaves])
    if image.dim() == 3:
        text = TextFeatures(text, torch.cat(lengths))
    return Encoded(image, text, scale)


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _restore_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])


def _detached(output: ContrastiveOutput) -> ContrastiveOutput:
    return ContrastiveOutput(*(t.detach() for t in output))
