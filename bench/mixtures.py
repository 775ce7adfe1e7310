"""What a pooled term beside the token-wise one does on the demo's scenes, and what of it is the shared temperature.

    python -m bench.mixtures                  # after `make demo`; two minutes a row on one core
    python -m bench.mixtures steps=1500       # at the length of the demo's own trainings

Besides recall, prints the scale (1 / temperature) that each row ends with: that of the token-wise similarity, and the
pooled term's where it has one of its own. The terms with a temperature or a projection of their own are defined here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.demo_training import HEAD, Study, row, run
from filip.command import option, run_command
from filip.interaction import contrastive_loss, pooled_similarity
from filip.progress import say
from filip.train.losses import TERMS, Term
from filip.train.losses.pooled import memory
from filip.train.losses.term import LossInput, TermOutput

# exp(10 p): so that AdamW, whose step does not depend on the gradient's size, moves it as fast as the model's own scale
# with optimizer.temperature_lr_factor=10.
FACTOR = 10.0


def compute(batch: LossInput, projected: bool) -> TermOutput:
    """CLIP's loss with a temperature of its own and, if ``projected``, a matrix of its own on either vector."""
    image, text = batch.vectors
    if projected:
        image, text = (
            F.normalize(vectors @ batch.parameters[f"own_{side}"][0], dim=-1)
            for vectors, side in ((image, "image"), (text, "text"))
        )
    scale = (FACTOR * batch.parameters["own_scale"]).exp()
    ids, all_ids = batch.positives, batch.all_positives
    output = contrastive_loss(pooled_similarity(image, text), scale, ids=ids, all_ids=all_ids)
    return TermOutput(output.loss, {"accuracy/i2t": output.i2t_accuracy, "optimizer/own_scale": scale.mean()})


def parameters(dim: int, projected: bool) -> dict[str, Tensor]:
    """The scale starts where the model's does, a matrix at the identity."""
    own = {f"own_{side}": torch.eye(dim)[None] for side in ("image", "text")} if projected else {}
    return {"own_scale": torch.tensor([math.log(1 / 0.07) / FACTOR]), **own}


def term(projected: bool) -> Term:
    return Term(
        partial(compute, projected=projected), "vectors", math.log, memory, "", partial(parameters, projected=projected)
    )  # fmt: skip


TERMS |= {"pooled_own_scale": term(False), "pooled_own_projection": term(True)}
HALF = "loss.pooled=0.5"
ROWS: dict[str, list[str]] = {
    "token_wise": [],
    "+ 0.1 pooled": ["loss.pooled=0.1"],
    "+ 0.5 pooled": [HALF],
    "+ 0.5 pooled, its own temperature": ["+loss.pooled_own_scale=0.5"],
    "+ 0.5 pooled, its own temperature and projection": ["+loss.pooled_own_projection=0.5"],
    "+ 0.5 pooled, half the rate": [HALF, "optimizer.base_lr=1e-3"],
    "+ 0.5 pooled, twice the rate": [HALF, "optimizer.base_lr=4e-3"],
    "token_wise, twice the rate": ["optimizer.base_lr=4e-3"],
}


@dataclass
class Mixtures(Study):
    steps: int = option(600, "steps of each training")


def main(study: Mixtures) -> None:
    """Train each row and print the table."""
    print(HEAD, flush=True)
    for label, settings in ROWS.items():
        if study.only and label not in study.only:
            continue
        say(label)
        outcome = run(study, ["loss.token_wise=1", "data.auto_augment=false", *settings])
        print(row(label, outcome), flush=True)
        last = outcome.metrics[study.steps]
        scales = [f"{name} {value:.1f}" for name, value in last.items() if "scale" in name]
        losses = [f"{name} {value:.2f}" for name, value in last.items() if name.startswith("loss/")]
        say(f"  {', '.join([*scales, *losses])}")


if __name__ == "__main__":
    run_command(main, Mixtures)
