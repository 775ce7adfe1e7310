"""Take optimiser steps with DeepSpeed: ZeRO, fp16 with a loss scale, and whatever its settings file asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from filip import resources
from filip.common.errors import UserError
from filip.models import DualEncoder, Encoded
from filip.train.config import TrainConfig
from filip.train.engine import Batching, Engine
from filip.train.losses import Loss
from filip.train.optimizers import AVERAGE, OPTIMIZERS
from filip.train.zero_layout import let_scale_fall, limit_groups, state_reader, without_builds

RANDOM = "random.pt"


def settings_path(config: TrainConfig) -> Path:
    """Return the path of the JSON file that ``deepspeed``, or else ``zero_stage`` and ``precision``, name."""
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
        raise UserError(f"{path} trains in {kind}, but precision={config.precision}; change one of them")
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    if stage != config.zero_stage:
        raise UserError(f"{path} has ZeRO stage {stage}, but zero_stage={config.zero_stage}; change one of them")
    OPTIMIZERS[config.optimizer.name].check_settings(settings)
    return settings


class DeepSpeedEngine(Engine):
    """A DeepSpeed engine with the optimiser inside it."""

    def __init__(self, model: DualEncoder, config: TrainConfig, batching: Batching, loss: Loss) -> None:
        super().__init__(model, config, batching, loss)
        deepspeed_accelerator()
        import deepspeed

        deepspeed.init_distributed(verbose=False)  # takes over torch's groups
        limit_groups(config.timeout_minutes)
        settings = deepspeed_settings(config, batching, torch.distributed.get_world_size())
        self.deepspeed: Any
        self.deepspeed, *_ = deepspeed.initialize(
            model=model, optimizer=self.optimizer, config=settings, dist_init_required=False
        )
        let_scale_fall(self.deepspeed)
        self.zero_stage = int(self.deepspeed.zero_optimization_stage())
        self.is_fp16 = bool(self.deepspeed.fp16_enabled())
        self.gradient_clipping = float(self.deepspeed.gradient_clipping())
        self.bind(self.deepspeed)

    def forward(self, *inputs: Tensor, **options: Any) -> Encoded:
        encoded: Encoded = self.deepspeed(*inputs, **options)
        return encoded

    def backward(self, loss: Tensor) -> None:
        self.deepspeed.backward(loss, scale_wrt_gas=False)
        self.deepspeed.step()

    def save(self, folder: Path, random: list[Any]) -> None:
        self.deepspeed.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
        if torch.distributed.get_rank() == 0:
            torch.save(random, folder / RANDOM)

    def load(self, folder: Path) -> list[Any]:
        loaded, _ = self.deepspeed.load_checkpoint(str(folder.parent), tag=folder.name)
        if loaded is None:
            raise UserError(
                f"DeepSpeed found nothing to load in {folder}; delete that folder and resume from an older one"
            )
        self.bind(self.deepspeed)
        random: list[Any] = torch.load(folder / RANDOM, weights_only=False)
        return random

    def whole_weights(self) -> Iterator[tuple[str, Tensor]]:
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        read = state_reader(self.deepspeed, self.optimizer, AVERAGE) if self.averages else safe_get_full_fp32_param
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                yield name, read(parameter)
                continue
            frozen = GatheredParameters([parameter]) if self.zero_stage == 3 else nullcontext()
            with frozen:  # the optimiser has no copy of it
                yield name, parameter

    def loss_scale(self) -> float:
        return float(getattr(self.deepspeed.optimizer, "loss_scale", 1.0)) if self.is_fp16 else 1.0

    def lowest_loss_scale(self) -> float:
        scaler = getattr(self.deepspeed.optimizer, "loss_scaler", None)
        return float(getattr(scaler, "min_scale", self.loss_scale()))

    @property
    def skipped_steps(self) -> int:
        return int(self.deepspeed.skipped_steps)

    def _gradient_norm(self) -> float | None:
        norm = self.deepspeed.get_global_grad_norm()
        return None if norm is None else float(norm)


def deepspeed_accelerator() -> Any:
    """Return DeepSpeed's accelerator, without its log messages and its 33-second C++ build.

    On a CPU it trains in fp16 as well: DeepSpeed asks for instructions of AVX-512, and PyTorch computes without them.
    """
    import deepspeed
    import deepspeed.utils
    from deepspeed.accelerator import get_accelerator, set_accelerator

    without_builds(deepspeed)
    deepspeed.utils.logger.setLevel("WARNING")
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu" and not accelerator.is_fp16_supported():
        base: Any = type(accelerator)
        set_accelerator(type(base.__name__, (base,), {"is_fp16_supported": lambda self: True})())
    return get_accelerator()
