"""Terms of the loss and options of the similarity, each at its best rate: a table of docs/token_wise.md.

    python -m bench.studies.terms                                    # after `make demo`; eleven trainings a row
    python -m bench.studies.terms only='[token_wise,with_pooled]'    # some of the rows, e.g. half of them on a core
    python -m bench.studies.terms page=true                          # write the table from what is there

The rows are the runs of the study demo_recipes, trained as the demo's models are (bench/demo_training.py, in fp32). The
rate is the best of RATES on the seeds and scenes of the search of bench/studies/onset.py; where it is at their edge,
the table says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from bench.demo_training import DemoTraining, run
from bench.readme import put_on_page
from bench.studies import onset, onset_page, variants
from bench.studies.onset_page import SEARCH, Curves, mean_recall, with_interval
from filip.command import option, run_command
from filip.progress import say
from filip.study import load_study

DATA = Path("records/terms")
MARKS = ("<!-- terms:begin -->", "<!-- terms:end -->")
RATES, SEEDS = ("2e-3", "4e-3", "8e-3", "1.6e-2"), (0, 1, 2, 3, 4)
FIRST = "token_wise"  # the row that the others are compared with


@dataclass
class Terms(DemoTraining):
    """The trainings to add."""

    recipes: str = option("workflow/config/demo_recipes.yaml", "the study whose runs are the rows")
    experiment: str = option("demo_small", "experiment of every training, as the demo's")
    steps: int = option(300, "steps of each training, as the demo's")
    warmup_steps: int | None = option(100, "steps of warm-up, as the demo's")
    page: bool = option(False, "write the table, and train nothing")


def main(study: Terms) -> None:
    """Train what is missing: row by row, first every rate on the seeds of the search, then the best one on others."""
    if study.page:
        write_page()
        return
    runs = load_study(study.recipes)
    for row in study.only or runs.runs:
        settings = runs.training(row)["overrides"]
        for seed in SEARCH:
            for rate in RATES:
                keep(study, row, settings, rate, seed)
        for seed in SEEDS:
            keep(study, row, settings, variants.best_rate(DATA, row, RATES), seed)


def keep(study: Terms, row: str, settings: list[str], rate: str, seed: int) -> None:
    """Train once and keep what was found in DATA, unless it has that training."""
    file = DATA / f"{row}-{rate}-{seed}.json"
    if file.exists():
        return
    place = replace(study, card=onset.SEARCH_CARD if seed in SEARCH else onset.CARD)
    outcome = run(place, [*settings, "precision=fp32", f"optimizer.base_lr={rate}", f"seed={seed}"])
    found = {way: round(outcome.recall[f"{way} r1"], 1) for way in ("i2t", "t2i")}
    say(f"{row}, {rate}, seed {seed}: {found}")
    point = {"step": study.steps, "seconds": round(outcome.seconds, 1), "hard": found}
    variants.write_record(file, row, rate, seed, place.card, point)


def write_page() -> None:
    """Write the table between the marks of the page."""
    put_on_page(onset_page.PAGE, table({one.row: one for one in onset_page.read(DATA)}), MARKS)


def table(found: dict[str, Curves]) -> str:
    """Return the Markdown table: R@1 both ways, what its mean is above FIRST's (paired by seed), and seconds."""
    lines = [
        f"| run | rate | seeds | image → text | text → image | less `{FIRST}` | CPU seconds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    first = found[FIRST].seeds
    for row in sorted(found, key=lambda name: name != FIRST):
        one = found[row]
        last = {seed: points[-1] for seed, points in one.seeds.items()}
        ways = [with_interval(point["hard"][way] for point in last.values()) for way in ("i2t", "t2i")]
        less = with_interval(mean_recall(point) - mean_recall(first[s][-1]) for s, point in last.items() if s in first)
        edge = " (edge)" if one.rate in (one.searched[0], one.searched[-1]) else ""
        cells = [
            f"`{row}`", f"{one.rate}{edge} of {', '.join(one.searched)}", str(len(last)), *ways,
            "" if row == FIRST else less, f"{fmean(point['seconds'] for point in last.values()):.0f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main, Terms)
