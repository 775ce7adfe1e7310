"""Make a DeepSpeed engine of a model and a configuration, and take an optimiser step with it."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from filip import device, resources
from filip.data.eval_transform import normalize_planes
from filip.errors import UserError
from filip.models import DualEncoder, Encoded
from filip.train.config import AUTO, DEFAULT_GLOBAL_BATCH, TrainConfig
from filip.train.losses import Loss
from filip.train.optimizers import AVERAGE, OPTIMIZERS, AfterStep, param_groups, set_lr
from filip.train.zero_layout import adjust

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


def settings_path(config: TrainConfig) -> Path:
    """Return the path of the JSON file that ``deepspeed``, or else ``zero_stage`` and ``precision``, name."""
    if config.deepspeed is None and config.zero_stage == 0 and config.precision == "fp16":
        raise UserError("zero_stage=0 with precision=fp16: DeepSpeed's fp16 needs zero_stage 1, 2 or 3")
    return resources.find("deepspeed", config.deepspeed or f"zero{config.zero_stage}_{config.precision}")


def read_settings(path: Path) -> dict[str, Any]:
    """Read a file of DeepSpeed settings unchanged. Raises UserError if it is no such file."""
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the DeepSpeed settings {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"the DeepSpeed settings {path} are not JSON: {error}") from error
    return settings


def deepspeed_settings(config: TrainConfig, batching: Batching, world_size: int) -> dict[str, Any]:
    """Return the DeepSpeed config of a run: its JSON file, checked, with the batch sizes filled in."""
    settings = checked_settings(config)
    micro_steps = batching.accumulation * batching.chunks
    settings |= {
        "train_micro_batch_size_per_gpu": batching.chunk,
        "gradient_accumulation_steps": micro_steps,
        "train_batch_size": batching.chunk * micro_steps * world_size,
    }
    return settings


def checked_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the DeepSpeed settings of a training. Refuse what DeepSpeed 0.19 accepts but then does wrongly."""
    path = settings_path(config)
    settings = read_settings(path)
    if "gradient_clipping" not in settings:
        raise UserError(f"{path}: gradient_clipping is missing, and DeepSpeed's default clips at 1.0; write 0.0")
    for key in ("optimizer", "scheduler"):
        if key in settings:
            raise UserError(f"{path}: {key} is decided by the training config ({key} there); remove it here")
    fp16 = bool(settings.get("fp16", {}).get("enabled"))
    autocast = settings.get("torch_autocast", {})
    bf16 = bool(autocast.get("enabled")) or bool(settings.get("bf16", {}).get("enabled"))
    if autocast.get("enabled") and autocast.get("dtype") in ("float16", "fp16"):
        raise UserError(f"{path}: float16 autocast never lowers its loss scale under ZeRO; use the fp16 block")
    kind = "fp16" if fp16 else "bf16" if bf16 else "fp32"
    if kind != config.precision:
        raise UserError(f"{path} trains in {kind}, the config says precision={config.precision}; change one of them")
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    if stage != config.zero_stage:
        raise UserError(f"{path} has ZeRO stage {stage}, the config says zero_stage={config.zero_stage}; change one")
    if stage == 0 and fp16:
        raise UserError(f"{path}: fp16 without ZeRO divides gradients by a scale it never applied; use stage 1 to 3")
    if stage == 0 and settings.get("bf16", {}).get("enabled"):
        raise UserError(f"{path}: the bf16 block without ZeRO takes a phantom step at the start; use torch_autocast")
    OPTIMIZERS[config.optimizer.name].check_settings(settings)
    return settings


@dataclass
class Engine:
    """A DeepSpeed engine with the optimiser inside it."""

    deepspeed: Any
    optimizer: Optimizer
    optimizer_name: str
    model: DualEncoder
    batching: Batching
    groups: list[dict[str, Any]]  # settings of the parameter groups, as configured
    tokens_and_vectors: bool  # the loss reads both
    timed: bool = False  # measure encode(), which then waits for the device
    encoding_seconds: float = 0.0  # spent in encode() since ``timed`` was set
    lr: float = 0.0  # that of the last step, before the groups' factors

    def encode(self, batch: dict[str, Tensor]) -> Encoded:
        """Run the forward pass for this rank's pixels, ids and lengths."""
        place = batch["pixels"].device
        if self.timed:
            device.synchronize(place)
        started = time.perf_counter()
        further = {name: batch[name] for name in ("further_ids", "further_lengths") if name in batch}
        encoded: Encoded = self.deepspeed(
            batch["pixels"], batch["ids"], batch["lengths"], tokens_and_vectors=self.tokens_and_vectors, **further
        )
        if self.timed:
            device.synchronize(place)
            self.encoding_seconds += time.perf_counter() - started
        return encoded

    def time_encoding(self, on: bool) -> None:
        """Start or stop measuring encode()."""
        self.timed, self.encoding_seconds = on, 0.0 if on else self.encoding_seconds

    def bind(self) -> None:
        """Find the parameters in DeepSpeed's tensors again, after every load of a checkpoint.

        Also restores the groups' own settings: DeepSpeed's universal load of ZeRO-3 gives all groups the
        settings of the first, weight decay included.
        """
        for group, settings in zip(self.deepspeed.optimizer.param_groups, self.groups, strict=True):
            group.update(settings)
        OPTIMIZERS[self.optimizer_name].attach(self.deepspeed, self.optimizer)

    def set_lr(self, lr: float, step: int) -> None:
        self.lr = lr
        set_lr(self.deepspeed.optimizer.param_groups, lr, step)

    @property
    def averages(self) -> bool:
        """Return True if the optimiser's state holds an average of the weights."""
        return any(AVERAGE in state for state in self.optimizer.state.values())

    def loss_scale(self) -> float:
        """Return the dynamic loss scale; 1 unless fp16."""
        return float(getattr(self.deepspeed.optimizer, "loss_scale", 1.0)) if self.is_fp16 else 1.0

    def lowest_loss_scale(self) -> float:
        """Return the value below which DeepSpeed's loss scaler cannot go; a static scale cannot change at all."""
        scaler = getattr(self.deepspeed.optimizer, "loss_scaler", None)
        return float(getattr(scaler, "min_scale", self.loss_scale()))

    @property
    def is_fp16(self) -> bool:
        return bool(self.deepspeed.fp16_enabled())

    @property
    def zero_stage(self) -> int:
        return int(self.deepspeed.zero_optimization_stage())

    @property
    def skipped_steps(self) -> int:
        return int(self.deepspeed.skipped_steps)

    def norms(self) -> dict[str, dict[str, float]]:
        """Return the optimiser's norms per parameter of the last step; empty if it has none. Waits for the device."""
        return OPTIMIZERS[self.optimizer_name].norms(self.optimizer)

    def grad_norm(self) -> float | None:
        """Return the L2 norm of the whole gradient of the last step (unscaled), if it is known."""
        norms = self.norms()
        if norms:
            return math.sqrt(sum(n["gradient"] ** 2 for n in norms.values()))
        norm = self.deepspeed.get_global_grad_norm()
        return None if norm is None else float(norm)

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


def make_engine(model: DualEncoder, config: TrainConfig, batching: Batching, world_size: int, loss: Loss) -> Engine:
    """Hand ``model`` to DeepSpeed, with the parameters that the terms of ``loss`` learn in addition to its own."""
    import deepspeed

    model.set_loss_parameters(loss.parameters(model))
    if config.compile:
        model.compile_blocks()
    settings = deepspeed_settings(config, batching, world_size)
    optimizer = make_optimizer(model, config)
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    wrapped, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    adjust(wrapped, alone=world_size == 1 and config.zero_stage == 0)
    both = loss.reads_both(model.config.interaction)
    engine = Engine(wrapped, optimizer, config.optimizer.name, model, batching, groups, both)
    engine.bind()
    return engine


def to_device(batch: dict[str, Any], device: torch.device, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Put the tensors of a loader's batch on ``device``; pixels normalised, in ``dtype`` or else float32.

    ``lengths`` and ``further_lengths`` stay on the host: they are needed everywhere as numbers, and reading them from a
    GPU would wait for it.
    """
    moved = {
        name: value if name.endswith("lengths") else value.to(device, non_blocking=True)
        for name, value in batch.items()
        if isinstance(value, Tensor)
    }
    if moved["pixels"].dtype == torch.uint8:  # as the loader gives them
        moved["pixels"] = normalize_planes(moved["pixels"])
    moved["pixels"] = moved["pixels"].to(dtype or torch.float32)
    return moved
