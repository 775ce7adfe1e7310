"""Tables as CSV."""

from __future__ import annotations

import csv
import io

from filip.report.table import Table

COLUMNS = (
    *("table", "section", "row", "kind", "run", "run_id", "commit", "column", "unit"),
    *("value", "chance", "n", "ci95_low", "ci95_high", "seeds", "std", "reason"),
    *("less", "less_low", "less_high", "less_p", "less_holds", "leads"),  # than the first row of the section
)


def to_csv(table: Table) -> str:
    """One line per cell, fractions as in tables.json: the form that spreadsheets and pandas expect."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in table.rows:
        for column in table.columns:
            cell = table.cell(row, column)
            low, high = cell.ci95 or (None, None)
            head = [table.name, row.section, row.label, row.kind, row.run, row.run_id, row.commit]
            body = [column.key, column.unit, cell.value, cell.chance, cell.n, low, high, cell.seeds, cell.std]
            less = (
                [cell.less.effect, *cell.less.interval, cell.less.p, cell.less.holds]
                if cell.less
                else [None] * 5
            )
            writer.writerow([*head, *body, cell.reason, *less, cell.leads])
    return out.getvalue()
