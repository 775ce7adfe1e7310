"""Tables in GitHub's Markdown, narrow enough for its pages: one table per benchmark, or a few columns at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from filip.report.formats.text import (
    chance_text,
    footnotes,
    half_width,
    less_text,
    origins,
    shared_by_rows,
    value_text,
)
from filip.report.table import Cell, Column, Row, Table

MOST_COLUMNS = 5  # beside the labels


def to_markdown(table: Table) -> str:
    """GitHub's Markdown: ``value ±half of its interval``; chance and differences in rows of their own."""
    marks, lines = footnotes(table)
    text = [f"## {table.title}", ""]
    for title, columns in _blocks(table.columns):
        text += [f"### {title}", ""] if title else []
        text += [*_block(table, columns, marks), ""]
    text += [f"- {note}" for note in table.notes]
    text += [f"- {line}" for line in lines]
    text += [f"- {line}" for line in [origins(table)] if line]
    return "\n".join(text) + "\n"


def _blocks(columns: list[Column]) -> Iterator[tuple[str, list[Column]]]:
    """Columns that stand side by side, with the heading above them: a group, or all if they fit."""
    if len(columns) <= MOST_COLUMNS:
        yield "", columns
        return
    repeated = len({c.title for c in columns}) < len(
        columns
    )  # recalls: titles mean little without their group
    if not repeated:
        yield from (("", columns[n : n + MOST_COLUMNS]) for n in range(0, len(columns), MOST_COLUMNS))
        return
    for group, members in groupby(columns, key=lambda column: column.group):
        together = list(members)
        for n in range(0, len(together), MOST_COLUMNS):
            yield group, together[n : n + MOST_COLUMNS]


def _block(table: Table, columns: list[Column], marks: dict[str, str]) -> list[str]:
    grouped = len({c.group for c in columns}) > 1 and len({c.title for c in columns}) < len(columns)
    heads = [f"{c.group}: {c.title}" if grouped and c.group else c.title for c in columns]
    text = [_line(["", *heads]), _line(["---", *["---:"] * len(columns)])]
    shared = [shared_by_rows(table, column) for column in columns]
    if any(n is not None for _, n in shared):
        text.append(_line(["*test images*", *("" if n is None else f"{n:,}" for _, n in shared)]))
    if any(chance is not None for chance, _ in shared):
        text.append(_line(["*chance*", *("" if c is None else chance_text(c) for c, _ in shared)]))
    for section in table.sections:
        rows = [row for row in table.rows if row.section == section]
        if (
            not any(table.cell(row, c).value is not None for row in rows for c in columns)
            and len(table.sections) > 1
        ):
            continue  # none of its rows has anything here
        if section:
            text.append(_line([f"**{section}**", *[""] * len(columns)]))
        for row in rows:
            text += _row(table, row, rows[0], columns, marks)
    return text


def _row(table: Table, row: Row, first: Row, columns: list[Column], marks: dict[str, str]) -> Iterator[str]:
    cells = [table.cell(row, column) for column in columns]
    yield _line([_plain(row.label), *(_cell(cell, c, marks) for cell, c in zip(cells, columns, strict=True))])
    if any(cell.less for cell in cells):
        yield _line(
            [
                f"*less {_plain(first.label)}*",
                *(f"*{less_text(cell.less).replace('-', '−')}*" if cell.less else "" for cell in cells),
            ]
        )


def _plain(label: str) -> str:
    """A label whose asterisks are not read as emphasis."""
    return label.replace("*", "\\*")


def _cell(cell: Cell, column: Column, marks: dict[str, str]) -> str:
    if cell.value is None:
        return f"<sup>{marks[cell.reason or 'not reported']}</sup>"
    value = value_text(cell, column)
    value = f"**{value}**" if cell.leads else value
    half = half_width(cell) if column.unit == "percent" else None
    return value if half is None else f"{value} ±{half:.1f}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
