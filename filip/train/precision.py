"""Choose a training's mixed precision: bf16, fp16 or fp32, by the products of the devices of all its ranks."""

from __future__ import annotations

from filip.common import device
from filip.common.errors import UserError
from filip.train.config import TrainConfig
from filip.train.deepspeed_engine import checked_settings, deepspeed_accelerator
from filip.train.ranks import Ranks


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
