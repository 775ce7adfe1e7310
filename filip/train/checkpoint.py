"""Checkpoints that survive a kill at any moment: written aside, renamed when complete, pruned afterwards."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from filip.errors import UserError
from filip.files import write_json
from filip.train.config import CheckpointConfig
from filip.train.engine import Engine
from filip.train.ranks import Ranks, all_or_none, barrier
from filip.train.zero_layout import reading_universal

_COMPLETE = re.compile(r"step(\d{8})")
STATE = "state.json"


@dataclass
class LoopState:
    """Where a run stands, and what it must have in common with the run that resumes it."""

    step: int = 0
    loader: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    rollbacks: int = 0
    step_seconds: list[float] = field(
        default_factory=list
    )  # of recent steps, without the first of each start
    world_size: int = 1
    zero_stage: int = 0
    precision: str = "fp32"
    pairs_per_step: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "lamb"
    manifests: dict[str, str] = field(default_factory=dict)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if _COMPLETE.fullmatch(p.name) and (p / STATE).is_file())


def find_checkpoint(folder: Path, resume: str) -> Path | None:
    """What ``resume=auto|never|PATH`` means for this run; UserError if PATH is no finished checkpoint."""
    if resume == "never":
        return None
    if resume == "auto":
        found = complete_checkpoints(folder)
        return found[-1] if found else None
    path = Path(resume)
    if not (path / STATE).is_file():
        raise UserError(
            f"resume={resume} is not a finished checkpoint (no {STATE} in it); give a folder such as "
            f"{folder}/step00001000, or resume=auto"
        )
    return path


def read_state(checkpoint: Path) -> LoopState:
    """The loop state of a finished checkpoint."""
    try:
        return LoopState(**json.loads((checkpoint / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read {checkpoint / STATE}: {error}; delete that checkpoint") from error


def needs_conversion(saved: LoopState, world_size: int, zero_stage: int) -> bool:
    """True if the checkpoint's slices do not fit this run, which then needs DeepSpeed's universal form.

    UserError where DeepSpeed cannot convert.
    """
    if saved.zero_stage == zero_stage and (saved.world_size == world_size or zero_stage == 0):
        return False
    families = {0: "0", 1: "1/2", 2: "1/2", 3: "3"}
    if families[saved.zero_stage] != families[zero_stage]:
        raise UserError(
            f"the checkpoint was saved under ZeRO-{saved.zero_stage} and zero_stage={zero_stage} was asked for: "
            "DeepSpeed converts only within stages 1 and 2, or within 3; resume with "
            f"zero_stage={saved.zero_stage}, or start a new run from its weights "
            "(python -m filip.export, then init_from=…)"
        )
    return True


def check_compatible(saved: LoopState, now: LoopState) -> None:
    """UserError if the checkpoint belongs to another run than this one."""
    for name, why in {
        "pairs_per_step": "the schedule counts in steps of the same number of pairs",
        "precision": "states and loss scale differ",
        "optimizer": "its state means something else",
        "model": "its weights would not fit",
    }.items():
        before, after = getattr(saved, name), getattr(now, name)
        if name == "model":  # recomputing activations is no other model: fewer ranks may ask for it
            before, after = ({**m, "gradient_checkpointing": None} for m in (before, after))
        if before != after:
            raise UserError(
                f"the checkpoint was saved with {name}={before}, this run has {after}: {why}; use the same value, "
                "another run_dir, or resume=never"
            )


def save_checkpoint(
    engine: Engine, state: LoopState, folder: Path, settings: CheckpointConfig, ranks: Ranks
) -> Path:
    """Write a checkpoint on all ranks, then publish it by one rename. Returns its path."""
    final = folder / f"step{state.step:08d}"
    aside = folder / f".saving-{final.name}"
    if ranks.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*"):
            shutil.rmtree(leftover, ignore_errors=True)
    barrier()
    engine.deepspeed.save_checkpoint(str(folder), tag=aside.name, save_latest=False)
    torch.save(random_states(), aside / f"random_rank{ranks.rank:05d}.pt")
    if ranks.is_main:
        write_json(aside / STATE, asdict(state))
    barrier()
    if ranks.local_rank == 0:
        _to_disk(aside)
    barrier()
    if ranks.is_main:
        if final.exists():  # a rename cannot replace it; deleting it could be interrupted half-way
            os.rename(final, folder / f".old-{final.name}")
        os.rename(aside, final)
        _sync(folder)
        _prune(folder, settings)
    barrier()
    return final


def load_checkpoint(engine: Engine, checkpoint: Path, ranks: Ranks, universal: Path | None = None) -> None:
    """Restore weights, optimiser, loss scale and, at the same world size, the random states."""
    source = universal or checkpoint
    with reading_universal(engine.deepspeed) if universal else nullcontext():
        loaded, _ = engine.deepspeed.load_checkpoint(str(source.parent), tag=source.name)
    if loaded is None:
        raise UserError(
            f"DeepSpeed found nothing to load in {source}; delete that folder and resume from an older one"
        )
    engine.bind()
    states = checkpoint / f"random_rank{ranks.rank:05d}.pt"
    if universal is None and states.is_file():
        restore_random_states(torch.load(states, weights_only=False))


def to_universal(checkpoint: Path, ranks: Ranks) -> Path:
    """DeepSpeed's world-size-free form of a checkpoint, made once, by the first rank, beside it."""
    target = checkpoint.parent / f"universal-{checkpoint.name}"
    with all_or_none(ranks):
        if ranks.is_main and not target.is_dir():
            aside = checkpoint.parent / f".converting-{checkpoint.name}"
            shutil.rmtree(aside, ignore_errors=True)
            command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
            command += ["--input_folder", str(checkpoint), "--output_folder", str(aside)]
            environment = {
                k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
            }
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise UserError(
                    f"DeepSpeed cannot convert {checkpoint} to another world size: {done.stderr.strip()[-500:]}; "
                    "resume at the world size that saved it"
                )
            os.rename(aside, target)
    return target


def set_aside_newer(folder: Path, step: int, ranks: Ranks) -> list[str]:
    """Rename checkpoints behind ``step``, which ``resume=PATH`` went back to: they belong to a course given up.

    They would be taken for the newest of this run. Returns a note of it.
    """
    newer = [path for path in complete_checkpoints(folder) if int(path.name.removeprefix("step")) > step]
    barrier()  # all ranks have looked
    if not newer:
        return []
    if ranks.is_main:
        for path in newer:
            target = path.with_name(f"superseded-{path.name}")
            shutil.rmtree(target, ignore_errors=True)
            os.rename(path, target)
    names = ", ".join(path.name for path in newer)
    return [f"renamed the newer checkpoints {names} to superseded-*; delete them when unneeded"]


def prepare_folder(folder: Path, ranks: Ranks, fresh: bool) -> None:
    """Remove what an interrupted save left, and with ``fresh`` the checkpoints of an earlier run."""
    if ranks.is_main and folder.is_dir():
        for path in [*folder.glob(".*"), *(folder.iterdir() if fresh else [])]:
            shutil.rmtree(path, ignore_errors=True)


def _prune(folder: Path, settings: CheckpointConfig) -> None:
    for path in complete_checkpoints(folder)[: -settings.keep]:
        step = int(path.name.removeprefix("step"))
        if settings.keep_every_steps and step % settings.keep_every_steps == 0:
            continue
        os.rename(path, path.with_name(f".old-{path.name}"))  # half deleted, it must not look complete
    for path in [*folder.glob(".old-*"), *folder.glob("universal-*")]:
        shutil.rmtree(path, ignore_errors=True)


def _to_disk(folder: Path) -> None:
    """Wait until the files of this host are on the disk, so that a power cut after the rename loses nothing."""
    for path in [*folder.iterdir(), folder]:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def random_states() -> dict[str, Any]:
    """Of all generators that anything here may draw from."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """What :func:`random_states` returned."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
