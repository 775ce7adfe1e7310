"""How often a name points at its own thing in a scene of several."""

from __future__ import annotations

from filip.report.rows.cells import Inputs
from filip.report.table import Cell, Column, Table, combine

MEASURES = {"all": "on its own thing", "among_things": "among the things alone"}


def build(inputs: Inputs) -> Table:
    benchmarks = inputs.study.benchmarks("scene_pointing")
    columns = [
        Column(f"{name}_{part}", title, inputs.title(name))
        for name in benchmarks
        for part, title in MEASURES.items()
    ]
    rows = []
    for run in inputs.study.rows("scene_pointing"):
        members = inputs.study.replicas(run)
        cells = {
            f"{name}_{part}": combine([_cell(inputs, member, name, part) for member in members])
            for name in benchmarks
            for part in MEASURES
        }
        rows.append(inputs.row(run, cells))
    notes = [
        "The patch most similar to any token of a name belongs to the thing of that name. A patch belongs to "
        "what covers most of it; the second column leaves the patches of the background out.",
        "A pooled model's patches and words go through its projections, which were trained on one vector each.",
    ]
    return Table("scene_pointing", "Pointing in scenes (accuracy, %)", columns, rows, notes)


def _cell(inputs: Inputs, run: str, benchmark: str, part: str) -> Cell:
    found = (inputs.results.evaluation(run, "scene_pointing") or {}).get("benchmarks", {}).get(benchmark)
    if found is None:
        return Cell(reason=inputs.why_empty(run, "scene_pointing", benchmark))
    measured = found if part == "all" else found[part]
    return Cell(measured["value"], measured["chance"], found["n"], measured["ci95"])
