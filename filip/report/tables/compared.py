"""Test the rows of a table: paired differences, and intervals of averages over shared images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from filip.common.errors import UserError
from filip.eval.outcomes import Record
from filip.report.differences import FEWEST, Difference, Resampled, shared_columns
from filip.report.table import PAIRED, TOO_FEW, Less, Row, Table
from filip.report.tables.tables_1_to_3 import Inputs


def compare_rows(table: Table, inputs: Inputs, protocols: Sequence[str], resamples: int) -> None:
    """Fill the cells' differences and ``leads``, and the intervals of averages; explain them in the notes.

    Two rows compare where both have a value and outcomes for the same images. The correction (Holm) is over the
    primary columns, which the study names for all of its tables together; without any, over the table's columns.
    """
    resampled = _resampled(table, inputs, protocols, resamples)
    if resampled is not None:
        _average_intervals(table, resampled)
    measured = _measured(table)
    sections = [[n for n in measured if measured[n].section == section] for section in table.sections]
    primary = inputs.study.config.get("headline")
    pairs = {
        (one, other): _differences(table, resampled, other, one, primary)
        for members in sections
        for one, other in combinations(members, 2)
    }
    for members in sections:
        _fill(table, members, pairs)
    if any(pairs.values()):
        table.notes.append(PAIRED)
        if any(d.trainings < FEWEST for differences in pairs.values() for d in differences.values()):
            table.notes.append(TOO_FEW)
    elif any(len(members) > 1 for members in sections) and any(c.outcomes for c in table.columns):
        table.notes.append("Nothing is bold: no two rows have outcomes per image to compare.")


def _measured(table: Table) -> dict[int, Row]:
    """Return each row that was measured here, by its number."""
    return {n: row for n, row in enumerate(table.rows) if row.kind != "paper" and row.run is not None}


def _resampled(table: Table, inputs: Inputs, protocols: Sequence[str], resamples: int) -> Resampled | None:
    """Return every column for which the rows have outcomes, resampled; None if no two rows have any in common."""
    trainings: dict[str, list[Record]] = {}
    for run in dict.fromkeys(str(row.run) for row in _measured(table).values()):
        if records := _outcomes(inputs, run, protocols):
            trainings[run] = records
    shared = set(shared_columns([record for records in trainings.values() for record in records]))
    columns = {c.key: c.outcomes for c in table.columns if c.outcomes and shared.issuperset(c.outcomes)}
    try:
        return Resampled(trainings, columns, resamples) if columns else None
    except UserError as error:  # other images
        table.notes.append(f"Rows are not compared: {error}.")
        return None


def _outcomes(inputs: Inputs, run: str, protocols: Sequence[str]) -> list[Record]:
    """Return the outcomes of each training of a run in all protocols; none if one of them lacks some."""
    records = []
    for member in inputs.study.replicas(run, *protocols):
        outcomes = [inputs.results.outcomes(member, protocol) for protocol in protocols]
        if any(record is None for record in outcomes):
            return []
        records.append({group: o for record in outcomes if record for group, o in record.items()})
    return records


def _differences(
    table: Table, resampled: Resampled | None, ours: int, base: int, primary: Sequence[str] | None
) -> dict[str, Difference]:
    """Return one line minus another, by column; {} if they cannot be compared. primary: "table/column"; None: all."""
    rows = [table.rows[ours], table.rows[base]]
    a, b = (str(row.run) for row in rows)
    if resampled is None or not {a, b} <= resampled.runs:
        return {}
    columns = [name for name in resampled.columns if all(row.cells[name].number is not None for row in rows)]
    try:
        tested = (
            None
            if primary is None
            else [name.partition("/")[2] for name in primary if name.startswith(f"{table.name}/")]
        )
        return {d.column: d for d in resampled.difference(a, b, columns, tested, len(primary or []))} if columns else {}
    except UserError:  # other numbers of trainings
        return {}


def _fill(table: Table, members: list[int], found: dict[tuple[int, int], dict[str, Difference]]) -> None:
    for line in members[1:]:
        for key, d in found[members[0], line].items():
            table.rows[line].cells[key].less = Less(
                d.effect, list(d.interval), d.p_adjusted if d.tested else None, d.holds
            )
    for key in (column.key for column in table.columns):
        values = {n: value for n in members if (value := table.rows[n].cells[key].number) is not None}
        if len(values) > 1:
            best = max(values, key=values.__getitem__)
            against = [found[min(best, n), max(best, n)].get(key) for n in values if n != best]
            table.rows[best].cells[key].leads = all(d is not None and d.holds for d in against)


def _average_intervals(table: Table, resampled: Resampled) -> None:
    """Give averages over benchmarks an interval that draws the concepts that they share for them all at once.

    With several seeds a cell keeps its interval over trainings.
    """
    averages = [c.key for c in table.columns if len(c.outcomes) > 1 and c.key in resampled.columns]
    for row in _measured(table).values():
        for key in averages:
            cell = row.cells[key]
            if row.run in resampled.runs and cell.seeds == 1 and cell.number is not None:
                cell.ci95 = list(resampled.interval(row.run, key))
