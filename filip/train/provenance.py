"""Record where a run comes from: code, versions, every start, and the settings that its learning depends on."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import filip
from filip.common.device import machine
from filip.common.files import digest, replacing, sha256_of, write_json
from filip.runs.saved_files import FINISHED, KEPT
from filip.train.config import TrainConfig
from filip.train.engine import read_settings, settings_path
from filip.train.losses import TERMS, resolve_weights
from filip.train.optimizers import OPTIMIZERS

STARTS = "starts.jsonl"
SOURCES = (".py", ".cpp", ".h")
LEARNING_CODE = (
    "filip.train", "filip.models", "filip.loading", "filip.common.device", "filip.text", "late_interaction",
)  # fmt: skip
PACKAGES = ("torch", "deepspeed", "timm", "numpy")


def record_start(
    run_dir: Path, config: TrainConfig, step: int, world_size: int, steps: int | None = None
) -> dict[str, Any]:
    """Append a start at ``step`` of ``steps`` to ``starts.jsonl`` and write ``config.json``; returns the start."""
    entry = {
        "time": now(),
        "step": step,
        "steps": steps,
        "world_size": world_size,
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
        "config": asdict(config),
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / STARTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    write_json(run_dir / "config.json", entry["config"])
    (run_dir / FINISHED).unlink(missing_ok=True)
    return entry


def record_finish(
    run_dir: Path,
    step: int,
    commit: str | None,
    training: str | None = None,
    files: Sequence[str] = (),
    code: str | None = None,
) -> None:
    """Mark the run as finished: its checkpoints are not continued by the next start.

    training: hash of the settings that a later start must share to be given this run's result.
    files: the results, of which the run keeps copies. code: :func:`code_hash` of this training.
    """
    copies = run_dir / KEPT
    for file in files:
        copies.mkdir(exist_ok=True)
        copy_or_link(Path(file), copies / Path(file).name)
    record = {"time": now(), "step": step, "commit": commit, "code": code, "training": training}
    write_json(run_dir / FINISHED, record)


def kept_result(run_dir: Path, training: str, files: Sequence[str], code: str) -> Path | None:
    """Return the folder with copies of a finished run's ``files``, or None.

    None if the run was not this ``training`` with this code. Otherwise another training would only repeat it. A
    workflow asks for one after its Snakemake has died: it deletes the results before it starts the training anew.
    """
    record, copies = json.loads((run_dir / FINISHED).read_text(encoding="utf-8")), run_dir / KEPT
    if (record.get("training"), record.get("code")) != (training, code):
        return None
    return copies if all((copies / Path(file).name).is_file() for file in files) else None


def copy_or_link(source: Path, target: Path) -> None:
    """Give a file that nobody changes in place a second name, or copy it where the file system cannot."""
    with replacing(target) as part:
        part.unlink(missing_ok=True)
        try:
            os.link(source, part)
        except OSError:
            shutil.copyfile(source, part)


def code_hash(config: TrainConfig) -> str:
    """Return a SHA-256 over the code that decides the result of learning, committed or not.

    This is our code, and the packages of the terms or the optimiser that this training uses.
    """
    used: list[Any] = [TERMS[name].compute for name in resolve_weights(config.loss, config.model.interaction)]
    packages = {*map(_package, [*used, OPTIMIZERS[config.optimizer.name].build])} - {"filip"}
    return digest({name: _sources(name) for name in {*LEARNING_CODE, *packages}})


def _package(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__module__", type(function).__module__)).partition(".")[0]


def _sources(package: str) -> dict[str, str]:
    """Return the hash of each source file of an importable package, or of the one file of a module."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    if spec.submodule_search_locations is None:
        return {package: sha256_of(str(spec.origin))}
    files = [(Path(folder), file) for folder in spec.submodule_search_locations for file in Path(folder).rglob("*.*")]
    return {str(file.relative_to(folder)): sha256_of(file) for folder, file in files if file.suffix in SOURCES}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide the numbers."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


def commit() -> str | None:
    """Return the git commit of this code, with ``+`` if the tree differs from it; None outside a repository."""
    root = Path(filip.__file__).resolve().parent.parent
    try:
        head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        if head.returncode:
            return None
        dirty = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def now() -> str:
    """Return the local time with its zone, ISO 8601."""
    return datetime.now(UTC).astimezone().isoformat(timespec="seconds")


# These settings, and everything below them, change speed, place or reporting, not learning (up to rounding).
NOT_LEARNING = (
    "run", "run_dir", "out", "resume", "log_every", "checkpoint", "eval",
    "timeout_minutes",
    "world_size", "backend", "exchange", "engine", "zero_stage", "compile", "gradient_cache",
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

    Paths are left out: data and ``init_from`` may move, and are compared by their content (see filip.train.checkpoint).
    """
    settings = learning_settings(config)
    settings.pop("init_from")
    if config.engine == "deepspeed":
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
