"""A run: everything that a step touches."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filip.loading.loader import PairLoader
from filip.runs.saved_files import LoopState
from filip.train.config import TrainConfig
from filip.train.counts import step_flops
from filip.train.engine import Batching, Engine
from filip.train.losses import Loss
from filip.train.provenance import now
from filip.train.ranks import Ranks, StopSignal
from filip.train.schedule import Schedule
from filip.train.telemetry import Telemetry
from filip.train.watchdog import Watchdog


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
    stop: StopSignal
    commit: str | None  # the code's, when this start began
    started: str = field(default_factory=now)
    last_saved: float = field(default_factory=time.monotonic)
    last_record: dict[str, Any] = field(default_factory=dict)
    evaluated: dict[str, float] = field(default_factory=dict)  # in the last evaluation while training

    @functools.cached_property
    def step_flops(self) -> float:
        """Return the operations of both towers in a step of this rank: a backward pass counts as two forward ones.

        They are counted as by ``filip train plan``, with a caption of typical length.
        """
        return step_flops(self.engine.model.config, self.config, self.batching)

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
