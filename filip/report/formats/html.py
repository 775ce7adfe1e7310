"""Tables in HTML, and the frame of every page: self-contained, no script, readable in print and in dark mode."""

from __future__ import annotations

import html
from itertools import groupby

from filip.report.formats.text import chance_text, footnotes, origin, shared_by_rows, value_text
from filip.report.table import Cell, Column, Table

STYLE = """
:root { --ink: #1d2129; --muted: #667085; --line: #d9dde4; --head: #f4f6f9; --paper: #ffffff; --mark: #0b57a4;
  --soft: #eef4fb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --muted: #98a1b0; --line: #363c47;
  --head: #22262e; --paper: #16181d; --mark: #7db4f0; --soft: #1c2530; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 28px 32px 40px; background: var(--paper); color: var(--ink);
  font: 14px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 21px; margin: 0 0 16px; } h2 { font-size: 16px; margin: 28px 0 8px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px; text-align: right; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 4px; font-weight: 500; }
thead th { background: var(--head); font-weight: 600; } thead tr.groups th { text-align: center; }
tr.common td { color: var(--muted); font-size: 11px; line-height: 1.35; }
tr.section th { text-align: left; color: var(--mark); background: var(--soft); font-size: 12px; }
tr.paper td, tr.paper th { color: var(--muted); }
td b { color: var(--mark); }
td small { display: block; color: var(--muted); font-size: 11px; line-height: 1.3; }
td.run { text-align: left; color: var(--muted); font-size: 11px; }
td.empty { color: var(--muted); text-align: center; }
td.text, th.text { text-align: left; white-space: normal; }
.bar { display: inline-block; height: 9px; background: var(--mark); border-radius: 2px; vertical-align: middle; }
.notes { color: var(--muted); font-size: 12px; padding-left: 18px; max-width: 90ch; }
a { color: var(--mark); }
@media print { body { padding: 0; } }
"""


def page(title: str, body: str) -> str:
    """A whole HTML document. title is escaped here; body is HTML already."""
    safe = html.escape(title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{safe}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body><h1>{safe}</h1>\n{body}\n</body></html>\n"
    )


def to_html(table: Table) -> str:
    """A self-contained page: the value large, interval and chance small below it."""
    return page(table.title, table_html(table))


def table_html(table: Table) -> str:
    """The table itself with its notes, as a fragment of HTML."""
    marks, lines = footnotes(table)
    best = {c.key: table.best(c) for c in table.columns}
    rows = [_head(table)]
    for section in table.sections:
        if section:
            rows.append(
                f'<tr class="section"><th colspan="{len(table.columns) + 2}">{html.escape(section)}</th></tr>'
            )
        for number, row in enumerate(table.rows):
            if row.section != section:
                continue
            cells = "".join(_cell(table.cell(row, c), c, marks, number in best[c.key]) for c in table.columns)
            rows.append(
                f'<tr class="{row.kind}"><th scope="row">{html.escape(row.label)}</th>{cells}'
                f'<td class="run">{html.escape(origin(row))}</td></tr>'
            )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    reasons = "".join(f"<li><sup>{mark}</sup> {html.escape(reason)}</li>" for reason, mark in marks.items())
    return (
        f'<div class="scroll"><table>{"".join(rows)}</table></div>'
        f'<ul class="notes">{notes}{reasons if lines else ""}</ul>'
    )


def _head(table: Table) -> str:
    groups = ""
    if any(c.group for c in table.columns):
        spans = [(g, len(list(cs))) for g, cs in groupby(table.columns, key=lambda c: c.group)]
        cells = "".join(f'<th colspan="{n}">{html.escape(g)}</th>' for g, n in spans)
        groups = f'<tr class="groups"><th></th>{cells}<th></th></tr>'
    titles = "".join(f"<th>{html.escape(c.title)}</th>" for c in table.columns)
    head = f"<thead>{groups}<tr><th></th>{titles}<th>run</th></tr>"
    common = [shared_by_rows(table, c) for c in table.columns]
    if any(n is not None for _, n in common):
        cells = "".join(
            "<td></td>"
            if n is None
            else f"<td>{n:,} images{'' if chance is None else f'<br>chance {chance_text(chance)}'}</td>"
            for chance, n in common
        )
        head += f'<tr class="common"><th></th>{cells}<td></td></tr>'
    return head + "</thead>"


def _cell(cell: Cell, column: Column, marks: dict[str, str], bold: bool) -> str:
    if cell.value is None:
        reason = cell.reason or "not reported"
        return f'<td class="empty" title="{html.escape(reason)}"><sup>{marks[reason]}</sup></td>'
    value = html.escape(value_text(cell, column))
    small = []
    if cell.ci95 and column.unit == "percent":
        small.append(f"{100 * cell.ci95[0]:.1f}–{100 * cell.ci95[1]:.1f}")
    if cell.chance is not None and column.unit == "percent":
        small.append(f"chance {chance_text(cell.chance)}")
    value = f"<b>{value}</b>" if bold else value
    return f"<td>{value}{''.join(f'<small>{s}</small>' for s in small)}</td>"
