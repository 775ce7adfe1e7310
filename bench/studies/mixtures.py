"""Measure what a pooled term adds to the token-wise one on the demo's scenes, and what of it is the shared temperature.

    python -m bench.studies.mixtures                  # after `make demo`; 90 s a row on one core (below: from scratch)
    python -m bench.studies.mixtures experiment=demo steps=600 warmup_steps=60 init_temperature=0.07 overrides=[]

Besides recall, prints the scale (1 / temperature) that each row ends with: that of the token-wise similarity, and the
pooled term's where it has a separate one. The terms with their own temperature or projection are defined here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.demo_training import HEAD, DemoTraining, row, run
from filip.command import option, run_command
from filip.interaction import contrastive_loss, pooled_similarity
from filip.progress import say
from filip.train.losses import TERMS, Term
from filip.train.losses.pooled import memory
from filip.train.losses.term import LossInput, TermOutput

# exp(10 p), so that AdamW, whose step does not depend on the gradient's size, moves it as fast as the model's own scale
# with optimizer.temperature_lr_factor=10.
FACTOR = 10.0


def compute(batch: LossInput, projected: bool) -> TermOutput:
    """Compute CLIP's loss with a separate temperature and, if ``projected``, a separate matrix on either vector."""
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


def parameters(dim: int, projected: bool, init_temperature: float) -> dict[str, Tensor]:
    """Return the scale, which starts at 1 / init_temperature, and matrices that start at the identity."""
    own = {f"own_{side}": torch.eye(dim)[None] for side in ("image", "text")} if projected else {}
    return {"own_scale": torch.tensor([-math.log(init_temperature) / FACTOR]), **own}


def term(projected: bool, init_temperature: float) -> Term:
    learned = partial(parameters, projected=projected, init_temperature=init_temperature)
    return Term(partial(compute, projected=projected), "vectors", math.log, memory, "", learned)


def one_sided(batch: LossInput, side: str) -> TermOutput:
    """Compute the pooled term so that its gradient reaches only the tower of ``side``."""
    image, text = batch.vectors
    vectors = (image, text.detach()) if side == "image" else (image.detach(), text)
    similarity, scale = pooled_similarity(*vectors), batch.encoded.logit_scale.detach()
    output = contrastive_loss(similarity, scale, ids=batch.positives, all_ids=batch.all_positives)
    return TermOutput(output.loss, {"accuracy/i2t": output.i2t_accuracy})


HALF = "loss.pooled=0.5"
ROWS: dict[str, list[str]] = {
    "token_wise": [],
    "+ 0.1 pooled": ["loss.pooled=0.1"],
    "+ 0.5 pooled": [HALF],
    "+ 0.5 pooled, its own temperature": ["+loss.pooled_own_scale=0.5"],
    "+ 0.5 pooled, its own temperature and projection": ["+loss.pooled_own_projection=0.5"],
    "+ 0.5 pooled, into the image tower only": ["+loss.pooled_image=0.5"],
    "+ 0.5 pooled, into the text tower only": ["+loss.pooled_text=0.5"],
    "+ 0.5 pooled, [BOS] and [EOS] out of the interaction": [HALF, "model.exclude_special_tokens=true"],
    "token_wise, [BOS] and [EOS] out of the interaction": ["model.exclude_special_tokens=true"],
}


@dataclass
class Mixtures(DemoTraining):
    experiment: str = option("demo_stem", "what every row trains: demo from scratch, demo_stem as the demo does")
    steps: int = option(300, "steps of each training")
    warmup_steps: int | None = option(100, "steps of warm-up: a third, as the demo")
    overrides: list[str] = option(["optimizer.base_lr=4e-3"], "further settings of every row, as for filip.train")
    init_temperature: float = option(0.03, "that of the experiment's model, for the pooled term's own")


def main(study: Mixtures) -> None:
    """Train each row and print the table."""
    for name, projected in (("pooled_own_scale", False), ("pooled_own_projection", True)):
        TERMS[name] = term(projected, study.init_temperature)
    for side in ("image", "text"):
        TERMS[f"pooled_{side}"] = Term(partial(one_sided, side=side), "vectors", math.log, memory, "")
    print(HEAD, flush=True)
    for label, settings in ROWS.items():
        if study.only and label not in study.only:
            continue
        say(label)
        outcome = run(study, ["loss.token_wise=1", "data.auto_augment=0", *settings])
        print(row(label, outcome), flush=True)
        last = outcome.metrics[study.steps]
        scales = [f"{name} {value:.1f}" for name, value in last.items() if "scale" in name]
        losses = [f"{name} {value:.2f}" for name, value in last.items() if name.startswith("loss/")]
        say(f"  {', '.join([*scales, *losses])}")


if __name__ == "__main__":
    run_command(main, Mixtures)
