"""The interface of the two engines: forward and backward passes, optimiser steps, and what a checkpoint holds."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from filip.common import device
from filip.common.errors import UserError
from filip.images.eval_transform import normalize_planes
from filip.loading.crops import Crops, finish
from filip.models import DualEncoder, Encoded
from filip.train.config import AUTO, DEFAULT_GLOBAL_BATCH, TrainConfig
from filip.train.losses import Loss
from filip.train.optimizers import AVERAGE, OPTIMIZERS, AfterStep, param_groups, set_lr

MOST_FITTED = 1024  # pairs of a batch that global_batch=auto chooses


@dataclass(frozen=True)
class Batching:
    """The numbers of pairs that meet in a batch, on a rank and in a forward pass."""

    global_batch: int  # pairs of one contrastive batch, all ranks
    per_rank: int  # its pairs on this rank
    accumulation: int  # contrastive batches per optimiser step
    chunk: int  # pairs per forward pass; below per_rank with gradient caching

    @property
    def chunks(self) -> int:
        return self.per_rank // self.chunk

    @property
    def pairs_per_step(self) -> int:
        return self.global_batch * self.accumulation


def resolve_batching(config: TrainConfig, world_size: int) -> Batching:
    """Return the batch sizes for ``world_size`` ranks. Raise UserError if the ranks cannot share the batch evenly."""
    if config.batch_per_rank is not None:
        per_rank = config.batch_per_rank
    elif config.global_batch == AUTO:  # the pairs are not known yet: the most that it can become
        per_rank = max(1, MOST_FITTED // world_size)
        return Batching(per_rank * world_size, per_rank, config.gradient_accumulation, fitting_chunk(config, per_rank))
    else:
        global_batch = config.global_batch or DEFAULT_GLOBAL_BATCH
        per_rank, rest = divmod(global_batch, world_size)
        if rest or not per_rank:
            raise UserError(
                f"global_batch={global_batch} cannot be shared evenly by {world_size} ranks; "
                f"choose a multiple of {world_size}, or another number of ranks"
            )
    chunk = config.gradient_cache or per_rank
    if per_rank % chunk:
        raise UserError(
            f"gradient_cache={chunk} must divide the {per_rank} pairs of a rank (global_batch / ranks); "
            "choose a divisor"
        )
    return Batching(per_rank * world_size, per_rank, config.gradient_accumulation, chunk)


def fitting_chunk(config: TrainConfig, per_rank: int) -> int:
    """Return how many pairs a forward pass of gradient caching takes, a divisor of ``per_rank``."""
    return math.gcd(config.gradient_cache or per_rank, per_rank)


class Engine(ABC):
    """A model, its optimiser, and the way in which ranks share the work of a step (``engine=ddp|deepspeed``)."""

    zero_stage = 0
    is_fp16 = False
    gradient_clipping = 0.0

    def __init__(self, model: DualEncoder, config: TrainConfig, batching: Batching, loss: Loss) -> None:
        """Make the optimiser, also of the parameters that the terms of ``loss`` learn in addition to the model's."""
        model.set_loss_parameters(loss.parameters(model))
        if config.compile:
            model.compile_blocks()
        self.model, self.batching = model, batching
        self.optimizer = make_optimizer(model, config)
        self.kind = OPTIMIZERS[config.optimizer.name]
        self.groups = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.tokens_and_vectors = loss.reads_both(model.config.interaction)
        self.lr = 0.0  # that of the last step, before the groups' factors
        self.timed = False  # measure encode(), which then waits for the device
        self.encoding_seconds = 0.0  # spent in encode() since ``timed`` was set

    @abstractmethod
    def forward(self, *inputs: Tensor, **options: Any) -> Encoded:
        """Run the model in the training's precision."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of one forward pass; the last one of a step averages over ranks and steps."""

    @abstractmethod
    def save(self, folder: Path, random: list[Any]) -> None:
        """Write weights, states and each rank's ``random`` states into a folder that exists. All ranks call."""

    @abstractmethod
    def load(self, folder: Path) -> list[Any]:
        """Restore what :meth:`save` wrote; return the random states of all ranks."""

    @abstractmethod
    def whole_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each parameter's name and float32 value: its average where the optimiser has one. All ranks call."""

    @abstractmethod
    def _gradient_norm(self) -> float | None:
        """Return the L2 norm of the last step's gradient where the optimiser does not know it."""

    def encode(self, batch: dict[str, Tensor]) -> Encoded:
        """Run the forward pass for this rank's pixels, ids and lengths."""
        place = batch["pixels"].device
        if self.timed:
            device.synchronize(place)
        started = time.perf_counter()
        ids, lengths, further = batch["ids"], batch["lengths"], batch.get("further_lengths")
        if further is not None:  # captions of a term of the loss, after those of the images
            present = further > 0
            ids = torch.cat([ids, batch["further_ids"][present.to(ids.device)]])
            lengths = torch.cat([lengths, further[present]])
        encoded = self.forward(batch["pixels"], ids, lengths, tokens_and_vectors=self.tokens_and_vectors)
        if further is not None:
            encoded = encoded.apart(further)
        if self.timed:
            device.synchronize(place)
            self.encoding_seconds += time.perf_counter() - started
        return encoded

    def time_encoding(self, on: bool) -> None:
        """Start or stop measuring encode()."""
        self.timed, self.encoding_seconds = on, 0.0 if on else self.encoding_seconds

    def bind(self, owner: Any) -> None:
        """Tell the optimiser what its tensors hold in ``owner``, a DeepSpeed engine or this; after every load, too.

        Also restores the groups' own settings: a checkpoint holds those of the start that saved it.
        """
        for group, settings in zip(self.optimizer.param_groups, self.groups, strict=True):
            group.update(settings)
        self.kind.attach(owner, self.optimizer)

    def set_lr(self, lr: float, step: int) -> None:
        self.lr = lr
        set_lr(self.optimizer.param_groups, lr, step)

    @property
    def averages(self) -> bool:
        """Return True if the optimiser's state holds an average of the weights."""
        return any(AVERAGE in state for state in self.optimizer.state.values())

    @property
    def skipped_steps(self) -> int:
        """Return how many steps the loss scaler discarded."""
        return 0

    def loss_scale(self) -> float:
        """Return the dynamic loss scale; 1 unless fp16."""
        return 1.0

    def lowest_loss_scale(self) -> float:
        """Return the value below which the loss scaler cannot go; a static scale cannot change at all."""
        return 1.0

    def norms(self) -> dict[str, dict[str, float]]:
        """Return the optimiser's norms per parameter of the last step; empty if it has none. Waits for the device."""
        return self.kind.norms(self.optimizer)

    def grad_norm(self) -> float | None:
        """Return the L2 norm of the whole gradient of the last step (unscaled), if it is known."""
        norms = self.norms()
        return math.sqrt(sum(n["gradient"] ** 2 for n in norms.values())) if norms else self._gradient_norm()

    def is_finite(self) -> bool:
        """Return True if the last step that was taken left finite weights."""
        norms = self.norms()
        if norms:
            return all(math.isfinite(n["weight"] + n["update"] + n["gradient"]) for n in norms.values())
        if self.zero_stage:
            return True  # DeepSpeed skips a step with gradients that are not finite, and AdamW's step is bounded
        return all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters())


def make_optimizer(model: DualEncoder, config: TrainConfig) -> Optimizer:
    """Make the optimiser that ``config`` names, over the parameter groups."""
    o = config.optimizer
    groups = param_groups(model, o.weight_decay, o.temperature_lr_factor)
    optimizer = OPTIMIZERS[o.name].build([group for group in groups if group["params"]], o)
    optimizer.register_step_post_hook(AfterStep(o.average))
    set_lr(optimizer.param_groups, o.base_lr, 0)
    return optimizer


def to_device(batch: dict[str, Any], device: torch.device, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Put the tensors of a loader's batch on ``device``; pixels finished and normalised, in ``dtype`` or else float32.

    ``lengths`` and ``further_lengths`` stay on the host: they are needed everywhere as numbers, and reading them from a
    GPU would wait for it.
    """
    moved = {
        name: value if name.endswith("lengths") else value.to(device, non_blocking=True)
        for name, value in batch.items()
        if isinstance(value, Tensor)
    }
    if isinstance(batch["pixels"], Crops):
        moved["pixels"] = finish(batch["pixels"], device)
    if moved["pixels"].dtype == torch.uint8:  # as the loader gives them
        moved["pixels"] = normalize_planes(moved["pixels"])
    moved["pixels"] = moved["pixels"].to(dtype or torch.float32)
    return moved
