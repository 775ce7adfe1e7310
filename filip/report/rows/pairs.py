"""What of a table holds: paired differences between its rows, and intervals of averages over shared images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from filip.errors import UserError
from filip.eval.outcomes import Record
from filip.report.differences import Difference, Resampled, shared_columns
from filip.report.formats.text import heading
from filip.report.rows.cells import Inputs
from filip.report.table import Column, Less, Row, Table

Pair = tuple[int, int]  # numbers of two rows
MOST_NAMED = 4  # columns that a sentence lists
PAIRED = (
    "With sign: the difference from the first row of the section, paired over the same images (and seeds), with its "
    "95 % interval. Bold: ahead of every other row of the section by a difference that holds (p < 0.05 after Holm's "
    "correction over the columns)."
)


def compare_rows(table: Table, inputs: Inputs, protocols: Sequence[str], resamples: int) -> None:
    """Fill ``less`` and ``leads`` of the cells, the intervals of averages, and say in the notes what holds.

    Two rows compare where both have a value and outcomes for the same images. The correction (Holm) is over the
    columns in which they do.
    """
    resampled = _resampled(table, inputs, protocols, resamples)
    if resampled is not None:
        _average_intervals(table, resampled)
    found: dict[Pair, dict[str, Difference]] = {}
    for members in _sections(table):
        for one, other in combinations(members, 2):
            found[one, other] = _differences(table, resampled, other, one)
        _fill(table, members, found)
    table.notes += _notes(table, found)


def _resampled(table: Table, inputs: Inputs, protocols: Sequence[str], resamples: int) -> Resampled | None:
    """Every column of which the rows have outcomes, resampled; None if no two rows have any in common."""
    trainings: dict[str, list[Record]] = {}
    for run in dict.fromkeys(row.run for row in table.rows if row.run and row.kind != "paper"):
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
    """The outcomes of each training of a run in all protocols; none if one of them lacks some."""
    records = []
    for member in inputs.study.replicas(run):
        found = [inputs.results.outcomes(member, protocol) for protocol in protocols]
        if any(record is None for record in found):
            return []
        records.append({group: o for record in found if record for group, o in record.items()})
    return records


def _sections(table: Table) -> list[list[int]]:
    """Numbers of the measured rows, by section."""
    return [
        [n for n, row in enumerate(table.rows) if row.section == section and row.run and row.kind != "paper"]
        for section in table.sections
    ]


def _differences(table: Table, resampled: Resampled | None, ours: int, base: int) -> dict[str, Difference]:
    """One row less another, by column; empty if they cannot be compared."""
    a, b = table.rows[ours], table.rows[base]
    if resampled is None or not (a.run and b.run) or not {a.run, b.run} <= resampled.runs:
        return {}
    columns = [name for name in resampled.columns if all(_measured(row, name) is not None for row in (a, b))]
    try:
        return {d.column: d for d in resampled.difference(a.run, b.run, columns)} if columns else {}
    except UserError:  # other numbers of trainings
        return {}


def _measured(row: Row, column: str) -> float | None:
    cell = row.cells.get(column)
    return float(cell.value) if cell and isinstance(cell.value, int | float) else None


def _fill(table: Table, members: list[int], found: dict[Pair, dict[str, Difference]]) -> None:
    for ours in members[1:]:
        for name, d in found[members[0], ours].items():
            table.rows[ours].cells[name].less = Less(d.effect, list(d.interval), d.p_adjusted, d.holds)
    for column in table.columns:
        present = [n for n in members if _measured(table.rows[n], column.key) is not None]
        if len(present) > 1:
            best = max(present, key=lambda n: _measured(table.rows[n], column.key) or 0.0)
            cell = table.rows[best].cells[column.key]
            cell.leads = all(_ahead(found, best, n, column.key) for n in present if n != best)


def _ahead(found: dict[Pair, dict[str, Difference]], best: int, other: int, column: str) -> bool:
    d = found[min(best, other), max(best, other)].get(column)
    return d is not None and d.holds


def _average_intervals(table: Table, resampled: Resampled) -> None:
    """Averages over benchmarks that share concepts: their interval from drawing these for all benchmarks together.

    With several seeds a cell keeps its interval over trainings.
    """
    for column in table.columns:
        if len(column.outcomes) < 2 or column.key not in resampled.columns:
            continue
        for row in table.rows:
            cell = row.cells.get(column.key)
            if (
                cell
                and row.run in resampled.runs
                and cell.seeds == 1
                and _measured(row, column.key) is not None
            ):
                cell.ci95 = list(resampled.interval(row.run, column.key))


def _notes(table: Table, found: dict[Pair, dict[str, Difference]]) -> list[str]:
    """What bold print means, and where the last row of a section is better than the first, worse, and neither."""
    if not any(found.values()):
        several = any(len(members) > 1 for members in _sections(table))
        compared = several and any(c.outcomes for c in table.columns)
        return ["Nothing is bold: no two rows have outcomes per image to compare."] if compared else []
    notes = [PAIRED]
    for members in _sections(table):
        if len(members) > 1 and (counted := found[members[0], members[-1]]):
            notes.append(count_sentence(table, table.rows[members[-1]], table.rows[members[0]], counted))
    return notes


def count_sentence(table: Table, ours: Row, base: Row, found: dict[str, Difference]) -> str:
    """Where one row is better than another, where worse, and where neither can be said; averages are not counted."""
    single = [c for c in table.columns if c.key in found and len(c.outcomes) == 1] or [
        c for c in table.columns if c.key in found
    ]
    better = [c for c in single if found[c.key].holds and found[c.key].effect > 0]
    worse = [c for c in single if found[c.key].holds and found[c.key].effect < 0]
    rest = len(single) - len(better) - len(worse)
    return (
        f"{ours.label} against {base.label}: better in {len(better)} of {len(single)} columns, "
        f"worse in {len(worse)}{_named(worse)}, no difference that holds in {rest}."
    )


def _named(columns: Sequence[Column]) -> str:
    names = [heading(column) for column in columns]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f" ({'; '.join(names[:MOST_NAMED])}{more})" if names else ""
