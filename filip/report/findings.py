"""The findings of a study: a row for each headline column of its tables, with its difference from the baseline.

The first of our rows in the first section of a table is the baseline. One or two others are compared with it, of more
only the last, the whole recipe. A difference holds or does not as in the table (:mod:`filip.report.rows.pairs`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from filip.common.table_writer import Grid, Head, Line, Shown, words
from filip.report.differences import FEWEST
from filip.report.rows.component_ablation import VARIANTS
from filip.report.table import Cell, Row, Table, chance_text, difference, interval_text, value_text
from filip.study import Study

ALL_ROWS = ("component_ablation",)  # compare all rows with the first, however many there are
FEW_ROWS = 3
COLUMNS = (
    *("area", "measure", "chance", "base", "base_run", "base_value", "row", "run", "value", "low", "high"),
    *("difference", "difference_low", "difference_high", "p", "holds", "trainings", "finding"),
)
NOTE = (
    "Points of accuracy or recall, with 95 % intervals paired over the same images (and seeds: Student's t). A "
    f"difference holds if p < 0.05 after Holm's correction over the study's primary columns, over {FEWEST} trainings "
    "or more."
)


def findings(tables: Mapping[str, Table]) -> pd.DataFrame:
    """Return a row of fractions for each headline column that was measured; a missing baseline's columns are empty."""
    records = [record for table in tables.values() for record in _findings(table)]
    return pd.DataFrame(records, columns=list(COLUMNS), dtype=object)


def _findings(table: Table) -> Iterator[dict[str, Any]]:
    headlines = [column for column in table.columns if column.headline]
    ours = [row for row in table.rows if row.kind == "ours" and row.section != VARIANTS]
    ours = [row for row in ours if row.section == ours[0].section]
    base, compared = (
        (ours[0], ours[1:] if table.name in ALL_ROWS or len(ours) <= FEW_ROWS else ours[-1:])
        if len(ours) > 1
        else (None, ours)
    )
    area = table.title.partition(" (")[0]
    for column in headlines:
        for row in compared:
            if isinstance(row.cells[column.key].value, int | float):
                yield {**_against(row, base, column.key), "area": area, "measure": column.heading}


def _against(row: Row, base: Row | None, key: str) -> dict[str, Any]:
    cell = row.cells[key]
    record: dict[str, Any] = dict.fromkeys(COLUMNS)
    record |= {"row": row.label, "run": row.run, "value": cell.value, "chance": cell.chance}
    record["low"], record["high"] = cell.ci95 or (None, None)
    if base is not None:
        record |= {"base": base.label, "base_run": base.run, "base_value": base.cells[key].value}
    if (less := cell.less) is not None:
        record |= {"difference": less.effect, "p": less.p, "holds": less.holds}
        record["difference_low"], record["difference_high"] = less.interval
    return {**record, "trainings": cell.seeds, "finding": _finding(cell)}


def _finding(cell: Cell) -> str:
    if cell.less is None:
        return "not compared"
    if cell.less.holds:
        return "better" if cell.less.effect > 0 else "worse"
    if cell.less.p is None:
        return "descriptive"
    return "no difference" if cell.seeds >= FEWEST else f"fewer than {FEWEST} trainings"


def cost(study: Study, runs: Mapping[str, Any], found: pd.DataFrame) -> Line | None:
    """Return the cost of a training step of the compared runs; None where it was not measured.

    The efficiency ablation gives it where it has a row for both, since its steps are interleaved; else the trainings.
    """
    if found.empty or not found["base_run"].iloc[0]:
        return None
    pair = [found[name].iloc[0] for name in ("base_run", "run")]
    rows = {row.get("accuracy_of"): f"efficiency/{name}" for name, row in reversed(study.efficiency.items())}
    for names in ([rows.get(run) for run in pair], pair):
        base, ours = ((runs.get(name or "") or {}).get("seconds_per_iteration") for name in names)
        if base and ours:
            shown = (value_text(base, "seconds"), value_text(ours, "seconds"), "", f"{ours / base:.2f} ×")
            return Line("seconds a training step", words(*shown, "", "", ""), "Cost")
    return None


def findings_grid(found: pd.DataFrame, below: Line | None = None) -> Grid:
    """Return the findings as they are printed, by area; ``below``: a last line."""
    pairs = found[["base", "row"]].drop_duplicates()
    base, ours = pairs.iloc[0] if len(pairs) == 1 else ("baseline", "run")
    lines = []
    for item in found.itertuples():
        shown = [Shown(value_text(item.base_value)), Shown(value_text(item.value))]
        shown += words("" if item.chance is None else chance_text(item.chance))
        if item.difference is None:
            shown += words("", "")
            if item.low is not None:
                shown[1].interval = interval_text(item.low, item.high)
        else:
            less = difference(item.difference, [item.difference_low, item.difference_high], item.holds)
            shown += [less, Shown("" if item.p is None else f"{item.p:.2g}")]
        label = item.measure if len(pairs) == 1 else f"{item.measure}: {item.row}"
        lines.append(Line(label, [*shown, *words(str(item.trainings), item.finding)], item.area))
    heads = [Head(base or "baseline"), Head(ours), Head("chance"), Head("difference"), Head("p"), Head("trainings")]
    title = "What differs, and by how much"
    return Grid([*heads, Head("finding", words=True)], [*lines, *([below] if below else [])], title, [NOTE])
