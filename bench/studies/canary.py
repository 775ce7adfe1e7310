"""The canary: do the optimiser and the selection of ``base.yaml``, scaled down, learn what all tokens learn?

    python -m bench.studies.canary              # what is missing: twelve CPU seconds a training
    python -m bench.studies.canary table=true   # the tables of docs/token_wise.md, from what is there

LAMB at its peak rate, on pictures of three of 48 patterns among 25 patches of noise, whose captions name them between
words that every caption has. With all tokens it finds nearly every picture, with the paper's quarter next to none.
Every training is kept in DATA; seeds 100 and 101 chose the repair that base.yaml has.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from bench.studies.onset_page import SEARCH, with_interval
from filip.command import compose_config, option, run_command
from filip.eval.metrics import retrieval_hits
from filip.files import write_json
from filip.interaction import score
from filip.models import DualEncoder, TextFeatures, build_model
from filip.models.dual_encoder import without_ends
from filip.progress import say
from filip.train.config import TrainConfig
from filip.train.engine import make_optimizer
from filip.train.losses import Loss, resolve_weights
from filip.train.param_groups import set_lr
from filip.train.provenance import commit
from filip.train.schedule import make_schedule
from workflow.estimate import cpu_name

DATA = Path("records/canary")
PATTERNS, BATCH, STEPS = 48, 64, 300
SIDE = 5  # patches
BOS, EOS, A, AND, COMMA = range(PATTERNS, PATTERNS + 5)


def pictures(seed: int, size: int) -> Iterator[dict[str, Tensor]]:
    """Yield batches for ever."""
    draw = torch.Generator().manual_seed(seed)
    patterns = torch.randn(PATTERNS, 3, 8, 8, generator=draw)
    while True:
        places = torch.rand(size, SIDE * SIDE, generator=draw).argsort(1)[:, :3]
        shown = torch.rand(size, PATTERNS, generator=draw).argsort(1)[:, :3]
        cells = 0.5 * torch.randn(size, SIDE * SIDE, 3, 8, 8, generator=draw)
        cells[torch.arange(size)[:, None], places] += patterns[shown]
        pixels = cells.view(size, SIDE, SIDE, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(size, 3, 8 * SIDE, 8 * SIDE)
        words = torch.tensor([BOS, A, -1, COMMA, A, -1, AND, A, -1, EOS]).repeat(size, 1)
        words[words < 0] = shown.flatten()
        group = (shown.sort(1).values * torch.tensor([PATTERNS**2, PATTERNS, 1])).sum(1)
        yield {"pixels": pixels, "ids": words, "lengths": torch.full((size,), 10), "group": group}


def scaled_down(paper: str, *changes: str, steps: int = STEPS) -> TrainConfig:
    """Return the settings of the experiment ``paper`` with towers of one layer of 32 and a warm-up of a third.

    Where ``paper`` keeps all tokens until its warm-up ends, so does the training that is returned.
    """
    sizes = [
        "model=tiny", "model.image.layers=1", "model.text.layers=1", "model.embed_dim=32",
        f"model.image.image_size={8 * SIDE}", f"model.text.vocab_size={PATTERNS + 5}", "optimizer.eps=1e-4",
    ]  # fmt: skip
    nowhere = ["run_dir=-", "out=-"]
    config = compose_config(TrainConfig, [f"experiment={paper}", *sizes, *nowhere, *changes], "train")
    if config.token_keep_schedule is not None:
        end = f"at step {config.optimizer.warmup_steps}"
        config.token_keep_schedule = config.token_keep_schedule.replace(end, f"at step {steps // 3}")
    config.max_steps, config.optimizer.warmup_steps = steps, steps // 3
    return config


def trained(config: TrainConfig, seed: int) -> dict[str, Any]:
    """Train at the peak rate of ``config``; return the loss every hundred steps, the scale, and R@1 in percent."""
    o, steps = config.optimizer, config.max_steps or 0
    base_lr = o.base_lr * math.sqrt((config.global_batch or 0) / BATCH)
    torch.manual_seed(seed)
    model = build_model(config.model)
    loss, optimizer = Loss(resolve_weights({}, "token_wise"), config), make_optimizer(model, config)
    schedule, losses = make_schedule(base_lr, BATCH, o.warmup_steps, steps), []
    for step, batch in zip(range(steps), pictures(seed, BATCH), strict=False):
        set_lr(optimizer.param_groups, schedule.at(step), step)
        output = loss(model(batch["pixels"], batch["ids"], batch["lengths"]), batch["group"], step)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            losses.append(round(float(output.loss.detach()), 2))
    return {
        "losses": losses,
        "scale": round(float(model.scale().detach()), 1),
        "recall": round(found(model.eval(), seed), 2),
    }


@torch.no_grad()
def found(model: DualEncoder, seed: int) -> float:
    """Return R@1 of 256 pictures that were not trained on, in percent, the mean of both directions."""
    stream = pictures(seed, 256)
    next(stream)
    batch = next(stream)
    texts = model.encode_text(batch["ids"], batch["lengths"])
    assert isinstance(texts, TextFeatures)
    texts = without_ends(texts) if model.config.exclude_special_tokens else texts
    similarity, own = score(model.encode_image(batch["pixels"]), *texts), torch.arange(256)
    ways = similarity.i2t, similarity.t2i.T
    return 50 * sum(float(retrieval_hits(one, own, own, [1]).mean()) for one in ways)


PAPER = (
    "token_keep_ratio=0.25",
    "token_keep_schedule=null",
    "token_keep_minimum=1",
    "optimizer.temperature_lr_factor=1",
)
ALL = (*PAPER, "token_keep_ratio=1")
SIX, EIGHT, TEN = (f"token_keep_minimum={number}" for number in (6, 8, 10))
CONTRAST = "token_score=contrast"
SLOW = "optimizer.temperature_lr_factor=0.1"
LATER = "token_keep_schedule='switch from 1 to 0.25 at step 3000'"  # where the warm-up of base.yaml ends
ROWS: dict[str, tuple[str, ...]] = {
    "all tokens": ALL,
    "all tokens, slow temperature": (*ALL, SLOW),
    "a quarter": PAPER,
    "a quarter, at least 6, slow temperature": (*PAPER, SIX, SLOW),
    "a quarter, at least 8": (*PAPER, EIGHT),
    "a quarter, at least 8, slow temperature": (*PAPER, EIGHT, SLOW),
    "a quarter, at least 6, slow temperature, without [BOS] and [EOS]": (
        *PAPER, SIX, SLOW, "model.exclude_special_tokens=true",
    ),
    "a quarter, contrast, at least 6, slow temperature": (*PAPER, CONTRAST, SIX, SLOW),
    "a quarter from the end of the warm-up, slow temperature": (*PAPER, LATER, SLOW),
    "a quarter from the end of the warm-up, at least 6": (*PAPER, LATER, SIX),
    "a quarter from the end of the warm-up, at least 6, slow temperature": (*PAPER, LATER, SIX, SLOW),
    "a quarter from the end of the warm-up, at least 8": (*PAPER, LATER, EIGHT),
    "a quarter from the end of the warm-up, at least 8, slow temperature": (*PAPER, LATER, EIGHT, SLOW),
    "a quarter from the end of the warm-up, at least 10, slow temperature": (*PAPER, LATER, TEN, SLOW),
    "a quarter from the end of the warm-up, contrast, at least 8, slow temperature": (
        *PAPER, LATER, CONTRAST, EIGHT, SLOW,
    ),
    "a quarter from the end of the warm-up, at least 8, slow temperature, without [BOS] and [EOS]": (
        *PAPER, LATER, EIGHT, SLOW, "model.exclude_special_tokens=true",
    ),
}  # fmt: skip


@dataclass
class Canary:
    """Options: which trainings to add."""

    only: list[str] = option([], "rows; empty = all")
    seeds: list[int] = option([0, 1, 2, 3, 4], "seeds, one training each")
    table: bool = option(False, "print the tables of the search and of the other seeds, and train nothing")


def main(canary: Canary) -> None:
    """Train what is missing, seed by seed and row by row."""
    if canary.table:
        print(table(reported=False), table(reported=True), sep="\n\n")
        return
    torch.set_num_threads(1)
    for seed in canary.seeds:
        for row in canary.only or ROWS:
            file = DATA / (re.sub(r"\W+", "-", row) + f"-{seed}.json")
            if not file.exists():
                outcome = trained(scaled_down("base", *ROWS[row]), seed)
                say(f"{row}, seed {seed}: {outcome}")
                where = {"commit": commit(), "cpu": cpu_name()}
                write_json(file, {"row": row, "seed": seed, **outcome, **where})


def table(reported: bool) -> str:
    """Return the Markdown table of each row's loss, scale and recall, over the seeds of the search or the others."""
    kept = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(DATA.glob("*.json"))]
    lines = [
        f"| tokens | seeds | loss by hundred steps (chance {math.log(BATCH):.2f}) | scale | R@1 | less all tokens |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    recalls = {(one["row"], one["seed"]): one["recall"] for one in kept}
    for row in ROWS:
        own = [one for one in kept if one["row"] == row and (one["seed"] not in SEARCH) is reported]
        if own:
            numbers = sorted(one["seed"] for one in own)
            seeds = f"{numbers[0]} to {numbers[-1]}" if len(own) > 2 else ", ".join(map(str, numbers))
            losses = ", ".join(f"{fmean(at):.2f}" for at in zip(*(one["losses"] for one in own), strict=True))
            scale, recall = fmean(one["scale"] for one in own), with_interval(one["recall"] for one in own)
            pairs = [(one["recall"], recalls.get(("all tokens", one["seed"]), math.nan)) for one in own]
            less = with_interval(a - b for a, b in pairs) if reported else ""
            lines.append(f"| {row} | {seeds} | {losses} | {scale:.1f} | {recall} | {less} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main, Canary)
