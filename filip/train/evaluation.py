"""Evaluation while training, by the same functions as afterwards, shared by all ranks."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from filip.errors import UserError
from filip.eval import alignment, retrieval, scene_sheet, zero_shot
from filip.eval.cards import load_card, load_cards
from filip.eval.formats import open_set
from filip.eval.outcomes import Record, write_outcomes
from filip.eval.prompts import load_ensemble
from filip.eval.sharing import Share
from filip.files import write_json
from filip.models import save_model
from filip.train.checkpoint import random_states, restore_random_states
from filip.train.config import EvalConfig
from filip.train.ranks import Ranks, barrier, raise_together
from filip.train.result import gather_to_main
from filip.train.run import Run


def check_evaluation(config: EvalConfig) -> None:
    """UserError now rather than after hours: every card and every test set must be there."""
    if not config.every_steps:
        return
    paths = list(dict.fromkeys([*config.zero_shot, *config.retrieval, *config.alignment, *config.scenes]))
    if not paths:
        raise UserError(
            "eval.every_steps is set, but eval.zero_shot, eval.retrieval, eval.alignment and eval.scenes name no card"
        )
    for card in load_cards(paths):
        open_set(card, config.root)
    for card in load_cards(config.zero_shot):
        load_ensemble(config.prompts, str(card.prompts))


def evaluate(run: Run) -> None:
    """Evaluate the current weights; numbers and pictures go to TensorBoard.

    All ranks call: the weights are gathered from them, and each takes every n-th batch of images and texts. Random
    states are restored afterwards, so that evaluations do not change a run. A failure is logged and ends no training.
    """
    weights = gather_to_main(run.engine, run.ranks)
    states, started = random_states(), time.perf_counter()
    try:
        values = _measure(run, weights)
        run.telemetry.record(run.state.step, values)
        run.evaluated = values
        shown = ", ".join(f"{key.removeprefix('eval/')} {100 * value:.1f} %" for key, value in values.items())
        run.telemetry.event(
            run.state.step, "evaluation", f"{shown or 'pictures'} ({time.perf_counter() - started:.0f} s)"
        )
    except Exception as error:
        run.telemetry.event(run.state.step, "evaluation", f"evaluation failed: {_sentence(error)}")
    finally:
        restore_random_states(states)
    barrier(run.ranks)


def _measure(run: Run, weights: dict[str, torch.Tensor]) -> dict[str, float]:
    """All ranks get the same numbers; the first one writes them to the files of the commands."""
    c, step = run.config.eval, run.state.step
    folder = run.folder / "eval"
    model = folder / "model.safetensors"
    with _alone(run.ranks):
        if run.ranks.is_main:
            save_model(model, run.engine.model, {"run": run.config.run, "steps": step}, state=weights)
    weights.clear()
    common: dict[str, Any] = {
        "model": str(model),
        "root": c.root,
        "prompts": c.prompts,
        "run": run.config.run,
        "device": str(run.ranks.device),
    }
    values: dict[str, float] = {}
    log = folder / "eval.log" if run.ranks.is_main else Path(os.devnull)
    with open(log, "a", encoding="utf-8") as file, contextlib.redirect_stderr(file):
        zero_shot_config = zero_shot.ZeroShot(
            cards=c.zero_shot,
            out=str(folder / f"zero_shot-{step:08d}.json"),
            batch_size=c.batch_size,
            **common,
        )
        with _alone(run.ranks):
            scorer = zero_shot_config.scorer()
        scorer.share = Share(run.ranks.rank, run.ranks.world_size, run.ranks.gather)
        if c.zero_shot:
            result, record = zero_shot.evaluate(zero_shot_config, scorer)
            _write(run.ranks, zero_shot_config.out, result, record)
            for name, task in result["tasks"].items():
                values[f"eval/{name}"] = task["value"]
        if c.retrieval:
            out = str(folder / f"retrieval-{step:08d}.json")
            retrieval_config = retrieval.Retrieval(
                cards=c.retrieval, out=out, batch_size=c.batch_size, **common
            )
            result, record = retrieval.evaluate(retrieval_config, scorer)
            _write(run.ranks, out, result, record)
            for name, found in result["benchmarks"].items():
                for way in ("i2t", "t2i"):
                    values[f"eval/{name}_{way}_r1"] = found[way]["r1"]
        if c.alignment:
            chart, picture = folder / f"alignment-{step:08d}.json", folder / f"alignment-{step:08d}.png"
            settings = alignment.Alignment(
                cards=c.alignment, out=str(chart), picture=str(picture), measure=200, pairs=20, **common
            )
            with _alone(run.ranks):
                if run.ranks.is_main:
                    alignment.main(settings)
                    pixels = np.asarray(Image.open(picture).convert("RGB"))
                    run.telemetry.images(step, "eval/alignment", pixels)
        for card in c.scenes:
            with _alone(run.ranks):
                if run.ranks.is_main:
                    _draw_scenes(run, card, str(model), folder)
    return values


def _draw_scenes(run: Run, card: str, model: str, folder: Path) -> None:
    """The sheet of the report, by the weights of now."""
    step, name = run.state.step, load_card(card).name
    picture = folder / f"scenes-{name}-{step:08d}.png"
    settings = scene_sheet.SceneSheet(
        models=[model],
        labels=[run.config.run],
        root=run.config.eval.root,
        card=card,
        picture=str(picture),
        measure=200,
        title=f"Where each name is seen at step {step:,}",
        device=str(run.ranks.device),
    )
    scene_sheet.main(settings)
    run.telemetry.images(step, f"eval/{name}", np.asarray(Image.open(picture).convert("RGB")))


def _write(ranks: Ranks, out: str, result: dict[str, Any], record: Record) -> None:
    with _alone(ranks):
        if ranks.is_main:
            write_outcomes(out, record)
            write_json(out, result)


@contextlib.contextmanager
def _alone(ranks: Ranks) -> Iterator[None]:
    """Around what ranks do each for themselves: what one of them raises, all raise, so that none is left waiting."""
    with raise_together(ranks):
        try:
            yield
        except Exception as error:
            raise UserError(_sentence(error)) from error


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
