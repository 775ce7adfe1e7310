"""The forward and backward passes of one contrastive batch, whole or in chunks (gradient caching)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from filip.interaction import cached_backward
from filip.models import Encoded, PooledFeatures, TextFeatures
from filip.train.engine import Engine
from filip.train.losses import LossOutput

LossFunction = Callable[[Encoded, Tensor], LossOutput]
Inspection = Callable[[Encoded], dict[str, Tensor]]


@dataclass(frozen=True)
class StepOutput:
    """The result of one contrastive batch on this rank: named scalars and the scale, detached."""

    metrics: dict[str, Tensor]
    logit_scale: Tensor


def backward(
    engine: Engine, batch: dict[str, Tensor], loss: LossFunction, inspect: Inspection | None = None
) -> StepOutput:
    """Run forward and backward of one contrastive batch.

    The optimiser steps if DeepSpeed has its micro-steps together.

    ``batch``: this rank's pixels, ids, lengths and group. ``inspect`` looks at the embeddings and returns more metrics.
    """
    if engine.batching.chunks > 1:
        return _cached_backward(engine, batch, loss, inspect)
    encoded = engine.encode(batch)
    output = loss(encoded, batch["group"])
    metrics = output.metrics | (inspect(encoded) if inspect else {})
    engine.deepspeed.backward(output.loss)
    engine.deepspeed.step()
    return StepOutput(metrics, encoded.logit_scale.detach())


def _cached_backward(
    engine: Engine, batch: dict[str, Tensor], loss: LossFunction, inspect: Inspection | None
) -> StepOutput:
    """Do the same with the activations of one chunk at a time (see filip.interaction.grad_cache)."""
    found: list[StepOutput] = []
    names: list[str] = []

    def encode(chunk: dict[str, Tensor]) -> tuple[Tensor, ...]:
        tensors = by_name(engine.encode(chunk))
        names[:] = tensors
        return tuple(tensors.values())

    def whole_loss(*tensors: Tensor) -> LossOutput:
        encoded = from_names(dict(zip(names, tensors, strict=True)))
        output = loss(encoded, batch["group"])
        metrics = output.metrics | (inspect(encoded) if inspect else {})
        found.append(StepOutput(metrics, encoded.logit_scale.detach()))
        return output

    def carry_back(scalar: Tensor) -> None:
        engine.deepspeed.backward(scalar / engine.batching.accumulation, scale_wrt_gas=False)
        engine.deepspeed.step()

    chunks = _chunks(batch, engine.batching.chunk)
    cached_backward(chunks, encode, whole_loss, carry_back, loss_scale=engine.loss_scale())
    return found[0]


def by_name(encoded: Encoded) -> dict[str, Tensor]:
    """Return every tensor of ``encoded``, each growing along its first dimension with the number of chunks."""
    tensors = {"image": encoded.image, "logit_scale": encoded.logit_scale}
    if isinstance(encoded.text, TextFeatures):
        tensors |= {"text": encoded.text.tokens, "lengths": encoded.text.lengths}
    else:
        tensors["text"] = encoded.text
    if encoded.pooled is not None:
        tensors |= {"pooled.image": encoded.pooled.image, "pooled.text": encoded.pooled.text}
    if encoded.further is not None:
        tensors |= {"further": encoded.further.tokens, "further_lengths": encoded.further.lengths}
    if encoded.image_lengths is not None:
        tensors["image_lengths"] = encoded.image_lengths
    return tensors | {f"parameters.{name}": value for name, value in encoded.parameters.items()}


def from_names(tensors: dict[str, Tensor]) -> Encoded:
    """Invert :func:`by_name` for chunks in a row. Each chunk holds the values of the model, and they are equal."""
    text, lengths = tensors["text"], tensors.get("lengths")
    pooled = PooledFeatures(tensors["pooled.image"], tensors["pooled.text"]) if "pooled.image" in tensors else None
    of_model = {
        name: value.mean(dim=0, keepdim=True)
        for name, value in tensors.items()
        if name == "logit_scale" or name.startswith("parameters.")
    }
    scale = of_model.pop("logit_scale")
    own = {name.removeprefix("parameters."): value for name, value in of_model.items()}
    further = TextFeatures(tensors["further"], tensors["further_lengths"]) if "further" in tensors else None
    return Encoded(
        tensors["image"],
        text if lengths is None else TextFeatures(text, lengths),
        scale,
        pooled,
        further,
        own,
        tensors.get("image_lengths"),
    )


def _chunks(batch: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    count = len(batch["group"]) // size
    parts = {name: value.chunk(count) for name, value in batch.items()}
    return [{name: part[i] for name, part in parts.items()} for i in range(count)]
