"""The search of a study: which values each run was tried with, what they by_run, and which it takes."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from filip.report.results import Results
from filip.study import Study
from filip.study.search import best_values, scores
from filip.table_writer import Grid, Head, Line, words


def searches(study: Study, results: Results) -> dict[str, Any]:
    """Return by run its settings, the score of each combination of values by seed, and the best values.

    A run with a trial that is not there yet is left out.
    """
    by_run = {}
    for run in study.runs:
        trials = [results.training(trial) for trial in study.trials_of(run)]
        if trials and all(trials) and (searched := study.searched(run)):
            card = study.config["search"]["card"]
            by_values = scores([trial for trial in trials if trial], searched[1], card)
            tried = [{"values": list(values), "scores": by_seed} for values, by_seed in by_values.items()]
            best = list(best_values(by_values, card))
            by_run[run] = {"card": card, "settings": searched[1], "tried": tried, "best": best}
    return by_run


def search_grid(study: Study, by_run: Mapping[str, Mapping[str, Any]]) -> Grid:
    """Return a row for each run and combination of values: the mean score over the seeds, and whether it was taken."""
    lines = []
    for run, search in by_run.items():
        for number, tried in enumerate(search["tried"]):
            values = ", ".join(
                f"{name} {value}" for name, value in zip(search["settings"], tried["values"], strict=True)
            )
            mean = f"{100 * fmean(tried['scores'].values()):.1f}"
            at_edge = len(search["settings"]) == 1 and number in (0, len(search["tried"]) - 1)
            edge = ", at the edge of the grid" if at_edge else ""
            taken = f"taken{edge}" if tried["values"] == search["best"] else ""
            lines.append(Line(study.label(run), words(values, mean, str(len(tried["scores"])), taken)))
    card = study.config["search"]["card"]
    heads = [Head("values", words=True), Head(f"score on {card}, %"), Head("seeds"), Head("", words=True)]
    return Grid(heads, lines, "The search: settings of which each run takes the best values", corner="run", whole=True)
