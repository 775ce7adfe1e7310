"""How often a model picks the true caption of an image among false ones."""

from __future__ import annotations

from filip.report.rows.cells import Inputs
from filip.report.table import Cell, Column, Table, combine

RANKINGS = {"image": "by s^I", "text": "by s^T", "mean": "by their mean"}


def build(inputs: Inputs) -> Table:
    benchmarks = inputs.study.benchmarks("selection")
    columns = [
        Column(f"{name}_{by}", title, inputs.title(name))
        for name in benchmarks
        for by, title in RANKINGS.items()
    ]
    rows = []
    for run in inputs.study.rows("selection"):
        members = inputs.study.replicas(run)
        cells = {
            f"{name}_{by}": combine([_cell(inputs, member, name, by) for member in members])
            for name in benchmarks
            for by in RANKINGS
        }
        rows.append(inputs.row(run, cells))
    notes = [
        "The true caption has the highest similarity to its image. A pooled model has one similarity only."
    ]
    notes += [f"{inputs.title(name)}: {note}" for name in benchmarks if (note := inputs.cards[name].note)]
    return Table("selection", "Caption selection (accuracy, %)", columns, rows, notes)


def _cell(inputs: Inputs, run: str, benchmark: str, by: str) -> Cell:
    found = (inputs.results.evaluation(run, "selection") or {}).get("benchmarks", {}).get(benchmark)
    if found is None:
        return Cell(reason=inputs.why_empty(run, "selection", benchmark))
    return Cell(found[by]["value"], found["chance"], found["n"], found[by]["ci95"])
