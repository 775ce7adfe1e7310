"""Does a maximum that is smooth in training end higher, or only start earlier? The study behind docs/token_wise.md.

    python -m bench.studies.onset                       # what is missing of it: a training a row, rate and seed
    python -m bench.studies.onset only='[hard]' seeds='[3,4]'
    python -m bench.studies.onset page=true             # write table and figure from what is there

Every training is that of the speedrun (bench/speedrun.py) with another maximum. Its recall, by the maximum and by the
smooth one, is kept in a small file, DATA/<row>-<rate>-<steps>-<seed>.json, so that a later call adds to what is there.
Rates are chosen on two seeds that the table does not use and on scenes that it does not use (SEARCH_CARD), by the last
recall.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.speedrun import Corpus, Place, configure, evaluate, prepare, training
from bench.studies.onset_page import SEARCH, write_page
from filip.command import option, run_command
from filip.files import write_json
from filip.interaction import SmoothMaximum
from filip.models import DualEncoder, Encoded, TextFeatures
from filip.progress import say
from filip.train.provenance import commit
from workflow.estimate import cpu_name

DATA = Path("records/onset")
SEARCH_CARD, CARD = "eval/demo_scenes_search.yaml", "eval/demo_scenes_new.yaml"
SMOOTH = ["token_maximum=smooth"]
ROWS: dict[str, list[str]] = {
    "hard": ["token_maximum=hard"],
    "smooth 0.05": [*SMOOTH, "token_temperature=0.05"],
    "smooth 0.02": [*SMOOTH, "token_temperature=0.02"],
    "smooth 0.1": [*SMOOTH, "token_temperature=0.1"],
    "smooth 0.2": [*SMOOTH, "token_temperature=0.2"],
    "smooth 1": [*SMOOTH, "token_temperature=1"],
    "smooth 0.01": [*SMOOTH, "token_temperature=0.01"],
    "softmax 0.05": ["token_maximum=softmax", "token_temperature=0.05"],
    "softmax 1": ["token_maximum=softmax", "token_temperature=1"],
    "top 2": ["token_maximum=top_k"],
    "annealed": [*SMOOTH, "token_temperature='linear from 0.1 to 0 in steps 0 to {half}'"],
}


@dataclass
class Onset(Place):
    """The trainings to add."""

    only: list[str] = option([], f"rows, of {', '.join(ROWS)}; empty = all")
    seeds: list[int] = option([0, 1, 2, 3, 4], "seeds, one training each")
    rates: list[str] = option(["4e-3"], "base rates to train with")
    steps: int = option(400, "steps of each training")
    every: int = option(50, "steps between two measurements")
    page: bool = option(False, "write table and figure, and train nothing")


def main(study: Onset) -> None:
    """Train what is missing, row by row and seed by seed."""
    if study.page:
        write_page(DATA)
        return
    for seed in study.seeds:
        for row in study.only or ROWS:
            for rate in study.rates:
                file = DATA / f"{row.replace(' ', '-')}-{rate}-{study.steps}-{seed}.json"
                if file.exists():
                    continue
                study.card = SEARCH_CARD if seed in SEARCH else CARD
                say(f"{row}, {rate}, seed {seed}, {study.card}")
                write_json(file, {"row": row, "rate": rate, "seed": seed, **curve(study, row, rate, seed)})


def settings_of(row: str, steps: int) -> list[str]:
    """Return the settings of a row's maximum in a training of so many steps."""
    return [setting.format(half=steps // 2) for setting in ROWS[row]]


def curve(study: Onset, row: str, rate: str, seed: int) -> dict[str, Any]:
    """Train ``row`` once and return its recall, processor seconds and the concentration of its gradient by step."""
    settings = [*settings_of(row, study.steps), f"optimizer.base_lr={rate}", f"max_steps={study.steps}", f"seed={seed}"]
    config = configure(study, "demo_speedrun", settings)
    corpus = prepare(config, study)
    points = []
    for state in training(config, corpus):
        if state.step % study.every == 0:
            points.append(
                {
                    "step": state.step,
                    "seconds": round(state.seconds, 1),
                    "loss": round(state.loss, 3),
                    "scale": round(float(state.model.scale().detach()), 1),
                    "gini": gini_of_tokens(state.encoded),
                    **recalls(state.model, corpus, last=state.step == study.steps),
                }
            )
            say(json.dumps(points[-1]))
    return {"card": study.card, "steps": study.steps, "commit": commit(), "cpu": cpu_name(), "points": points}


def recalls(model: DualEncoder, corpus: Corpus, last: bool) -> dict[str, dict[str, float]]:
    """Return R@1 both ways by the maximum, and at the last step by the smooth one of temperature 0.05, too."""
    maxima = {"hard": "auto"} | ({"smooth": SmoothMaximum(0.05)} if last else {})
    return {
        by: {way: round(value, 1) for way, value in evaluate(model, corpus, maximum).items()}
        for by, maximum in maxima.items()
    }


def gini_of_tokens(encoded: Encoded) -> dict[str, float]:
    """Return how unevenly the loss pulls at the tokens of a sample, the mean over images and over captions.

    The Gini coefficient of the norms of the tokens' gradients: 0 if all tokens get the same, 1 - 1/n if one of n gets
    all.
    """
    assert isinstance(encoded.text, TextFeatures) and encoded.image.grad is not None
    assert encoded.text.tokens.grad is not None
    words = encoded.text.tokens.grad.norm(dim=-1).split(encoded.text.lengths.tolist())
    return {
        "patches": round(float(gini(encoded.image.grad.norm(dim=-1)).mean()), 3),
        "words": round(float(torch.stack([gini(one[None])[0] for one in words]).mean()), 3),
    }


def gini(amounts: Tensor) -> Tensor:
    """Return the Gini coefficients [b] of amounts [b, n] that are not negative; 0 where all of them are 0."""
    ordered, n = amounts.sort(dim=1).values, amounts.shape[1]
    rank = torch.arange(1, n + 1, dtype=ordered.dtype)
    total = ordered.sum(dim=1)
    return torch.where(total > 0, (2 * (ordered * rank).sum(1) / total - (n + 1)) / n, torch.zeros_like(total))


if __name__ == "__main__":
    run_command(main, Onset)
