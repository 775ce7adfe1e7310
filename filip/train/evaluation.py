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
from filip.eval.cards import load_card, load_cards
from filip.eval.context import Context
from filip.eval.encoders import Encoder
from filip.eval.evaluation import evaluate as evaluate_cards
from filip.eval.formats import open_set
from filip.eval.options import ModelOptions, result_header
from filip.eval.outcomes import write_outcomes
from filip.eval.pictures import alignment, scenes
from filip.eval.pictures.alignment import AlignmentSheet
from filip.eval.prompts import load_ensemble
from filip.eval.protocols.alignment import AlignmentSettings
from filip.eval.sharing import Share
from filip.files import write_json
from filip.models import save_model
from filip.train.checkpoint import random_states, restore_random_states
from filip.train.config import EvalConfig
from filip.train.ranks import Ranks, barrier, raise_together
from filip.train.result import gather_to_main
from filip.train.run import Run


def check_evaluation(config: EvalConfig) -> None:
    """Raise UserError now rather than after hours if a card or a test set is missing."""
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
    states are restored afterwards, so that evaluations do not change a run. A failure is logged; the training goes on.
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
    """Return the same numbers on all ranks; the first one writes them to the files of the commands."""
    c, step = run.config.eval, run.state.step
    folder = run.folder / "eval"
    model = folder / "model.safetensors"
    with _alone(run.ranks):
        if run.ranks.is_main:
            save_model(model, run.engine.model, {"run": run.config.run, "steps": step}, state=weights)
    weights.clear()
    own = ModelOptions(model=str(model), device=str(run.ranks.device))
    values: dict[str, float] = {}
    log = folder / "eval.log" if run.ranks.is_main else Path(os.devnull)
    with open(log, "a", encoding="utf-8") as file, contextlib.redirect_stderr(file):
        with _alone(run.ranks):
            encoder = own.encoder()
        header = result_header(own, encoder, run.config.run)
        share = Share(run.ranks.rank, run.ranks.world_size, run.ranks.gather)
        context = Context(c.root, c.prompts, c.batch_size, share=share)

        def measured(protocol: str, cards: list[str]) -> dict[str, Any]:
            """Return the numbers by benchmark, which the first rank also writes."""
            result, record = evaluate_cards(protocol, encoder, load_cards(cards), context)
            out = folder / f"{protocol}-{step:08d}.json"
            with _alone(run.ranks):
                if run.ranks.is_main:
                    write_outcomes(out, record)
                    write_json(out, header | result)
            found: dict[str, Any] = result["benchmarks"]
            return found

        if c.zero_shot:
            for name, found in measured("zero_shot", c.zero_shot).items():
                values[f"eval/{name}"] = found["value"]
        if c.retrieval:
            for name, found in measured("retrieval", c.retrieval).items():
                for way in ("i2t", "t2i"):
                    values[f"eval/{name}_{way}_r1"] = found[way]["r1"]
        if c.alignment:
            with _alone(run.ranks):
                if run.ranks.is_main:
                    _align(run, c.alignment, encoder, header, folder)
        for card in c.scenes:
            with _alone(run.ranks):
                if run.ranks.is_main:
                    _draw_scenes(run, card, str(model), folder)
    return values


def _align(run: Run, cards: list[str], encoder: Encoder, header: dict[str, Any], folder: Path) -> None:
    """Measure the alignment on this rank alone, and draw its sheet."""
    c, step = run.config.eval, run.state.step
    result, record = evaluate_cards(
        "alignment", encoder, load_cards(cards), Context(c.root, c.prompts), AlignmentSettings(200, 20)
    )
    out, picture = (folder / f"alignment-{step:08d}.{suffix}" for suffix in ("json", "png"))
    write_outcomes(out, record)
    write_json(out, header | result)
    sheet = AlignmentSheet(
        model=str(folder / "model.safetensors"),
        data=cards,
        root=c.root,
        prompts=c.prompts,
        run=run.config.run,
        device=str(run.ranks.device),
        measure=200,
        out=str(picture),
    )
    alignment.draw(sheet)
    run.telemetry.images(step, "eval/alignment", np.asarray(Image.open(picture).convert("RGB")))


def _draw_scenes(run: Run, card: str, model: str, folder: Path) -> None:
    """Draw the sheet of the report with the current weights."""
    step, name = run.state.step, load_card(card).name
    picture = folder / f"scenes-{name}-{step:08d}.png"
    settings = scenes.SceneSheet(
        models=[model],
        labels=[run.config.run],
        root=run.config.eval.root,
        card=card,
        out=str(picture),
        measure=200,
        title=f"Where each name is seen at step {step:,}",
        device=str(run.ranks.device),
    )
    scenes.draw(settings)
    run.telemetry.images(step, f"eval/{name}", np.asarray(Image.open(picture).convert("RGB")))


@contextlib.contextmanager
def _alone(ranks: Ranks) -> Iterator[None]:
    """Run a block that each rank does by itself: what one of them raises, all raise, so that none is left waiting."""
    with raise_together(ranks):
        try:
            yield
        except Exception as error:
            raise UserError(_sentence(error)) from error


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
