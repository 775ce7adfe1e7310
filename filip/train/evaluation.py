"""Evaluation while training, by the same commands as afterwards, on the first rank; the others wait."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from filip.errors import UserError
from filip.eval import alignment, retrieval, zero_shot
from filip.eval.cards import load_cards
from filip.eval.formats import open_set
from filip.eval.prompts import load_ensemble
from filip.models import save_model
from filip.train.checkpoint import random_states, restore_random_states
from filip.train.config import EvalConfig
from filip.train.ranks import barrier
from filip.train.result import gather_to_main
from filip.train.run import Run


def check_evaluation(config: EvalConfig) -> None:
    """UserError now rather than after hours: every card and every test set must be there."""
    if not config.every_steps:
        return
    paths = list(dict.fromkeys([*config.zero_shot, *config.retrieval, *config.alignment]))
    if not paths:
        raise UserError(
            "eval.every_steps is set, but eval.zero_shot, eval.retrieval and eval.alignment name no card"
        )
    for card in load_cards(paths):
        open_set(card, config.root)
    for card in load_cards(config.zero_shot):
        load_ensemble(config.prompts, str(card.prompts))


def evaluate(run: Run) -> None:
    """Evaluate the current weights; numbers and pictures go to TensorBoard.

    All ranks call: the weights are gathered from them. Random states are restored afterwards, so that evaluations do
    not change a run. A failure is logged and does not end the training.
    """
    weights = gather_to_main(run.engine, run.ranks)
    if run.ranks.is_main:
        states, started = random_states(), time.perf_counter()
        try:
            values = _measure(run, weights)
            run.telemetry.record(run.state.step, values)
            shown = ", ".join(
                f"{key.removeprefix('eval/')} {100 * value:.1f} %" for key, value in values.items()
            )
            run.telemetry.event(
                run.state.step, "evaluation", f"{shown} ({time.perf_counter() - started:.0f} s)"
            )
        except (UserError, OSError, RuntimeError, ValueError) as error:
            run.telemetry.event(run.state.step, "evaluation", f"evaluation failed: {error}")
        finally:
            restore_random_states(states)
    barrier()


def _measure(run: Run, weights: dict[str, torch.Tensor]) -> dict[str, float]:
    c, step = run.config.eval, run.state.step
    folder = run.folder / "eval"
    model = folder / "model.safetensors"
    save_model(model, run.engine.model, {"run": run.config.run, "steps": step}, state=weights)
    common: dict[str, Any] = {
        "model": str(model),
        "root": c.root,
        "prompts": c.prompts,
        "run": run.config.run,
    }
    common["device"] = str(run.ranks.device)
    values: dict[str, float] = {}
    quiet = contextlib.redirect_stderr(open(folder / "eval.log", "a", encoding="utf-8"))  # noqa: SIM115
    with quiet:
        if c.zero_shot:
            out = folder / f"zero_shot-{step:08d}.json"
            zero_shot.main(zero_shot.ZeroShot(cards=c.zero_shot, out=str(out), **common))
            for name, task in _read(out)["tasks"].items():
                values[f"eval/{name}"] = task["value"]
        if c.retrieval:
            out = folder / f"retrieval-{step:08d}.json"
            retrieval.main(retrieval.Retrieval(cards=c.retrieval, out=str(out), **common))
            for name, found in _read(out)["benchmarks"].items():
                for way in ("i2t", "t2i"):
                    values[f"eval/{name}_{way}_r1"] = found[way]["r1"]
        if c.alignment and run.engine.model.config.interaction == "token_wise":
            out, picture = folder / f"alignment-{step:08d}.json", folder / f"alignment-{step:08d}.png"
            settings = alignment.Alignment(
                cards=c.alignment, out=str(out), picture=str(picture), measure=200, pairs=20, **common
            )
            alignment.main(settings)
            run.telemetry.images(step, "eval/alignment", np.asarray(Image.open(picture).convert("RGB")))
    return values


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
