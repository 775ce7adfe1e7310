"""The scalars of a step: named by the loss, averaged over ranks, collected over an interval."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from filip.train.step import StepOutput


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
    """Average the metrics of all ranks' batches and tell all ranks each one's requests, with one all-reduce."""
    names = list(outputs[0].metrics)
    means = [torch.stack([output.metrics[name].float() for output in outputs]).mean() for name in names]
    device = means[0].device
    others = torch.tensor([data_wait, float(stop), float(save)], device=device)
    vector = torch.cat([torch.stack([mean.to(device) for mean in means]), others])
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
