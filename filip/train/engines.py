"""Take optimiser steps with one process or torch's DDP, and choose between that and DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from filip.models import DualEncoder, Encoded
from filip.runs.saved_files import DDP_STATES
from filip.train.config import TrainConfig
from filip.train.deepspeed_engine import DeepSpeedEngine
from filip.train.engine import Batching, Engine
from filip.train.losses import Loss
from filip.train.optimizers import AVERAGE


class DataParallel(Engine):
    """Every rank has the whole model and optimiser: one rank alone, or torch's DDP. Weights stay float32."""

    def __init__(
        self, model: DualEncoder, config: TrainConfig, batching: Batching, loss: Loss, place: torch.device
    ) -> None:
        super().__init__(model, config, batching, loss)
        model.to(place)  # with the parameters of the loss
        self.module = model  # LAMB finds its parameters' names here
        self.ddp = None
        if torch.distributed.get_world_size() > 1:
            self.ddp = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
        self.bf16 = torch.autocast(place.type, torch.bfloat16, enabled=config.precision == "bf16")
        self.passes = batching.accumulation * batching.chunks  # of a step
        self.done = 0  # passes of this step
        self.bind(self)

    def forward(self, *inputs: Tensor, **options: Any) -> Encoded:
        if self.done == 0:  # not after the step, which would leave no gradient to take a norm of
            self.optimizer.zero_grad()
        is_last = self.done + 1 == self.passes
        with self.bf16, nullcontext() if self.ddp is None or is_last else self.ddp.no_sync():
            encoded: Encoded = (self.ddp or self.module)(*inputs, **options)
        return encoded

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        self.done += 1
        if self.done == self.passes:
            self.optimizer.step()
            self.done = 0

    def save(self, folder: Path, random: list[Any]) -> None:
        if torch.distributed.get_rank() == 0:
            states = {"module": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "random": random}
            torch.save(states, folder / DDP_STATES)

    def load(self, folder: Path) -> list[Any]:
        saved = torch.load(folder / DDP_STATES, map_location="cpu", weights_only=False)
        self.model.load_state_dict(saved["module"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.bind(self)
        random: list[Any] = saved["random"]
        return random

    def whole_weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.model.named_parameters():
            yield name, self.optimizer.state.get(parameter, {}).get(AVERAGE, parameter)

    def _gradient_norm(self) -> float | None:
        return float(get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None]))


def make_engine(model: DualEncoder, config: TrainConfig, batching: Batching, place: torch.device, loss: Loss) -> Engine:
    """Make the engine that ``config`` names, and the optimiser in it, on the device ``place``."""
    if config.engine == "ddp":
        return DataParallel(model, config, batching, loss, place)
    return DeepSpeedEngine(model, config, batching, loss)
