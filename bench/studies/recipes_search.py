"""The rate of every run of the study demo_recipes: the same search for each, on scenes that its tables do not show.

    python -m bench.studies.recipes_search                             # after `make demo`; 19 runs, two rates, 80 s
    python -m bench.studies.recipes_search only='[token_wise,pooled]'  # some of the runs, e.g. half of them on a core

A run is trained at each of RATES, for ``steps`` steps and with seed 0. The best one by the mean of R@10 both ways on
scenes with a concept that was held out goes into its ``optimizer.base_lr`` in workflow/config/demo_recipes.yaml.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from bench.demo_training import HEAD, Outcome, Study, row, run
from filip.command import option, run_command
from filip.progress import say
from filip.study import load_study

RATES = ("2e-3", "4e-3")


@dataclass
class RecipesSearch(Study):
    recipes: str = option("workflow/config/demo_recipes.yaml", "the study whose runs are searched")
    card: str = option("eval/demo_scenes_concepts.yaml", "retrieval card that decides")
    experiment: str = option("demo_stem", "as the study's")
    steps: int = option(300, "steps of each training")
    warmup_steps: int | None = option(100, "of them with a rising rate: the demo's third")


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
            found[rate] = run(search, [*settings, f"optimizer.base_lr={rate}"])
            print(row(f"{name}, {rate}", found[rate]), flush=True)
        best[name] = max(found, key=lambda rate: merit(found[rate]))
    print("\n" + "\n".join(f"{name}: optimizer.base_lr={rate}" for name, rate in best.items()))


def merit(outcome: Outcome) -> float:
    """Return the mean of R@10 both ways, in percent."""
    return statistics.fmean(outcome.recall[f"{way} r10"] for way in ("i2t", "t2i"))


if __name__ == "__main__":
    run_command(main, RecipesSearch)
