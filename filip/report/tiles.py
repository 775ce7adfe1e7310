"""The four tiles of the report's first screen: what a study measures, and what its loss costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from filip.report.findings import Finding, Tables, compared, points
from filip.report.formats.text import chance_text, heading
from filip.report.looks import Look
from filip.report.results import Results
from filip.study import Study

MOST = 4


def tiles(
    found: list[Finding], cost: dict[str, Any] | None, looks: Mapping[str, Look]
) -> list[dict[str, Any]]:
    """What the template shows in each tile: the first areas that were measured, and the cost last."""
    room = MOST - (cost is not None)
    return [_tile(f, looks) for f in found[:room]] + ([cost] if cost else [])


def _tile(found: Finding, looks: Mapping[str, Look]) -> dict[str, Any]:
    shown = [
        (row, cell) for row, cell in ((found.base, found.base_cell), (found.ours, found.cell)) if row and cell
    ]
    values = [float(cell.value) for _, cell in shown if isinstance(cell.value, int | float)]
    chance = found.cell.chance
    most = 1.12 * max([*values, chance or 0.0, 1e-9])
    rows = [
        {
            "label": row.label,
            "run": looks.get(row.run or "", Look()).number,
            "value": f"{100 * float(cell.value):.1f} %" if isinstance(cell.value, int | float) else "–",
            "width": f"{100 * float(cell.value) / most:.1f}" if isinstance(cell.value, int | float) else "0",
            "chance": f"{100 * chance / most:.1f}" if chance is not None else None,
        }
        for row, cell in shown
    ]
    less = found.less
    foot = "" if chance is None else f"chance {chance_text(chance)} %"
    if less is not None:
        foot = f"points, {'holds' if less.holds else 'no difference that holds'}" + (
            f"; {foot}" if foot else ""
        )
    return {
        "title": found.area.title,
        "what": heading(found.column),
        "rows": rows,
        "less": points(less) if less else None,
        "way": ("up" if less.effect > 0 else "down") if less and less.holds else "same",
        "foot": foot,
    }


def cost(
    study: Study, results: Results, tables: Tables, found: list[Finding], looks: Mapping[str, Look]
) -> tuple[dict[str, Any] | None, float | None]:
    """The tile of what a training step costs, and its ratio to the baseline's; None where it was not measured.

    From the efficiency ablation where it has a row of both runs, since its steps are interleaved; else from the
    trainings themselves.
    """
    pair = _runs(tables, found)
    if pair is None:
        return None, None
    measured = [(run, _efficiency(study, results, run)) for run in pair]
    what = "seconds a training step, all rows measured in turn"
    if any(m is None for _, m in measured):
        measured = [(run, results.training(run)) for run in pair]
        what = "seconds a training step, median of the training"
    times = [
        (run, m, m["seconds_per_iteration"]) for run, m in measured if m and m.get("seconds_per_iteration")
    ]
    if len(times) < len(pair):
        return None, None
    most = 1.12 * max(seconds for *_, seconds in times)
    rows = [
        {
            "label": study.label(run),
            "run": looks.get(run, Look()).number,
            "value": f"{seconds:.3g} s",
            "width": f"{100 * seconds / most:.1f}",
            "chance": None,
        }
        for run, _, seconds in times
    ]
    ratio = times[-1][2] / times[0][2] if len(times) > 1 else None
    memory = [float(m.get("peak_memory_mb") or 0.0) for _, m, _ in times]
    foot = "the time"
    if len(times) > 1 and all(memory):
        foot += f"; {memory[-1] / memory[0]:.2f} × the memory"
    return {
        "title": "Cost",
        "what": what,
        "rows": rows,
        "less": f"{ratio:.2f} ×" if ratio else None,
        "way": "same",
        "foot": foot if ratio else "",
    }, ratio


def _runs(tables: Tables, found: list[Finding]) -> list[str] | None:
    """The runs whose cost is compared: those of the first headline figure, else the first rows of any table."""
    pairs = [(f.base, f.ours) for f in found] + [p for table in tables.values() if (p := compared(table))]
    for base, ours in pairs:
        return [row.run for row in (base, ours) if row is not None and row.run]
    return None


def _efficiency(study: Study, results: Results, run: str) -> dict[str, Any] | None:
    rows = [name for name, row in study.efficiency.items() if row.get("accuracy_of") == run]
    return results.efficiency(rows[0]) if rows else None
