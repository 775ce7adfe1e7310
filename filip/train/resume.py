"""Choose the checkpoint that a run continues from, if there is one: the first rank decides for all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from filip.errors import UserError
from filip.files import digest
from filip.runs.checkpoint import LoopState, is_finished, newest_intact, read_state
from filip.train.checkpoint import (
    check_compatible,
    find_checkpoint,
    load_checkpoint,
    needs_conversion,
    set_aside_newer,
    to_universal,
)
from filip.train.config import TrainConfig
from filip.train.engine import Engine
from filip.train.fingerprint import changed_settings
from filip.train.manifests import refuse_changed_data
from filip.train.provenance import code_hash, kept_result
from filip.train.ranks import Ranks, from_main, raise_together


@dataclass(frozen=True)
class Resumption:
    """The decision on where a run starts. Without a checkpoint it starts at step 0."""

    checkpoint: Path | None = None
    saved: LoopState | None = None
    convert: bool = False  # convert it to the number of ranks or the ZeRO stage of this start
    start_again: bool = False  # the checkpoints that are there belong to an earlier training
    kept: Path | None = None  # the same training has finished: its results are in this folder
    notes: tuple[str, ...] = ()


def training_hash(state: LoopState) -> str:
    """Hash what decides the result of a training: settings, data and the weights that it starts from."""
    names = ("settings", "init_from", "precision", "pairs_per_step", "model", "optimizer")
    return digest([sorted(state.manifests.values()), *(getattr(state, name) for name in names)])


def saved_precision(config: TrainConfig, ranks: Ranks) -> str | None:
    """Return the precision of the checkpoint from which ``resume=auto`` would continue; None without one."""
    found = None
    with raise_together(ranks):
        if ranks.is_main and config.resume == "auto" and not is_finished(Path(config.run_dir)):
            checkpoint, _ = newest_intact(Path(config.run_dir) / "checkpoints")
            found = read_state(checkpoint).precision if checkpoint else None
    return from_main(ranks, found)


def choose_checkpoint(config: TrainConfig, state: LoopState, ranks: Ranks) -> Resumption:
    """Decide what ``resume`` means for a run in ``state``. All ranks call and get the first rank's answer.

    Raises UserError if the checkpoints belong to a training with other settings or data.
    """
    found = Resumption()
    with raise_together(ranks):
        if ranks.is_main:
            found = _choose(config, state)
            if found.checkpoint is not None:
                refuse_changed_data(config)
    return from_main(ranks, found)


def continue_from(found: Resumption, engine: Engine, state: LoopState, folder: Path, ranks: Ranks) -> list[str]:
    """Load the checkpoint into ``engine`` and ``state``. Returns what is worth a line in the log."""
    if found.checkpoint is None or found.saved is None:
        return list(found.notes)
    saved = found.saved
    universal = to_universal(found.checkpoint, ranks) if found.convert else None
    load_checkpoint(engine, found.checkpoint, ranks, universal)
    state.step, state.loader, state.seconds = saved.step, saved.loader, saved.seconds
    state.rollbacks, state.step_seconds = saved.rollbacks, saved.step_seconds
    return [*found.notes, *set_aside_newer(folder, saved.step, ranks)]


def _choose(config: TrainConfig, state: LoopState) -> Resumption:
    run_dir = Path(config.run_dir)
    folder = run_dir / "checkpoints"
    if config.resume == "never":
        return Resumption(start_again=True)
    if config.resume != "auto":
        checkpoint = find_checkpoint(folder, config.resume)
        assert checkpoint is not None
        saved = read_state(checkpoint)
        return _resumption(checkpoint, saved, state, (*_differences(saved, state), *_init_change(saved, state)))
    if is_finished(run_dir):
        if Path(config.result).is_file() and Path(config.out).is_file():
            raise UserError(
                f"this run has finished: its result is {config.result}. Delete that file or give resume=never to train "
                "again, or resume=PATH to continue from a checkpoint"
            )
        results = (config.out, config.result)
        if (kept := kept_result(run_dir, training_hash(state), results, code_hash(config))) is not None:
            return Resumption(
                kept=kept,
                notes=(
                    "this run has finished before, with the same code, settings and data: "
                    f"its result is taken from {kept}; resume=never trains again",
                ),
            )
        return Resumption(start_again=True, notes=("this run has finished before; it starts again",))
    checkpoint, notes = newest_intact(folder)
    if checkpoint is None:
        return Resumption(notes=tuple(notes))
    saved = read_state(checkpoint)
    if changed := _init_change(saved, state):
        return Resumption(start_again=True, notes=(*notes, f"{changed[0]}; the run starts again"))
    check_compatible(saved, state)
    if differences := _differences(saved, state):
        raise UserError(
            f"{checkpoint} was saved by a training that differs: {'; '.join(differences)}. Give another run_dir, "
            f"resume=never to start again, or resume={checkpoint} to continue it with what is given now"
        )
    return _resumption(checkpoint, saved, state, (), tuple(notes))


def _resumption(
    checkpoint: Path, saved: LoopState, state: LoopState, differences: tuple[str, ...], notes: tuple[str, ...] = ()
) -> Resumption:
    check_compatible(saved, state)
    convert = needs_conversion(saved, state.world_size, state.zero_stage)
    changes = list(differences)
    if saved.world_size != state.world_size:
        changes.append(f"{saved.world_size} ranks then, {state.world_size} now")
    if saved.zero_stage != state.zero_stage:
        changes.append(f"ZeRO-{saved.zero_stage} then, ZeRO-{state.zero_stage} now")
    sentence = "; ".join([f"resumed from {checkpoint} at step {saved.step}", *changes])
    return Resumption(checkpoint, saved, convert, notes=(*notes, sentence))


def _init_change(saved: LoopState, state: LoopState) -> list[str]:
    if saved.init_from == state.init_from:
        return []
    return ["init_from holds other weights than those that this run started from"]


def _differences(saved: LoopState, state: LoopState) -> list[str]:
    """Return the differences from the checkpoint in learning settings and data, one sentence each."""
    found = changed_settings(saved.settings, state.settings)
    if saved.manifests and sorted(saved.manifests.values()) != sorted(state.manifests.values()):
        for place in sorted(saved.manifests.keys() | state.manifests.keys()):
            before, after = saved.manifests.get(place), state.manifests.get(place)
            if before != after:
                found.append(f"the data manifest of {place} was {before}, is {after}")
    return found
