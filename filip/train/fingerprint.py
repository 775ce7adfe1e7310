"""Identify a training by the settings that its learning depends on, apart from where and how it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filip.files import digest, sha256_of
from filip.train.config import TrainConfig
from filip.train.engine import read_settings, settings_path

# These settings, and everything below them, change speed, place or reporting, but not what is learned (up to rounding).
NOT_LEARNING = (
    "run", "run_dir", "out", "resume", "log_every", "checkpoint", "watchdog", "eval", "profile_steps",
    "timeout_minutes",
    "threads", "world_size", "backend", "exchange", "zero_stage", "compile", "gradient_cache",
    "data.workers", "data.feature_cache",
    "model.name", "model.gradient_checkpointing",
)  # fmt: skip


# These keys of a DeepSpeed file change speed, memory or reporting alone.
NOT_LEARNING_IN_DEEPSPEED = (
    "zero_optimization", "zero_allow_untested_optimizer", "steps_per_print", "wall_clock_breakdown",
    "communication_data_type", "comms_logger", "flops_profiler", "dump_state", "memory_breakdown",
)  # fmt: skip


def learning_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that decide what is learned, flat: {"optimizer.base_lr": 0.006, …}.

    ``deepspeed`` is the content of the file that it names: what is edited there is learned from. So is a tokenizer.
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
    if config.eval.best is not None:
        settings["eval.best"] = [config.eval.best, config.eval.every_steps]
    return settings


def deepspeed_file(config: TrainConfig) -> dict[str, Any]:
    """Return what the DeepSpeed file of a training says about learning. Raises UserError if it cannot be read."""
    said = read_settings(settings_path(config))
    return {key: value for key, value in said.items() if key not in NOT_LEARNING_IN_DEEPSPEED}


def settings_hash(config: TrainConfig) -> str:
    """Return eight hex digits over :func:`learning_settings`, for the name of a run's folder.

    Settings at their defaults are left out, so that a field which a later version adds changes no run's folder.
    """
    defaults = learning_settings(TrainConfig())
    return digest({name: value for name, value in learning_settings(config).items() if value != defaults.get(name)})[:8]


def resumable_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the learning settings that a checkpoint carries.

    Paths are left out: data and ``init_from`` may move, and are compared by their content (see filip.train.resume).
    """
    settings = learning_settings(config)
    settings.pop("init_from")
    settings["deepspeed"] = deepspeed_file(config)
    settings["data.sources"] = [source.weight for source in config.data.sources]
    return settings


def changed_settings(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return ``optimizer.base_lr was 0.006, is 0.003`` for each setting of both that differs."""
    return [
        f"{name} was {before[name]}, is {after[name]}"
        for name in sorted(before.keys() & after.keys())
        if before[name] != after[name]
    ]


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested dictionaries as dotted names. A list is one value; a tuple becomes a list, as in JSON."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value
