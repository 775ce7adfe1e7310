"""Checkpoints that survive a kill at any moment: written aside, renamed when complete, pruned afterwards.

The first rank chooses the one from which a run continues, if there is one.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from filip.common import device
from filip.common.errors import UserError
from filip.common.files import digest, naming, sha256_of, sync
from filip.models import config_from_dict
from filip.runs.record import kept_result
from filip.runs.saved_files import (
    STATE,
    LoopState,
    complete_checkpoints,
    file_size,
    find_damage,
    is_finished,
    newest_intact,
    read_state,
    write_state,
)
from filip.train.config import CheckpointConfig, TrainConfig
from filip.train.engine import Engine
from filip.train.provenance import code_hash
from filip.train.ranks import Ranks, barrier, from_main, raise_together
from filip.train.training_data import refuse_changed_data


def check_compatible(saved: LoopState, now: LoopState) -> None:
    """Raise UserError if the checkpoint belongs to another run than this one."""
    for name, why in {
        "engine": "each writes its own files",
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
    before, after = (saved.zero_stage, saved.world_size), (now.zero_stage, now.world_size)
    if now.zero_stage and before != after:
        raise UserError(
            f"the checkpoint was saved by {saved.world_size} ranks under ZeRO-{saved.zero_stage}, and this run has "
            f"{now.world_size} under ZeRO-{now.zero_stage}: each rank holds its own part of it; resume with as many "
            "ranks and the same zero_stage, or start a new run from its weights (filip export, then init_from=…). "
            "Checkpoints of engine=ddp go to any number of ranks"
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
        aside.mkdir()
    random = ranks.gather(random_states())
    with naming(folder):
        engine.save(aside, random)
    barrier(ranks)
    files = sorted(path for path in aside.iterdir() if path.is_file())
    hashes = ranks.gather({path.name: sha256_of(path) for path in files[ranks.rank :: ranks.world_size]})
    if ranks.is_main:
        state.files = {path.name: file_size(path) for path in files}
        state.hashes = dict(sorted(item for share in hashes for item in share.items()))
        write_state(aside, state)
    barrier(ranks)
    if ranks.local_rank == 0:  # a power cut after the rename loses nothing
        for path in [*aside.iterdir(), aside]:
            sync(path)
    barrier(ranks)
    if ranks.is_main:
        if final.exists():  # a rename cannot replace it; deleting it could be interrupted half-way
            os.rename(final, folder / f".old-{final.name}")
        os.rename(aside, final)
        sync(folder)
        _prune(folder, settings)
    barrier(ranks)
    return final


def set_aside_damaged(folder: Path, ranks: Ranks) -> list[str]:
    """Rename damaged checkpoints until the newest is intact: no later save may keep one of them instead of a good one.

    All ranks call, and each reads its share of the files. Returns a note on each.
    """
    notes: list[str] = []
    while (newest := from_main(ranks, next(reversed(complete_checkpoints(folder)), None))) is not None:
        damage = next(filter(None, ranks.gather(find_damage(newest, slice(ranks.rank, None, ranks.world_size)))), None)
        if damage is None:
            break
        if ranks.is_main:
            _rename(newest, "damaged")
        notes.append(f"skipped the damaged checkpoint {newest}: {damage}; it is now called damaged-{newest.name}")
        barrier(ranks)
    return notes


def _rename(checkpoint: Path, kind: str) -> None:
    target = checkpoint.with_name(f"{kind}-{checkpoint.name}")
    shutil.rmtree(target, ignore_errors=True)
    os.rename(checkpoint, target)


def prepare_folder(folder: Path, ranks: Ranks, start_again: bool) -> None:
    """Remove the rest of an interrupted save. With ``start_again`` rename an earlier run's folder to ``….1`` etc."""
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
    for path in folder.glob(".old-*"):
        shutil.rmtree(path, ignore_errors=True)


def random_states() -> dict[str, Any]:
    """Return the states of all generators that a training may draw from, as plain values and tensors."""
    state = np.random.get_state(legacy=False)
    drawn = {**state["state"], "key": state["state"]["key"].tolist()}
    return {"python": random.getstate(), "numpy": {**state, "state": drawn}, **device.random_state()}


def restore_random_states(states: dict[str, Any]) -> None:
    """Restore the states that :func:`random_states` returned."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    device.restore_random_state(states)


OTHER_START = "init_from holds other weights than those that this run started from"


@dataclass(frozen=True)
class Resumption:
    """The decision on where a run starts. Without a checkpoint it starts at step 0."""

    checkpoint: Path | None = None
    saved: LoopState | None = None
    start_again: bool = False  # the checkpoints that are there belong to an earlier training
    kept: Path | None = None  # the same training has finished: its results are in this folder
    notes: tuple[str, ...] = ()


def training_hash(state: LoopState) -> str:
    """Hash what decides the result of a training: settings, data and the weights that it starts from."""
    names = ("settings", "init_from", "precision", "pairs_per_step", "model", "optimizer")
    return digest([sorted(state.manifests.values()), *(getattr(state, name) for name in names)])


def saved_precision(config: TrainConfig, ranks: Ranks) -> str | None:
    """Return the precision of the checkpoint from which ``resume=auto`` would continue; None without one."""
    precision = None
    with raise_together(ranks):
        if ranks.is_main and config.resume == "auto" and not is_finished(Path(config.run_dir)):
            checkpoint, _ = newest_intact(Path(config.run_dir) / "checkpoints")
            precision = read_state(checkpoint).precision if checkpoint else None
    return from_main(ranks, precision)


def choose_checkpoint(config: TrainConfig, state: LoopState, ranks: Ranks) -> Resumption:
    """Decide what ``resume`` means for a run in ``state``. All ranks call and get the first rank's answer.

    Raises UserError if the checkpoints belong to a training with other settings or data.
    """
    resumption = Resumption()
    notes = set_aside_damaged(Path(config.run_dir) / "checkpoints", ranks) if config.resume == "auto" else []
    with raise_together(ranks):
        if ranks.is_main:
            resumption = _choose(config, state, notes)
            if resumption.checkpoint is not None:
                refuse_changed_data(config)
    return from_main(ranks, resumption)


def continue_from(resumption: Resumption, engine: Engine, state: LoopState, folder: Path, ranks: Ranks) -> list[str]:
    """Load the checkpoint into ``engine`` and ``state``. Returns the lines for the log."""
    if resumption.checkpoint is None or resumption.saved is None:
        return list(resumption.notes)
    saved = resumption.saved
    random = engine.load(resumption.checkpoint)
    if len(random) == ranks.world_size:
        restore_random_states(random[ranks.rank])
    state.step, state.loader = saved.step, saved.loader
    state.seconds, state.processor_seconds = saved.seconds, saved.processor_seconds
    state.step_seconds = saved.step_seconds
    # Where resume=PATH went back, the run no longer leads to these, and they would be taken for its newest.
    newer = [path for path in complete_checkpoints(folder) if int(path.name.removeprefix("step")) > saved.step]
    barrier(ranks)  # all ranks have looked
    for path in newer if ranks.is_main else ():
        _rename(path, "superseded")
    names = ", ".join(path.name for path in newer)
    renamed = [f"renamed the newer checkpoints {names} to superseded-*; delete them when unneeded"] if newer else []
    return [*resumption.notes, *renamed]


def _choose(config: TrainConfig, state: LoopState, notes: list[str]) -> Resumption:
    run_dir = Path(config.run_dir)
    folder = run_dir / "checkpoints"
    if config.resume == "never":
        return Resumption(start_again=True)
    if config.resume != "auto":
        checkpoint = Path(config.resume)
        if not (checkpoint / STATE).is_file():
            raise UserError(
                f"resume={config.resume} is not a finished checkpoint (no {STATE} in it); give a folder such as "
                f"{folder}/step00001000, or resume=auto"
            )
        if damage := find_damage(checkpoint):
            raise UserError(f"resume={config.resume} is damaged: {damage}; give another checkpoint, or resume=auto")
    elif is_finished(run_dir):
        if Path(config.result).is_file() and Path(config.out).is_file():
            raise UserError(
                f"this run has finished: its result is {config.result}. Delete that file or give resume=never to train "
                "again, or resume=PATH to continue from a checkpoint"
            )
        results = (config.out, config.result)
        if (earlier_result := kept_result(run_dir, training_hash(state), results, code_hash(config))) is not None:
            return Resumption(
                kept=earlier_result,
                notes=(
                    "this run has finished before, with the same code, settings and data: "
                    f"its result is taken from {earlier_result}; resume=never trains again",
                ),
            )
        return Resumption(start_again=True, notes=("this run has finished before; it starts again",))
    elif complete := complete_checkpoints(folder):
        checkpoint = complete[-1]
    else:
        return Resumption(notes=tuple(notes))
    saved = read_state(checkpoint)
    other_start = saved.init_from != state.init_from
    if other_start and config.resume == "auto":
        return Resumption(start_again=True, notes=(*notes, f"{OTHER_START}; the run starts again"))
    check_compatible(saved, state)
    changes = _differences(saved, state)
    if changes and config.resume == "auto":
        raise UserError(
            f"{checkpoint} was saved by a training that differs: {'; '.join(changes)}. Give another run_dir, "
            f"resume=never to start again, or resume={checkpoint} to continue it with what is given now"
        )
    if other_start:
        changes.append(OTHER_START)
    if saved.world_size != state.world_size:
        changes.append(f"{saved.world_size} ranks then, {state.world_size} now")
    sentence = "; ".join([f"resumed from {checkpoint} at step {saved.step}", *changes])
    return Resumption(checkpoint, saved, notes=(*notes, sentence))


def _differences(saved: LoopState, state: LoopState) -> list[str]:
    """Return the differences from the checkpoint in learning settings and data, one sentence each."""
    was, now = saved.settings, state.settings
    both = sorted(was.keys() & now.keys())
    changed = [f"{name} was {was[name]}, is {now[name]}" for name in both if was[name] != now[name]]
    if saved.manifests and sorted(saved.manifests.values()) != sorted(state.manifests.values()):
        for place in sorted(saved.manifests.keys() | state.manifests.keys()):
            before, after = saved.manifests.get(place), state.manifests.get(place)
            if before != after:
                changed.append(f"the data manifest of {place} was {before}, is {after}")
    return changed
