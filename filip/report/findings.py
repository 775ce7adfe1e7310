"""The findings of a study: a row for each headline column of its tables, with its difference from the baseline.

The first of our rows in the first section of a table is the baseline. One or two others are compared with it, of more
only the last, the whole recipe. A difference holds or does not as in the table (:mod:`filip.report.tables.compared`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from filip.report.differences import FEWEST
from filip.report.table import Table
from filip.report.tables.table_4 import VARIANTS

ALL_ROWS = ("component_ablation",)  # compare all rows with the first, however many there are
FEW_ROWS = 3
COLUMNS = (
    *("area", "measure", "base", "base_run", "base_value", "row", "run", "value"),
    *("difference", "difference_low", "difference_high", "p", "holds"),
)
NOTE = (
    "Points of accuracy or recall, with 95 % intervals paired over the same images (and seeds: Student's t). A "
    f"difference holds if p < 0.05 after Holm's correction over the study's primary columns, over {FEWEST} trainings "
    "or more."
)


def findings(tables: Mapping[str, Table]) -> pd.DataFrame:
    """Return a row of fractions for each headline column in which two rows were compared over the same images."""
    records = [record for table in tables.values() for record in _findings(table)]
    return pd.DataFrame(records, columns=list(COLUMNS), dtype=object)


def _findings(table: Table) -> Iterator[dict[str, Any]]:
    ours = [row for row in table.rows if row.kind == "ours" and row.section != VARIANTS]
    ours = [row for row in ours if row.section == ours[0].section]
    others = ours[1:] if table.name in ALL_ROWS or len(ours) <= FEW_ROWS else ours[-1:]
    area = table.title.partition(" (")[0]
    for column in table.columns:
        for row in others if column.headline else ():
            if (less := row.cells[column.key].less) is not None:
                base = ours[0]
                pair = [base.label, base.run, base.cells[column.key].value]
                pair += [row.label, row.run, row.cells[column.key].value]
                record = [area, column.heading, *pair, less.effect, *less.interval, less.p, less.holds]
                yield dict(zip(COLUMNS, record, strict=True))
