"""How often a label points at its object: what the paper's alignment pictures show, as a number."""

from __future__ import annotations

from filip.report.rows.cells import Inputs
from filip.report.table import Cell, Column, Table, combine

MEASURES = (  # part of the result, its key, the key of its chance, column title
    ("pointing", "value", "chance", "label on its object"),
    ("composites", "value", "chance", "of two, on its own"),
    ("composites", "own_side", "own_side_chance", "of two, own side"),
)


def build(inputs: Inputs) -> Table:
    benchmarks = inputs.study.benchmarks("alignment")
    columns = [
        Column(f"{name}_{part}_{key}", title, inputs.title(name))
        for name in benchmarks
        for part, key, _, title in MEASURES
    ]
    rows = []
    for run in inputs.study.rows("alignment"):
        members = inputs.study.replicas(run)
        cells = {
            f"{name}_{part}_{key}": combine([_cell(inputs, m, name, part, key, chance) for m in members])
            for name in benchmarks
            for part, key, chance, _ in MEASURES
        }
        rows.append(inputs.row(run, cells))
    notes = [
        "The patch most similar to any token of the label lies on the object (by the drawing's own mask). "
        "Two: two images side by side with a text that names both.",
        "A pooled model's patches and words go through its projections, which were trained on one vector each.",
    ]
    return Table("alignment", "Word-patch alignment: pointing accuracy (%)", columns, rows, notes)


def _cell(inputs: Inputs, run: str, benchmark: str, part: str, key: str, chance: str) -> Cell:
    found = (inputs.results.evaluation(run, "alignment") or {}).get("benchmarks", {}).get(benchmark)
    if found is None:
        return Cell(reason=inputs.why_empty(run, "alignment", benchmark))
    measured = found[part]
    if measured.get(key) is None:
        return Cell(reason=measured.get("reason", "not measured"))
    interval = measured.get("ci95" if key == "value" else f"{key}_ci95")
    return Cell(measured[key], measured[chance], measured["n"], interval)
