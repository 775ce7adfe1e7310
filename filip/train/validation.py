"""Evaluation while training, by the same functions as afterwards, shared by all ranks."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from filip.common.errors import UserError
from filip.common.files import write_json
from filip.eval.cards import load_cards
from filip.eval.encode_set import Context
from filip.eval.families import PROMPTS
from filip.eval.formats import open_set
from filip.eval.options import ModelOptions, result_header
from filip.eval.outcomes import write_outcomes
from filip.eval.prompts import load_ensemble
from filip.eval.protocols import Protocol, protocols
from filip.eval.protocols import evaluate as evaluate_cards
from filip.eval.scorer import Share
from filip.models import save_model
from filip.runs.source import merged
from filip.train.checkpoint import random_states, restore_random_states
from filip.train.config import EvalConfig
from filip.train.engine import gather_to_main
from filip.train.ranks import Ranks, barrier, raise_together
from filip.train.run import Run
from filip.train.telemetry import scalars


def check_evaluation(config: EvalConfig) -> None:
    """Raise UserError now rather than after hours if a card or a test set is missing."""
    if not config.data:
        raise UserError("eval.every_steps is set, but eval.data names no card")
    cards = load_cards(config.data)
    for card in cards:
        if card.kind not in {kind for protocol in _shared().values() for kind in protocol.kinds}:
            raise UserError(f"eval.data: {card.name} is a card for {card.kind}, which is not measured while training")
        open_set(card, config.root)
        if card.kind == "classification":
            load_ensemble(PROMPTS, str(card.prompts))


def _shared() -> dict[str, Protocol]:
    """Return the protocols that all ranks measure together."""
    return {name: p for name, p in protocols().items() if p.in_parts and not p.on_request}


def evaluate(run: Run) -> None:
    """Evaluate the current weights; numbers and pictures go to TensorBoard.

    All ranks call: the weights are gathered from them, and each takes every n-th batch of images and texts. Random
    states are restored afterwards, so that evaluations do not change a run. A failure is logged; the training goes on.
    """
    weights = gather_to_main(run.engine, run.ranks)
    states, started = random_states(), time.perf_counter()
    try:
        values = _measure(run, weights)
        run.telemetry.record(run.state.step, values | run.elapsed)
        run.evaluated = values
        shown = ", ".join(f"{key.removeprefix('eval/')} {100 * value:.1f} %" for key, value in values.items())
        run.telemetry.event(run.state.step, "evaluation", f"{shown} ({time.perf_counter() - started:.0f} s)")
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
            save_model(model, run.engine.model, {"run": run.config.run, "steps": step}, state=merged(weights))
    weights.clear()
    options = ModelOptions(model=str(model), device=str(run.ranks.device))
    values: dict[str, float] = {}
    log = folder / "eval.log" if run.ranks.is_main else Path(os.devnull)
    with open(log, "a", encoding="utf-8") as file, contextlib.redirect_stderr(file):
        with _alone(run.ranks):
            encoder = options.encoder()
        header = result_header(options, encoder, run.config.run)
        share = Share(run.ranks.rank, run.ranks.world_size, run.ranks.gather)
        context, cards = Context(c.root, share=share), load_cards(c.data)
        for name, protocol in _shared().items():
            if not (fitting := [card for card in cards if card.kind in protocol.kinds]):
                continue
            result, record = evaluate_cards(name, encoder, fitting, context)
            out = folder / f"{name}-{step:08d}.json"
            with _alone(run.ranks):
                if run.ranks.is_main:
                    write_outcomes(out, record)
                    write_json(out, header | result)
            for benchmark, numbers in result["benchmarks"].items():
                values |= {f"eval/{benchmark}{tag}": value for tag, value in scalars(numbers).items()}
    return values


@contextlib.contextmanager
def _alone(ranks: Ranks) -> Iterator[None]:
    """Run a block on each rank by itself: an error of one rank is raised on all, so that none is left waiting."""
    with raise_together(ranks):
        try:
            yield
        except Exception as error:
            raise UserError(_sentence(error)) from error


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
