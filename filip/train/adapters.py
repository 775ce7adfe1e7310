"""Choose the part of a pre-trained tower that learns: all of it, nothing (as in LiT), or low-rank adapters (LoRA).

LoRA (Hu et al., 2022) replaces the output W x of a linear layer by W x + (alpha / rank) B A x, in which A [rank, in]
and B [out, rank] learn and W does not. B starts at 0, so that a training starts from the model as it was. The layers
are peft's. Projections, temperature and what belongs to the loss always learn. Weights are saved merged, as
W + (alpha / rank) B A, so that evaluation and exports see a model like any other.
"""

from __future__ import annotations

from torch import nn

from filip.cli.extras import how_to_install
from filip.common.errors import UserError
from filip.models import DualEncoder
from filip.runs.source import ADAPTER_SCALE
from filip.train.config import WarmStartConfig

LORA_RANK = 16  # rank of the adapters


def adapt(model: DualEncoder, settings: WarmStartConfig) -> None:
    """Freeze the towers of ``model`` or give them adapters, in place, by ``settings``; UserError without peft."""
    for tower, projection, tuning in (
        (model.image, model.image.projection, settings.image),
        (model.text, model.text.projection, settings.text),
    ):
        if tuning == "frozen_stem":
            stem = model.image.stem if tower is model.image else None
            if stem is None:
                raise UserError(
                    "warm_start.image=frozen_stem is for an image tower with model.image.stem; freeze all with frozen"
                )
            stem.requires_grad_(False)
        if tuning in ("full", "frozen_stem"):
            continue
        if tuning == "lora":
            _inject(tower)
        for name, parameter in tower.named_parameters():
            parameter.requires_grad_("lora_" in name)
        projection.requires_grad_(True)


def _inject(tower: nn.Module) -> None:
    """Add adapters to every linear layer of every block."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError(f"warm_start.image or .text=lora needs peft: {how_to_install('lora')}") from error
    layers = [
        name
        for name, module in tower.named_modules()
        if isinstance(module, nn.Linear) and "blocks." in name and "backbone" not in name
    ]
    inject_adapter_in_model(LoraConfig(r=LORA_RANK, lora_alpha=ADAPTER_SCALE * LORA_RANK, target_modules=layers), tower)


def trainable(model: nn.Module) -> int:
    """Return the number of parameters that learn."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
