"""A canary that takes seconds: the optimiser of ``base.yaml`` at its peak rate, on pictures of patterns.

    python -m bench.studies.canary_pictures      # ten CPU seconds a row: the table of docs/token_wise.md

A picture has three of 48 patterns on noise, its caption names them between words that every caption has. With all
tokens LAMB finds nearly every picture; with the paper's quarter it stays at log(batch).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from filip.command import compose_config, run_command
from filip.eval.metrics import retrieval_hits
from filip.interaction import score
from filip.models import DualEncoder, TextFeatures, build_model
from filip.models.dual_encoder import without_ends
from filip.train.config import TrainConfig
from filip.train.engine import make_optimizer
from filip.train.losses import Loss, resolve_weights
from filip.train.param_groups import set_lr
from filip.train.schedule import make_schedule

PATTERNS, BATCH, STEPS = 48, 64, 300
BOS, EOS, A, AND, COMMA = range(PATTERNS, PATTERNS + 5)


def pictures(seed: int, size: int) -> Iterator[dict[str, Tensor]]:
    """Yield batches for ever."""
    draw = torch.Generator().manual_seed(seed)
    patterns = torch.randn(PATTERNS, 3, 8, 8, generator=draw)
    while True:
        places = torch.rand(size, 16, generator=draw).argsort(1)[:, :3]
        shown = torch.rand(size, PATTERNS, generator=draw).argsort(1)[:, :3]
        cells = 0.5 * torch.randn(size, 16, 3, 8, 8, generator=draw)
        cells[torch.arange(size)[:, None], places] += patterns[shown]
        pixels = cells.view(size, 4, 4, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(size, 3, 32, 32)
        words = torch.tensor([BOS, A, -1, COMMA, A, -1, AND, A, -1, EOS]).repeat(size, 1)
        words[words < 0] = shown.flatten()
        group = (shown.sort(1).values * torch.tensor([PATTERNS**2, PATTERNS, 1])).sum(1)
        yield {"pixels": pixels, "ids": words, "lengths": torch.full((size,), 10), "group": group}


def trained(paper: TrainConfig, *changes: tuple[str, object]) -> tuple[float, float]:
    """Train by the optimiser of ``paper``; return R@1 of 256 in percent, the mean of both ways, and the scale."""
    config = copy.deepcopy(paper)
    for name, value in changes:
        *path, last = name.split(".")
        place: object = config
        for part in path:
            place = getattr(place, part)
        setattr(place, last, value)
    o = config.optimizer
    base_lr = o.base_lr * math.sqrt((paper.global_batch or 0) / BATCH)  # the paper's peak
    torch.manual_seed(0)
    model = build_model(config.model)
    loss, optimizer = Loss(resolve_weights({}, "token_wise"), config), make_optimizer(model, config)
    schedule = make_schedule(base_lr, BATCH, STEPS // 3, STEPS)
    for step, batch in zip(range(STEPS), pictures(0, BATCH), strict=False):
        set_lr(optimizer.param_groups, schedule.at(step), step)
        output = loss(model(batch["pixels"], batch["ids"], batch["lengths"]), batch["group"], step)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    return found(model.eval()), float(model.scale().detach())


@torch.no_grad()
def found(model: DualEncoder) -> float:
    stream = pictures(0, 256)
    next(stream)
    batch = next(stream)
    texts = model.encode_text(batch["ids"], batch["lengths"])
    assert isinstance(texts, TextFeatures)
    texts = without_ends(texts) if model.config.exclude_special_tokens else texts
    similarity, own = score(model.encode_image(batch["pixels"]), *texts), torch.arange(256)
    ways = similarity.i2t, similarity.t2i.T
    return 50 * sum(float(retrieval_hits(one, own, own, [1]).mean()) for one in ways)


SLOW = ("optimizer.temperature_lr_factor", 0.1)
SIX, CONTRAST = ("token_keep_minimum", 6), ("token_score", "contrast")
ALL, QUARTER = (("token_keep_ratio", share) for share in (1.0, 0.25))
ROWS: dict[str, tuple[tuple[str, object], ...]] = {
    "all tokens": (ALL,),
    "all tokens, temperature_lr_factor=0.1": (ALL, SLOW),
    "a quarter": (QUARTER,),
    "a quarter, temperature_lr_factor=0.1": (QUARTER, SLOW),
    "a quarter, token_keep_minimum=6": (QUARTER, SIX),
    "a quarter, token_keep_minimum=6, temperature_lr_factor=0.1": (QUARTER, SIX, SLOW),
    "a quarter, token_score=contrast": (QUARTER, CONTRAST),
    "a quarter, token_score=contrast, token_keep_minimum=6": (QUARTER, CONTRAST, SIX),
    "a quarter from step 100": (ALL, ("token_keep_schedule", "switch from 1 to 0.25 at step 100")),
}


@dataclass
class CanaryPictures:
    """There is nothing to set."""


def main(_: CanaryPictures) -> None:
    """Train each row and print what it found."""
    sizes = ["model=tiny", "model.image.layers=1", "model.text.layers=1", "model.embed_dim=32"]
    nowhere = ["run_dir=-", "out=-", "result=-"]
    paper = compose_config(TrainConfig, ["experiment=base", *sizes, *nowhere], "train")
    paper.model.text.vocab_size = PATTERNS + 5
    paper.optimizer.eps = 1e-4
    torch.set_num_threads(1)
    for row, changes in ROWS.items():
        recall, scale = trained(paper, *changes)
        print(f"| {row} | {recall:.1f} | {scale:.1f} |", flush=True)


if __name__ == "__main__":
    run_command(main, CanaryPictures)
