"""The search for the demo's recipe: the same budget for FILIP and for CLIP, and the table of docs/demo.md.

    python -m bench.demo_search             # after `make demo`; a minute and a half a row on one core
    python -m bench.demo_search experiment=demo steps=300 optimizers=[lamb,adamw] temperatures=[0.07]   # from scratch

Both models get the same optimisers, each at the same rates, and the same temperatures to start from; everything else is
the experiment's.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from bench.demo_training import HEAD, Study, row, run
from filip.command import option, run_command
from filip.progress import say

MODELS = {"FILIP": "token_wise", "CLIP": "pooled"}
# LAMB moves a parameter by a share of its norm, AdamW by the rate itself: hence other rates and another eps.
OPTIMIZERS = {
    "lamb": (["optimizer.eps=1e-4", "optimizer.weight_decay=0.03"], ("6e-3", "1.3e-2", "2.6e-2")),
    "adamw": (["optimizer.eps=1e-8", "optimizer.weight_decay=0.05"], ("1e-3", "2e-3", "4e-3")),
}


@dataclass
class Search(Study):
    """Which of the combinations; ``only``: FILIP or CLIP."""

    experiment: str = option("demo_stem", "as the demo; demo: patches, from scratch")
    steps: int = option(350, "steps of each training")
    warmup_steps: int | None = option(120, "of them with a rising rate, as the demo; null = a tenth")
    optimizers: list[str] = option(["adamw"], f"to try, of {', '.join(OPTIMIZERS)}")
    temperatures: list[str] = option(["0.07", "0.03"], "to start from")
    rates: list[str] = option([], "base rates to try of each optimiser; empty = those of its own")


def main(study: Search) -> None:
    """Train each combination and print the table."""
    print(HEAD, flush=True)
    for model, interaction in MODELS.items():
        for optimizer in study.optimizers:
            settings, rates = OPTIMIZERS[optimizer]
            for rate, temperature in itertools.product(study.rates or rates, study.temperatures):
                label = f"{model}, {optimizer} {rate}, {temperature}"
                if study.only and model not in study.only:
                    continue
                say(label)
                overrides = [f"model.interaction={interaction}", f"optimizer.name={optimizer}", *settings]
                overrides += [f"optimizer.base_lr={rate}", f"model.init_temperature={temperature}"]
                print(row(label, run(study, overrides)), flush=True)


if __name__ == "__main__":
    run_command(main, Search)
