"""Checkpoints that survive a kill at any moment: written aside, renamed when complete, pruned afterwards."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from filip import device
from filip.errors import UserError
from filip.files import naming, sync, write_json
from filip.models import config_from_dict
from filip.runs.checkpoint import AVERAGED, STATE, LoopState, complete_checkpoints, file_size, newest_intact
from filip.train.config import CheckpointConfig
from filip.train.engine import Engine
from filip.train.ranks import Ranks, barrier, raise_together
from filip.train.result import gather_to_main
from filip.train.zero_layout import reading_universal


def find_checkpoint(folder: Path, resume: str) -> Path | None:
    """Find the checkpoint that ``auto``, ``never`` or a path names; UserError if the path is not a finished one."""
    if resume == "never":
        return None
    if resume == "auto":
        return newest_intact(folder)[0]
    path = Path(resume)
    if not (path / STATE).is_file():
        raise UserError(
            f"resume={resume} is not a finished checkpoint (no {STATE} in it); give a folder such as "
            f"{folder}/step00001000, or resume=auto"
        )
    return path


def needs_conversion(saved: LoopState, world_size: int, zero_stage: int) -> bool:
    """Return True if the checkpoint's slices do not fit this run, which then needs DeepSpeed's universal form.

    Raises UserError where DeepSpeed cannot convert.
    """
    if saved.zero_stage == zero_stage and (saved.world_size == world_size or zero_stage == 0):
        return False
    if saved.optimizer == "muon":
        raise UserError(
            f"the checkpoint was saved by {saved.world_size} ranks under ZeRO-{saved.zero_stage}, and Muon's momentum "
            "is not converted to others; resume with as many ranks and the same zero_stage, or start a new run from "
            "its weights (filip export, then init_from=…)"
        )
    families = {0: "0", 1: "1/2", 2: "1/2", 3: "3"}
    if families[saved.zero_stage] != families[zero_stage]:
        raise UserError(
            f"the checkpoint was saved under ZeRO-{saved.zero_stage} and this run has zero_stage={zero_stage}: "
            "DeepSpeed converts only within stages 1 and 2, or within 3; resume with "
            f"zero_stage={saved.zero_stage}, or start a new run from its weights "
            "(filip export, then init_from=…)"
        )
    return True


def check_compatible(saved: LoopState, now: LoopState) -> None:
    """Raise UserError if the checkpoint belongs to another run than this one."""
    for name, why in {
        "pairs_per_step": "the schedule counts in steps of the same number of pairs",
        "precision": "states and loss scale differ",
        "optimizer": "its state means something else",
        "model": "its weights would not fit",
    }.items():
        before, after = getattr(saved, name), getattr(now, name)
        if name == "model":
            before, after = _comparable(before), _comparable(after)
        if before != after:
            raise UserError(
                f"the checkpoint was saved with {name}={before}, this run has {after}: {why}; use the same value, "
                "another run_dir, or resume=never"
            )


def _comparable(model: dict[str, Any]) -> dict[str, Any]:
    """Return a model's settings with defaults for fields added later, and without what changes no weight."""
    return {**asdict(config_from_dict(model)), "gradient_checkpointing": None, "name": None}


def save_checkpoint(engine: Engine, state: LoopState, folder: Path, settings: CheckpointConfig, ranks: Ranks) -> Path:
    """Write a checkpoint on all ranks, then publish it by one rename. Return its path."""
    final = folder / f"step{state.step:08d}"
    aside = folder / f".saving-{final.name}"
    if ranks.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*"):
            shutil.rmtree(leftover, ignore_errors=True)
    barrier(ranks)
    with naming(folder):
        engine.deepspeed.save_checkpoint(str(folder), tag=aside.name, save_latest=False)
        torch.save(random_states(), aside / f"random_rank{ranks.rank:05d}.pt")
        # for readers; a resumed run has its parts
        if engine.averages and (average := gather_to_main(engine, ranks)):
            save_file(average, aside / AVERAGED)
    barrier(ranks)
    if ranks.is_main:
        state.files = {path.name: file_size(path) for path in sorted(aside.iterdir()) if path.is_file()}
        write_json(aside / STATE, asdict(state))
    barrier(ranks)
    if ranks.local_rank == 0:
        _to_disk(aside)
    barrier(ranks)
    if ranks.is_main:
        if final.exists():  # a rename cannot replace it; deleting it could be interrupted half-way
            os.rename(final, folder / f".old-{final.name}")
        os.rename(aside, final)
        sync(folder)
        _prune(folder, settings)
    barrier(ranks)
    return final


def load_checkpoint(engine: Engine, checkpoint: Path, ranks: Ranks, universal: Path | None = None) -> None:
    """Restore weights, optimiser, loss scale and, at the same world size, the random states."""
    source = universal or checkpoint
    with reading_universal(engine.deepspeed) if universal else nullcontext():
        loaded, _ = engine.deepspeed.load_checkpoint(str(source.parent), tag=source.name)
    if loaded is None:
        raise UserError(f"DeepSpeed found nothing to load in {source}; delete that folder and resume from an older one")
    engine.bind()
    states = checkpoint / f"random_rank{ranks.rank:05d}.pt"
    if universal is None and states.is_file():
        restore_random_states(torch.load(states, weights_only=False))


def to_universal(checkpoint: Path, ranks: Ranks) -> Path:
    """Convert a checkpoint to DeepSpeed's universal form, for any world size, and return the path of the result.

    The first rank does it, once, and writes it next to the checkpoint.
    """
    target = checkpoint.parent / f"universal-{checkpoint.name}"
    with raise_together(ranks):
        if ranks.is_main and not target.is_dir():
            aside = checkpoint.parent / f".converting-{checkpoint.name}"
            shutil.rmtree(aside, ignore_errors=True)
            command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
            command += ["--input_folder", str(checkpoint), "--output_folder", str(aside)]
            environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise UserError(
                    f"DeepSpeed cannot convert {checkpoint} to another world size: {done.stderr.strip()[-500:]}; "
                    "resume at the world size that saved it"
                )
            os.rename(aside, target)
    return target


def set_aside_newer(folder: Path, step: int, ranks: Ranks) -> list[str]:
    """Rename the checkpoints after ``step`` when ``resume=PATH`` went back to it: the run no longer leads to them.

    If left alone, they would be taken for its newest. Returns a note about it.
    """
    newer = [path for path in complete_checkpoints(folder) if int(path.name.removeprefix("step")) > step]
    barrier(ranks)  # all ranks have looked
    if not newer:
        return []
    if ranks.is_main:
        for path in newer:
            target = path.with_name(f"superseded-{path.name}")
            shutil.rmtree(target, ignore_errors=True)
            os.rename(path, target)
    names = ", ".join(path.name for path in newer)
    return [f"renamed the newer checkpoints {names} to superseded-*; delete them when unneeded"]


def prepare_folder(folder: Path, ranks: Ranks, start_again: bool) -> None:
    """Remove what an interrupted save left. With ``start_again`` rename an earlier run's folder to ``….1`` etc."""
    if not ranks.is_main or not folder.is_dir():
        return
    for path in folder.glob(".*"):
        shutil.rmtree(path, ignore_errors=True)
    if start_again and any(folder.iterdir()):
        taken = (folder.with_name(f"{folder.name}.{number}") for number in itertools.count(1))
        os.rename(folder, next(path for path in taken if not path.exists()))


def _prune(folder: Path, settings: CheckpointConfig) -> None:
    for path in complete_checkpoints(folder)[: -settings.keep]:
        step = int(path.name.removeprefix("step"))
        if settings.keep_every_steps and step % settings.keep_every_steps == 0:
            continue
        os.rename(path, path.with_name(f".old-{path.name}"))  # half deleted, it must not look complete
    for path in [*folder.glob(".old-*"), *folder.glob("universal-*")]:
        shutil.rmtree(path, ignore_errors=True)


def _to_disk(folder: Path) -> None:
    """Flush the files that this host wrote, so that a power cut after the rename loses nothing."""
    for path in [*folder.iterdir(), folder]:
        sync(path)


def random_states() -> dict[str, Any]:
    """Return the states of all generators that a training may draw from."""
    return {"python": random.getstate(), "numpy": np.random.get_state(), **device.random_state()}


def restore_random_states(states: dict[str, Any]) -> None:
    """Restore the states that :func:`random_states` returned."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    device.restore_random_state(states)
