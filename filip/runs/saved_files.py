"""Find the weights of a run, and read its checkpoints: which are finished and intact, and the loop state of each."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from filip import resources
from filip.common.errors import UserError
from filip.common.files import digest, nothing_at, sha256_of, write_json

_COMPLETE = re.compile(r"step(\d{8})")
STATE = "state.json"
DDP_STATES = "training.pt"  # in a checkpoint of engine=ddp: weights, optimiser and random states of all ranks
FINISHED = "finished.json"  # in the run's folder, once it has written its results
KEPT = "finished"  # folder of a run with copies of its results


@dataclass
class LoopState:
    """State of a run, with everything that it must share with the run that resumes it."""

    step: int = 0
    loader: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0  # of all steps, without evaluations and checkpoints
    processor_seconds: float = 0.0  # the same of the first rank's process, in all its threads
    step_seconds: list[float] = field(default_factory=list)  # recent steps, without the first of each start
    world_size: int = 1
    engine: str = "deepspeed"
    zero_stage: int = 0  # 0 without ZeRO
    precision: str = "fp32"
    pairs_per_step: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "lamb"
    manifests: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)  # see filip.train.provenance
    init_from: str | None = None  # hash of the weights that the run started from
    files: dict[str, int] = field(default_factory=dict)  # bytes of each file of the checkpoint
    hashes: dict[str, str] = field(default_factory=dict)  # SHA-256 of each


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the finished checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if _COMPLETE.fullmatch(p.name) and (p / STATE).is_file())


def newest_intact(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint with files of their saved sizes, and a note on each one that is skipped.

    A training compares the content as well, and sets damaged ones aside: filip.train.checkpoint.set_aside_damaged.
    """
    notes: list[str] = []
    for checkpoint in reversed(complete_checkpoints(folder)):
        damage = find_damage(checkpoint, hashed=slice(0))
        if damage is None:
            return checkpoint, notes
        notes.append(f"skipped the damaged checkpoint {checkpoint}: {damage}")
    return None, notes


def find_damage(checkpoint: Path, hashed: slice = slice(None)) -> str | None:
    """Return the fault of a checkpoint's files, or None. hashed: the files to read and compare, too.

    Raises OSError for a disk that fails now, which proves nothing about the checkpoint.
    """
    try:
        saved = read_state(checkpoint)
        for name, size in saved.files.items():
            if (size_now := file_size(checkpoint / name)) != size:
                return f"{name} has {size_now} bytes instead of {size}"
        for name in sorted(saved.hashes)[hashed]:
            if sha256_of(checkpoint / name) != saved.hashes[name]:
                return f"{name} has changed since it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except UserError as error:
        if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
            raise error.__cause__ from None
        return str(error)
    return None


def write_state(checkpoint: Path, state: LoopState) -> None:
    """Write the loop state, which makes a folder a checkpoint."""
    values = json.loads(json.dumps(asdict(state)))
    write_json(checkpoint / STATE, {**values, "digest": digest(values)})


def read_state(checkpoint: Path) -> LoopState:
    """Read a finished checkpoint's loop state. Fields of a later version are ignored, missing ones keep defaults."""
    names = {f.name for f in fields(LoopState)}
    try:
        values = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        if values.pop("digest", None) not in (None, digest(values)):
            raise ValueError("it has changed since it was written")
        return LoopState(**{name: value for name, value in values.items() if name in names})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"cannot read {checkpoint / STATE}: {error}; resume from another checkpoint") from error


def file_size(path: Path) -> int:
    """Return the bytes of a file. Network file systems answer ``stat`` from a cache, but look again on opening."""
    with open(path, "rb") as file:
        return file.seek(0, os.SEEK_END)


def is_finished(run_dir: Path) -> bool:
    """Return whether the last start of the run wrote its result."""
    return (run_dir / FINISHED).is_file()


def json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty without one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def source_of(path: str) -> Path:
    """Return the file of weights or the checkpoint that ``path`` means. Raises UserError if there is none."""
    place = Path(resources.weights(path))
    if place.is_file() or (place / STATE).is_file():
        return place
    if not place.is_dir():
        raise UserError(nothing_at(path, "give a .safetensors file, a run folder or a checkpoint"))
    config = json_object(place / "config.json")
    if "run_dir" not in config and not (place / "checkpoints").is_dir():
        raise UserError(
            f"model={path}: this is not a run folder (it has no config.json of a training and no checkpoints); a model "
            f"of transformers is hf:{path}"
        )
    if is_finished(place) and "out" in config:
        out = Path(config["out"])  # from elsewhere a relative one is not there, but the run keeps a copy
        for file in (out, place / KEPT / out.name):
            if file.is_file():
                return file
    checkpoint, damaged = newest_intact(place / "checkpoints")
    if checkpoint is None and damaged:
        raise UserError(f"no checkpoint of {place} can be read; {damaged[0]}")
    if checkpoint is None:
        raise UserError(
            f"no finished checkpoint in {place / 'checkpoints'}; was the run started, and long enough to save one?"
        )
    return checkpoint


def weights_of(model: str) -> str:
    """Return the SHA-256 of a model's file, or a hash of the files in its folder; the name of a model elsewhere.

    A run folder means the file or the checkpoint that is read from it. model: as on the command line, ``mv:FOLDER``.
    """
    if Path(resources.weights(model)).exists():
        return _content(Path(resources.weights(model)))
    kind, *parts = model.split(":")
    there = {part: _content(Path(part)) for part in parts if part and Path(part).exists()}
    return digest([kind, *(there.get(part, part) for part in parts)]) if there else model


def _content(place: Path) -> str:
    with suppress(UserError):  # a folder of another project
        place = source_of(str(place))
    if (place / STATE).is_file():  # which has the hashes of all other files
        place /= STATE
    if place.is_file():
        return sha256_of(place)
    files = sorted(Path(folder, name) for folder, _, names in os.walk(place) for name in names)
    return digest([[str(file.relative_to(place)), sha256_of(file)] for file in files])
