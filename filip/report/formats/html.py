"""Tables in HTML, and the frame of every page: self-contained, no script, readable in print and in dark mode."""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path

from filip.report.formats.text import (
    chance_text,
    footnotes,
    less_text,
    origin,
    origins,
    shared_by_rows,
    value_text,
)
from filip.report.table import Cell, Column, Row, Table

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"


@cache
def style() -> str:
    """The style sheet of all pages."""
    return (TEMPLATES / "style.css").read_text(encoding="utf-8")


def page(title: str, body: str) -> str:
    """A whole HTML document. title is escaped here; body is HTML already."""
    safe = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{safe}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{style()}</style></head>\n<body><h1>{safe}</h1>\n{body}\n</body></html>\n"
    )


def to_html(table: Table) -> str:
    """A self-contained page: the value large, its interval and difference small below it."""
    return page(table.title, table_html(table))


def table_html(table: Table, notes: Sequence[str] | None = None) -> str:
    """The table itself with ``notes`` below it (None: its own), as a fragment of HTML."""
    marks, _ = footnotes(table)
    starts = _group_starts(table.columns)
    rows = [_head(table, starts)]
    for section in table.sections:
        if section:
            title = f"<span>{html.escape(section)}</span>"
            rows.append(f'<tr class="section"><th colspan="{len(table.columns) + 1}">{title}</th></tr>')
        for row in table.rows:
            if row.section == section:
                rows.append(
                    f'<tr class="{row.kind}"><th scope="row" title="{html.escape(origin(row))}">'
                    f"{html.escape(row.label)}</th>{_cells(table, row, marks, starts)}</tr>"
                )
    below = [html.escape(note) for note in (table.notes if notes is None else notes)]
    below += [f"<sup>{mark}</sup> {html.escape(reason)}" for reason, mark in marks.items()]
    below += [f"Runs: {html.escape(line)}" for line in [origins(table)] if line]
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(table.title)}">'
        f"<table>{''.join(rows)}</table></div>"
        f'<ul class="notes">{"".join(f"<li>{line}</li>" for line in below)}</ul>'
    )


def _group_starts(columns: list[Column]) -> set[int]:
    """Numbers of the columns with which a group begins, where there are several groups."""
    starts = [n for n, c in enumerate(columns) if n and c.group != columns[n - 1].group]
    return set(starts)


def _head(table: Table, starts: set[int]) -> str:
    groups = ""
    if any(c.group for c in table.columns):
        spans = [(g, len(list(cs))) for g, cs in groupby(table.columns, key=lambda c: c.group)]
        cells = "".join(f'<th colspan="{n}">{html.escape(g)}</th>' for g, n in spans)
        groups = f'<tr class="groups"><th></th>{cells}</tr>'
    titles = "".join(
        f"<th{_class(n in starts)}>{html.escape(c.title)}</th>" for n, c in enumerate(table.columns)
    )
    head = f"<thead>{groups}<tr><th></th>{titles}</tr>"
    common = [shared_by_rows(table, c) for c in table.columns]
    if any(n is not None for _, n in common):
        cells = "".join(
            f"<td{_class(number in starts)}>{_common(chance, n)}</td>"
            for number, (chance, n) in enumerate(common)
        )
        head += f'<tr class="common"><th></th>{cells}</tr>'
    return head + "</thead>"


def _class(first: bool) -> str:
    return ' class="first"' if first else ""


def _common(chance: float | None, n: int | None) -> str:
    """What all rows of a column share, said once: chance, and the number of test items."""
    parts = [] if chance is None else [f"chance {chance_text(chance)}"]
    parts += [] if n is None else [f"n = {n:,}"]
    return "<br>".join(parts)


def _cells(table: Table, row: Row, marks: dict[str, str], starts: set[int]) -> str:
    """The cells of a row; neighbours that are empty for the same reason are one."""
    cells = [(n, table.cell(row, column)) for n, column in enumerate(table.columns)]
    parts = []
    for reason, members in groupby(cells, key=lambda item: _reason(item[1])):
        together = list(members)
        if reason is None:
            parts += [_cell(cell, table.columns[n], n in starts) for n, cell in together]
        else:
            parts.append(
                f'<td class="empty" colspan="{len(together)}" title="{html.escape(reason)}">'
                f"–<sup>{marks[reason]}</sup></td>"
            )
    return "".join(parts)


def _reason(cell: Cell) -> str | None:
    """Why a cell is empty; None if it is not."""
    return (cell.reason or "not reported") if cell.value is None else None


def _cell(cell: Cell, column: Column, first: bool) -> str:
    value = html.escape(value_text(cell, column))
    value = f"<b>{value}</b>" if cell.leads else value
    if cell.ci95 and column.unit == "percent":
        value += f"<small>{100 * cell.ci95[0]:.1f}–{100 * cell.ci95[1]:.1f}</small>"
    if cell.less:
        way = ("up" if cell.less.effect > 0 else "down") if cell.less.holds else "same"
        value += f'<small class="{way}">{less_text(cell.less).replace("-", "−")}</small>'
    return f"<td{_class(first)}>{value}</td>"
