"""What all formats share: how a value is rounded, what an empty cell says, where a row comes from."""

from __future__ import annotations

from collections.abc import Callable

from filip.report.table import Cell, Column, Less, Row, Table


def value_text(cell: Cell, column: Column) -> str:
    """The value alone, rounded as its unit is usually printed; "" if there is none."""
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    formats: dict[str, Callable[[float], str]] = {
        "percent": lambda v: f"{100 * v:.1f}",
        "seconds": lambda v: f"{v:#.3g}".rstrip("."),
        "mb": lambda v: f"{v:,.0f}",
        "ratio": lambda v: f"{v:.2f}",
        "number": lambda v: f"{v:g}",
        "text": str,
    }
    return formats[column.unit](value)


def chance_text(chance: float) -> str:
    """Chance in percent, with enough digits to see a small one."""
    percent = 100 * chance
    return f"{percent:.1f}" if percent >= 1 else f"{percent:.2g}"


def less_text(less: Less) -> str:
    """A difference with its interval, in points."""
    low, high = (100 * end for end in less.interval)
    return f"{100 * less.effect:+.1f} [{low:.1f}, {high:.1f}]"


def half_width(cell: Cell) -> float | None:
    """Half of a cell's interval, in points."""
    return 50 * (cell.ci95[1] - cell.ci95[0]) if cell.ci95 else None


def heading(column: Column) -> str:
    """A column's name where it stands alone, with its group."""
    distinct = column.group and column.group != column.title
    return f"{column.group}: {column.title}" if distinct else column.title


def footnotes(table: Table) -> tuple[dict[str, str], list[str]]:
    """Marks for the reasons of empty cells: {reason: "a"} in order of appearance, and the lines to print."""
    marks: dict[str, str] = {}
    for row in table.rows:
        for column in table.columns:
            cell = table.cell(row, column)
            if cell.value is None:
                reason = cell.reason or "not reported"
                if reason not in marks:
                    marks[reason] = letters(len(marks))
    return marks, [f"{mark}: {reason}" for reason, mark in marks.items()]


def letters(number: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa."""
    text = ""
    number += 1
    while number:
        number, digit = divmod(number - 1, 26)
        text = chr(97 + digit) + text
    return text


def shared_by_rows(table: Table, column: Column) -> tuple[float | None, int | None]:
    """Chance and number of images of a column: the same for every row measured here."""
    for row in table.rows:
        cell = table.cell(row, column)
        if row.kind != "paper" and cell.chance is not None:
            return cell.chance, cell.n
    return None, None


def origins(table: Table) -> str:
    """Where the measured rows come from, in one line; empty if none was run."""
    known = {row.label: origin(row) for row in table.rows if row.kind != "paper" and row.run_id}
    return "; ".join(f"{label}: {where}" for label, where in known.items() if where)


def origin(row: Row) -> str:
    """Where a row comes from: its run and commit and the number of its seeds, or that it was published."""
    if row.kind == "paper":
        return "published"
    commit = f"@{short_commit(row.commit)}" if row.commit else ""
    seeds = max((cell.seeds for cell in row.cells.values()), default=1)
    repeated = f", mean of {seeds} seeds" if seeds > 1 else ""
    return f"{row.run_id or row.run or ''}{commit}{repeated}"


def short_commit(commit: str) -> str:
    """The first eight digits, with the ``+`` that marks a working tree that differed from the commit."""
    return commit[:8] + ("+" if commit.endswith("+") else "")
