"""The forward and backward passes of one contrastive batch, whole or in chunks (gradient caching), and its scalars."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from filip.models import Encoded, PooledFeatures, TextFeatures
from filip.train.engine import Engine
from filip.train.losses import LossOutput
from late_interaction import cached_backward

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

    The optimiser steps if this is the last one of a step.

    ``batch``: this rank's pixels, ids, lengths and group. ``inspect`` looks at the embeddings and returns more metrics.
    """
    if engine.batching.chunks > 1:
        return _cached_backward(engine, batch, loss, inspect)
    encoded = engine.encode(batch)
    output = loss(encoded, batch["group"])
    metrics = output.metrics | (inspect(encoded) if inspect else {})
    engine.backward(output.loss / engine.batching.accumulation)
    return StepOutput(metrics, encoded.logit_scale.detach())


def _cached_backward(
    engine: Engine, batch: dict[str, Tensor], loss: LossFunction, inspect: Inspection | None
) -> StepOutput:
    """Do the same with the activations of one chunk at a time (see late_interaction.grad_cache)."""
    outputs: list[StepOutput] = []
    names: list[str] = []

    def encode(chunk: dict[str, Tensor]) -> tuple[Tensor, ...]:
        tensors = by_name(engine.encode(chunk))
        names[:] = tensors
        return tuple(tensors.values())

    def whole_loss(*tensors: Tensor) -> LossOutput:
        encoded = from_names(dict(zip(names, tensors, strict=True)))
        output = loss(encoded, batch["group"])
        metrics = output.metrics | (inspect(encoded) if inspect else {})
        outputs.append(StepOutput(metrics, encoded.logit_scale.detach()))
        return output

    def carry_back(scalar: Tensor) -> None:
        engine.backward(scalar / engine.batching.accumulation)

    chunks = _chunks(batch, engine.batching.chunk)
    cached_backward(chunks, encode, whole_loss, carry_back, loss_scale=engine.loss_scale())
    return outputs[0]


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
    learned = {name.removeprefix("parameters."): value for name, value in of_model.items()}
    further = TextFeatures(tensors["further"], tensors["further_lengths"]) if "further" in tensors else None
    return Encoded(
        tensors["image"], text if lengths is None else TextFeatures(text, lengths), scale, pooled, further, learned
    )


def _chunks(batch: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    count = len(batch["group"]) // size
    parts = {name: value.chunk(count) for name, value in batch.items()}
    return [{name: part[i] for name, part in parts.items()} for i in range(count)]


@dataclass(frozen=True)
class StepMetrics:
    """The metrics of one optimiser step, as all ranks know them."""

    values: dict[str, float]  # means over ranks and contrastive batches, under their TensorBoard names
    logit_scale: float
    data_wait: float  # seconds in which a rank waited for its batches, mean over ranks
    own_wait: float  # the same on this rank; the only value here that is not the same on all
    stop: bool  # a rank was asked to stop
    save: bool  # a rank wants a checkpoint

    @property
    def loss(self) -> float:
        return self.values["loss/total"]


def over_ranks(outputs: list[StepOutput], world_size: int, data_wait: float, stop: bool, save: bool) -> StepMetrics:
    """Average the metrics of all ranks' batches and pass on each rank's requests, with one all-reduce."""
    names = list(outputs[0].metrics)
    means = [torch.stack([output.metrics[name].float() for output in outputs]).mean() for name in names]
    device = means[0].device
    flags = torch.tensor([data_wait, float(stop), float(save)], device=device)
    vector = torch.cat([torch.stack([mean.to(device) for mean in means]), flags])
    dist.all_reduce(vector)
    *sums, wait, stops, saves = vector.tolist()
    return StepMetrics(
        values={name: value / world_size for name, value in zip(names, sums, strict=True)},
        logit_scale=float(outputs[-1].logit_scale),
        data_wait=wait / world_size,
        own_wait=data_wait,
        stop=stops > 0,
        save=saves > 0,
    )


@dataclass
class Interval:
    """The metrics and times of the steps since the last line."""

    steps: list[StepMetrics] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    all_seconds: list[float] = field(default_factory=list)
    skipped: list[bool] = field(default_factory=list)

    def add(self, metrics: StepMetrics, seconds: float, skipped: bool = False) -> None:
        self.steps.append(metrics)
        self.seconds.append(seconds)
        self.all_seconds.append(seconds)
        self.skipped.append(skipped)

    def means(self) -> dict[str, float]:
        """Return the mean of each metric over the steps that have it."""
        names = dict.fromkeys(name for step in self.steps for name in step.values)
        return {
            name: statistics.fmean(step.values[name] for step in self.steps if name in step.values) for name in names
        }

    def data_wait(self) -> float:
        """Return the mean seconds per step."""
        return statistics.fmean(step.data_wait for step in self.steps)

    def own_wait(self) -> float:
        """Return the mean seconds per step, for this rank alone."""
        return statistics.fmean(step.own_wait for step in self.steps)

    def clear(self) -> None:
        self.steps.clear()
        self.seconds.clear()
        self.skipped.clear()
