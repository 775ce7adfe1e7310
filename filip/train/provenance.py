"""Name the settings and the code that the result of learning depends on."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filip.common.files import digest, sha256_of
from filip.train.config import TrainConfig
from filip.train.engine import read_settings
from filip.train.losses import TERMS, resolve_weights
from filip.train.optimizers import OPTIMIZERS

SOURCES = (".py", ".cpp", ".h")
LEARNING_CODE = (
    "filip.train", "filip.models", "filip.loading", "filip.common.device", "filip.text", "late_interaction",
)  # fmt: skip


def code_hash(config: TrainConfig) -> str:
    """Return a SHA-256 over the code that decides the result of learning, committed or not.

    This is our code, and the packages of the terms or the optimiser that this training uses.
    """
    used: list[Any] = [TERMS[name].compute for name in resolve_weights(config.loss, config.model.interaction)]
    packages = {*LEARNING_CODE}
    for function in [*used, OPTIMIZERS[config.optimizer.name].build]:
        while isinstance(function, functools.partial):
            function = function.func
        packages.add(str(getattr(function, "__module__", type(function).__module__)).partition(".")[0])
    return digest({name: _sources(name) for name in packages - {"filip"}})


def _sources(package: str) -> dict[str, str]:
    """Return the hash of each source file of an importable package, or of the one file of a module."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    if spec.submodule_search_locations is None:
        return {package: sha256_of(str(spec.origin))}
    files = [(Path(folder), file) for folder in spec.submodule_search_locations for file in Path(folder).rglob("*.*")]
    return {str(file.relative_to(folder)): sha256_of(file) for folder, file in files if file.suffix in SOURCES}


# These settings, and everything below them, change speed, place or reporting, not learning (up to rounding).
NOT_LEARNING = (
    "run", "run_dir", "out", "resume", "log_every", "profile_steps", "checkpoint", "eval",
    "timeout_minutes",
    "world_size", "backend", "recompute", "exchange", "engine", "zero_stage", "compile", "gradient_cache",
    "data.workers", "data.augment_on", "data.feature_cache",
    "model.name", "model.gradient_checkpointing",
)  # fmt: skip

# These keys of a DeepSpeed file change speed, memory or reporting alone.
NOT_LEARNING_IN_DEEPSPEED = (
    "zero_optimization", "zero_allow_untested_optimizer", "steps_per_print", "wall_clock_breakdown",
    "communication_data_type", "comms_logger", "flops_profiler", "dump_state", "memory_breakdown",
)  # fmt: skip


def learning_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that decide the result of learning, flat: {"optimizer.base_lr": 0.006, …}.

    ``deepspeed`` is the content of the file that it names: an edit there changes learning. So is a tokenizer.
    """
    settings = {
        name: value
        for name, value in flat(asdict(config))
        if not any(name == other or name.startswith(f"{other}.") for other in NOT_LEARNING)
    }
    if config.deepspeed is not None:
        settings["deepspeed"] = digest(deepspeed_file(config))
    if config.model.text.tokenizer is not None and Path(config.model.text.tokenizer).is_file():
        settings["model.text.tokenizer"] = sha256_of(config.model.text.tokenizer)
    return settings


def deepspeed_file(config: TrainConfig) -> dict[str, Any]:
    """Return the learning settings of a training's DeepSpeed file. Raises UserError if it cannot be read."""
    return {key: value for key, value in read_settings(config).items() if key not in NOT_LEARNING_IN_DEEPSPEED}


def settings_hash(config: TrainConfig) -> str:
    """Return eight hex digits over :func:`learning_settings`, for the name of a run's folder.

    Settings at their defaults are left out, so that a field which a later version adds changes no run's folder.
    """
    defaults = learning_settings(TrainConfig())
    return digest({name: value for name, value in learning_settings(config).items() if value != defaults.get(name)})[:8]


def resumable_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the learning settings that a checkpoint carries.

    Paths are left out: data and ``init_from`` may move, and are compared by their content (see filip.train.checkpoint).
    """
    settings = learning_settings(config)
    settings.pop("init_from")
    if config.engine == "deepspeed":
        settings["deepspeed"] = deepspeed_file(config)
    settings["data.sources"] = [source.weight for source in config.data.sources]
    return settings


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested dictionaries as dotted names. A list is one value; a tuple becomes a list, as in JSON."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value
