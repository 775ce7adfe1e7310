"""Evaluation while training, by the same functions as afterwards, by the first rank."""

from __future__ import annotations

import contextlib
import time

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
from filip.models import save_model
from filip.runs.source import merged
from filip.train.checkpoint import random_states, restore_random_states
from filip.train.config import EvalConfig
from filip.train.engine import gather_to_main
from filip.train.ranks import barrier
from filip.train.run import Run
from filip.train.telemetry import scalars


def check_evaluation(config: EvalConfig) -> None:
    """Raise UserError now rather than after hours if a card or a test set is missing."""
    if not config.data:
        raise UserError("eval.every_steps is set, but eval.data names no card")
    cards = load_cards(config.data)
    for card in cards:
        if card.kind not in {kind for protocol in _measurable().values() for kind in protocol.kinds}:
            raise UserError(f"eval.data: {card.name} is a card for {card.kind}, which is not measured while training")
        open_set(card, config.root)
        if card.kind == "classification":
            load_ensemble(PROMPTS, str(card.prompts))


def _measurable() -> dict[str, Protocol]:
    return {name: protocol for name, protocol in protocols().items() if protocol.while_training}


def evaluate(run: Run) -> None:
    """Evaluate the current weights; numbers go to TensorBoard.

    All ranks call: the weights are gathered from them. The first rank evaluates alone, and the others wait. Its random
    states are restored afterwards, so that evaluations do not change a run. A failure is logged; the training goes on.
    """
    weights = gather_to_main(run.engine, run.ranks)
    if run.ranks.is_main:
        states, started = random_states(), time.perf_counter()
        try:
            run.evaluated = _measure(run, weights)
            run.telemetry.record(run.state.step, run.evaluated | run.elapsed)
            values = run.evaluated.items()
            shown = ", ".join(f"{key.removeprefix('eval/')} {100 * value:.1f} %" for key, value in values)
            run.telemetry.event(run.state.step, "evaluation", f"{shown} ({time.perf_counter() - started:.0f} s)")
        except Exception as error:
            said = error if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            run.telemetry.event(run.state.step, "evaluation", f"evaluation failed: {said}")
        restore_random_states(states)
    barrier(run.ranks)


def _measure(run: Run, weights: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the numbers by their TensorBoard names, and write them to files as the commands do."""
    c, folder = run.config.eval, run.folder / "eval"
    model = folder / "model.safetensors"
    save_model(model, run.engine.model, {"run": run.config.run, "steps": run.state.step}, state=merged(weights))
    weights.clear()
    options = ModelOptions(model=str(model), device=str(run.ranks.device))
    values: dict[str, float] = {}
    with open(folder / "eval.log", "a", encoding="utf-8") as file, contextlib.redirect_stderr(file):
        encoder = options.encoder()
        header = result_header(options, encoder, run.config.run)
        cards = load_cards(c.data)
        for name, protocol in _measurable().items():
            if not (fitting := [card for card in cards if card.kind in protocol.kinds]):
                continue
            result, record = evaluate_cards(name, encoder, fitting, Context(c.root))
            out = folder / f"{name}-{run.state.step:08d}.json"
            write_outcomes(out, record)
            write_json(out, header | result)
            for benchmark, numbers in result["benchmarks"].items():
                values |= {f"eval/{benchmark}{tag}": value for tag, value in scalars(numbers).items()}
    return values
