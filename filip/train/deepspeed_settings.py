"""Read the file of DeepSpeed settings of a training, and choose its mixed precision: bf16, fp16 or fp32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from filip import resources
from filip.common import device
from filip.common.errors import UserError
from filip.train.config import TrainConfig
from filip.train.optimizers import OPTIMIZERS
from filip.train.ranks import Ranks
from filip.train.zero_layout import without_builds


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


def settle_precision(config: TrainConfig, ranks: Ranks, saved: str | None = None) -> str:
    """Replace ``precision=auto`` in ``config`` by what this training uses, the same on all ranks.

    saved: the precision of the checkpoint that the run continues from, which it keeps. Returns a sentence for the log,
    or "". Raises UserError if this machine cannot train so.
    """
    if absent := device.why_no_kernels(ranks.device):
        raise UserError(absent)
    places = ranks.gather(device.best_precision(ranks.device))
    sentence = ""
    if config.precision == "auto":
        best = places[0] if len(set(places)) == 1 else "fp32"
        raised = use_precision(config, saved or best)
        why = "as the checkpoint" if saved else f"which the {ranks.device.type} of every rank multiplies"
        if not saved and best == "fp32":
            why = f"since this {ranks.device.type} does not multiply bf16 itself"
        sentence = f"precision {config.precision}, {why}{raised}"
    if config.precision == "fp16" and not deepspeed_accelerator().is_fp16_supported():
        raise UserError(f"precision=fp16: this {ranks.device.type} has no fp16 instructions; use precision=auto")
    if config.engine == "deepspeed":
        checked_settings(config)  # before hours of feature maps
    if config.precision == "bf16" and not device.multiplies_bf16(ranks.device):
        if ranks.device.type == "cuda":
            raise UserError(
                f"precision=bf16: {device.name(ranks.device)} has no bf16, and PyTorch would only emulate it; use "
                "precision=fp16, or precision=auto"
            )
        sentence = (
            f"warning: precision=bf16, and this {ranks.device.type} only emulates it: convolutions take "
            f"{device.bf16_slowdown(ranks.device):.0f} times as long as in fp32 (measured now); use precision=auto"
        )
    return sentence


def use_precision(config: TrainConfig, precision: str) -> str:
    """Replace ``auto`` by a precision and set its needs; return a note on other changes, or ""."""
    config.precision = precision
    if precision == "fp16" and config.engine == "ddp":
        config.engine = "deepspeed"
        return "; engine deepspeed, which alone scales the loss for it"
    return ""
