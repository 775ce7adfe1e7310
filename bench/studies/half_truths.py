"""Choose between true captions and half-truths: a table of docs/token_wise.md.

    python -m bench.studies.half_truths      # after `make demo SEEDS=5`; two CPU minutes on a Zen 4; writes the table

Each scene has a short true caption and a longer one that adds a wrong detail (Kargi et al., arXiv 2602.23906). The
demo's models choose between them, by each ranking. Nothing is trained or tuned here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from bench.readme import put_on_page
from bench.studies.dose import PAGE, RUNS, models_of
from bench.studies.onset_page import with_interval
from filip.command import option, run_command
from filip.eval.cards import load_card
from filip.eval.context import Context
from filip.eval.protocols.selection import select
from filip.eval.scorer import RANKINGS, load_scorer

MARKS = ("<!-- half-truths:begin -->", "<!-- half-truths:end -->")
CARDS = {"a wrong name more": "demo_half_name", "a wrong relation more": "demo_half_relation"}
NAMES = {"image": "s^I", "text": "s^T", "mean": "their mean"}


@dataclass
class HalfTruths:
    """Options: where the models are."""

    results: str = option("results/demo", "results of the demo")


def main(study: HalfTruths) -> None:
    """Evaluate every seed of the demo's models and write the page's table."""
    torch.set_num_threads(1)
    context = Context(str(Path(study.results) / "corpus" / "eval"))
    lines = ["| model | chosen by | seeds | " + " | ".join(CARDS) + " |", f"| --- | --- {'| ---: ' * 3}|"]
    for name, run in RUNS.items():
        scorers = [load_scorer(str(file)) for file in models_of(Path(study.results) / "models", run)]
        found = {
            what: [select(scorer, load_card(f"eval/{card}.yaml"), context) for scorer in scorers]
            for what, card in CARDS.items()
        }
        for by in RANKINGS if scorers[0].token_wise else RANKINGS[:1]:
            shares = [with_interval(100 * one[by]["value"] for one in own) for own in found.values()]
            how = NAMES[by] if scorers[0].token_wise else "cosine"
            lines.append(f"| {name} | {how} | {len(scorers)} | {' | '.join(shares)} |")
    put_on_page(PAGE, "\n".join(lines), MARKS)


if __name__ == "__main__":
    run_command(main, HalfTruths)
