"""The search for the demo's recipe: the same budget for FILIP and for CLIP, and the table of docs/demo.md.

    python -m bench.demo_search              # after `make demo`; one to two minutes a row on one core
    python -m bench.demo_search steps=1600   # at the length of the demo's own trainings

Both models get the same optimisers, each at three rates; everything else is experiment=demo.
"""

from __future__ import annotations

from bench.demo_training import HEAD, Study, row, run
from filip.command import run_command
from filip.progress import say

MODELS = {"FILIP": "token_wise", "CLIP": "pooled"}
# LAMB moves a parameter by a share of its norm, AdamW by the rate itself: hence other rates and another eps.
OPTIMIZERS = {
    "lamb": (["optimizer.eps=1e-4", "optimizer.weight_decay=0.03"], ("6e-3", "1.3e-2", "2.6e-2")),
    "adamw": (["optimizer.eps=1e-8", "optimizer.weight_decay=0.05"], ("1e-3", "2e-3", "4e-3")),
}


def main(study: Study) -> None:
    """Train each combination and print the table."""
    lines = [HEAD]
    for model, interaction in MODELS.items():
        for optimizer, (settings, rates) in OPTIMIZERS.items():
            for rate in rates:
                label = f"{model}, {optimizer} {rate}"
                if study.only and label not in study.only:
                    continue
                say(label)
                overrides = [f"model.interaction={interaction}", f"optimizer.name={optimizer}", *settings]
                lines.append(row(label, run(study, [*overrides, f"optimizer.base_lr={rate}"])))
    print("\n".join(lines))


if __name__ == "__main__":
    run_command(main, Study)
