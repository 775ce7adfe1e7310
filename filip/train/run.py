"""A run: everything that a step touches."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from filip.loading.loader import PairLoader
from filip.runs.saved_files import LoopState
from filip.train.config import TrainConfig
from filip.train.engine import Batching, Engine
from filip.train.losses import Loss
from filip.train.optimizers import Schedule
from filip.train.provenance import now
from filip.train.ranks import Ranks, StopSignal
from filip.train.telemetry import Telemetry
from filip.train.watchdog import StallAlarm, StepStatus, Watchdog


@dataclass(frozen=True)
class TakenStep:
    """A step that has been taken, with its numbers still on the device: one for each name, the scale, 1 if left out."""

    step: int
    names: list[str]
    numbers: Tensor
    lr: float
    loss_scale: float
    data_wait: float  # seconds in which a rank waited for its batches, mean over ranks
    own_wait: float  # the same on this rank; the only value here that is not the same on all


@dataclass
class Run:
    """Everything that a step touches."""

    config: TrainConfig
    ranks: Ranks
    batching: Batching
    engine: Engine
    loss: Loss
    loader: PairLoader
    schedule: Schedule
    state: LoopState
    telemetry: Telemetry
    watchdog: Watchdog
    alarm: StallAlarm
    stop: StopSignal
    step_flops: float  # of both towers in a step of this rank, as ``filip train plan`` counts them
    commit: str | None  # the code's, when this start began
    started: str = field(default_factory=now)
    last_saved: float = field(default_factory=time.monotonic)
    last_record: dict[str, Any] = field(default_factory=dict)
    evaluated: dict[str, float] = field(default_factory=dict)  # in the last evaluation while training
    steps_here: int = 0  # of this start
    unread: list[TakenStep] = field(default_factory=list)
    unread_seconds: float = 0.0  # of these steps
    interval: list[StepStatus] = field(default_factory=list)  # the steps since the last line of the log

    @property
    def elapsed(self) -> dict[str, float]:
        """Return the time of all steps so far, without evaluations and checkpoints, under its TensorBoard names."""
        return {"time/seconds": self.state.seconds, "time/processor_seconds": self.state.processor_seconds}

    @property
    def folder(self) -> Path:
        return Path(self.config.run_dir)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def is_over(self) -> bool:
        return self.state.step >= self.schedule.steps
