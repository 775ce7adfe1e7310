"""The search for the demo's recipe: the same budget for FILIP and for CLIP, and the table of docs/demo.md.

    python -m bench.demo_search              # after `make demo`; one to two minutes a row on one core
    python -m bench.demo_search steps=1500 optimizers=[adamw] rates=[3e-3]   # one more rate, at the demo's own length

Both models get the same optimisers, each at the same rates; everything else is experiment=demo.
"""

from __future__ import annotations

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
    """Which of the combinations."""

    optimizers: list[str] = option(list(OPTIMIZERS), "to try")
    rates: list[str] = option([], "base rates to try of each optimiser; empty = the three of its own")


def main(study: Search) -> None:
    """Train each combination and print the table."""
    lines = [HEAD]
    for model, interaction in MODELS.items():
        for optimizer in study.optimizers:
            settings, rates = OPTIMIZERS[optimizer]
            for rate in study.rates or rates:
                label = f"{model}, {optimizer} {rate}"
                if study.only and label not in study.only:
                    continue
                say(label)
                overrides = [f"model.interaction={interaction}", f"optimizer.name={optimizer}", *settings]
                lines.append(row(label, run(study, [*overrides, f"optimizer.base_lr={rate}"])))
    print("\n".join(lines))


if __name__ == "__main__":
    run_command(main, Search)
