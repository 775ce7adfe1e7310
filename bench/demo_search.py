"""The search for the demo's recipe: the same budget for every model, and a table of docs/token_wise.md.

    python -m bench.demo_search             # after `make demo`; a minute and a half a training on one core
    python -m bench.demo_search experiment=demo steps=300 optimizers=[lamb,adamw] temperatures=[0.07]   # from scratch

All models get the same optimisers, each at the same rates, the same temperatures to start from and the same seeds,
which are not those of the demo; everything else is the experiment's. Recall is that on demo_scenes_search, which no
table shows.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from statistics import fmean

from bench.demo_training import DemoTraining, run
from filip.command import option, run_command
from filip.progress import say

MODELS = {
    "FILIP": ["model.interaction=token_wise"],
    "FILIP, smooth": ["model.interaction=token_wise", "token_maximum=smooth", "token_temperature=0.05"],
    "CLIP": ["model.interaction=pooled"],
    "CLIP, mean": ["model.interaction=pooled", "model.pooling=mean"],
    "CLIP, attention": ["model.interaction=pooled", "model.pooling=attention"],
    "SuperCLIP, mean": [
        "model.interaction=pooled", "model.pooling=mean", "loss.pooled=1", "loss.caption_words=1",
    ],
}  # fmt: skip
# LAMB moves a parameter by a share of its norm, AdamW by the rate itself: hence other rates and another eps.
OPTIMIZERS = {
    "lamb": (["optimizer.eps=1e-4", "optimizer.weight_decay=0.03"], ("6e-3", "1.3e-2", "2.6e-2")),
    "adamw": (["optimizer.eps=1e-8", "optimizer.weight_decay=0.05"], ("2e-3", "4e-3", "8e-3")),
}


@dataclass
class Search(DemoTraining):
    """The combinations to try; ``only``: names of models."""

    experiment: str = option("demo_small", "as the demo; demo: patches, from scratch")
    steps: int = option(300, "steps of each training")
    warmup_steps: int | None = option(100, "steps of warm-up, as the demo; null = a tenth")
    optimizers: list[str] = option(["adamw"], f"optimisers to try: {', '.join(OPTIMIZERS)}")
    temperatures: list[str] = option(["0.03"], "to start from")
    seeds: list[int] = option([100, 101], "seeds of each combination")
    rates: list[str] = option([], "base rates to try of each optimiser; empty = its own")


def main(study: Search) -> None:
    """Train each combination and print the table."""
    print("| model | optimizer | rate | temperature | i2t R@1 | t2i R@1 | CPU seconds |", flush=True)
    print("|---|---|---:|---:|---:|---:|---:|", flush=True)
    for model, of_model in MODELS.items():
        if study.only and model not in study.only:
            continue
        for optimizer in study.optimizers:
            settings, rates = OPTIMIZERS[optimizer]
            for rate, temperature in itertools.product(study.rates or rates, study.temperatures):
                say(f"{model}, {optimizer} {rate}, {temperature}")
                overrides = [*of_model, f"optimizer.name={optimizer}", *settings, f"optimizer.base_lr={rate}"]
                overrides.append(f"model.init_temperature={temperature}")
                found = [run(study, [*overrides, f"seed={seed}"]) for seed in study.seeds]
                recall = []
                for way in ("i2t", "t2i"):
                    each = [one.recall[f"{way} r1"] for one in found]
                    recall.append(f"{fmean(each):.1f} ({', '.join(f'{value:.1f}' for value in each)})")
                seconds = fmean(one.seconds for one in found)
                cells = [model, optimizer, rate, temperature, *recall, f"{seconds:.0f}"]
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    run_command(main, Search)
