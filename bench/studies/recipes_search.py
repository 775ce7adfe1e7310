"""The rate of every run of the study demo_recipes: the same search for each, on scenes that its tables do not show.

    python -m bench.studies.recipes_search                             # after `make demo`; ten runs, three rates, SEEDS
    python -m bench.studies.recipes_search only='[token_wise,pooled]'  # some of the runs, e.g. half of them on a core

A run is trained at each of RATES, for ``steps`` steps, with each of SEEDS, which the study does not use. The best one
by the mean of R@10 both ways on scenes that no table shows goes into its ``optimizer.base_lr`` in
workflow/config/demo_recipes.yaml; one at the edge of RATES asks for another rate beyond it.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from bench.demo_training import HEAD, Outcome, Study, row, run
from filip.command import option, run_command
from filip.progress import say
from filip.study import load_study

RATES, SEEDS = ("2e-3", "4e-3", "8e-3"), (100, 101)


@dataclass
class RecipesSearch(Study):
    recipes: str = option("workflow/config/demo_recipes.yaml", "the study whose runs are searched")
    experiment: str = option("demo_small", "experiment of every training, as in the study")
    steps: int = option(450, "steps of each training")
    warmup_steps: int | None = option(150, "steps of warm-up: a third, as the demo")


def main(search: RecipesSearch) -> None:
    """Train every run at each rate; print the table and then the best rates."""
    study, best = load_study(search.recipes), {}
    print(HEAD, flush=True)
    for name in study.runs:
        if search.only and name not in search.only:
            continue
        found = {}
        for rate in RATES:
            say(f"{name}, {rate}")
            # the search's number of steps replaces the study's, this rate replaces its rate
            settings = [
                text for text in study.training(name)["overrides"] if not text.startswith("max_steps=")
            ]
            found[rate] = [run(search, [*settings, f"optimizer.base_lr={rate}", f"seed={s}"]) for s in SEEDS]
            for seed, outcome in zip(SEEDS, found[rate], strict=True):
                print(row(f"{name}, {rate}, seed {seed}", outcome), flush=True)
        best[name] = max(found, key=lambda rate: statistics.fmean(map(merit, found[rate])))
    print("\n" + "\n".join(f"{name}: optimizer.base_lr={rate}" for name, rate in best.items()))


def merit(outcome: Outcome) -> float:
    """Return the mean of R@10 both ways, in percent."""
    return statistics.fmean(outcome.recall[f"{way} r10"] for way in ("i2t", "t2i"))


if __name__ == "__main__":
    run_command(main, RecipesSearch)
