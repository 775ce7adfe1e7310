"""Tables in GitHub's Markdown."""

from __future__ import annotations

from filip.report.formats.text import chance_text, footnotes, origin, shared_by_rows, value_text
from filip.report.table import Column, Table


def to_markdown(table: Table) -> str:
    """GitHub's Markdown: ``value [low, high] (chance c)``; the best measured row of each section in bold."""
    marks, lines = footnotes(table)
    heads = ["", *(_heading(c) for c in table.columns), "run"]
    text = [
        f"## {table.title}",
        "",
        _line(heads),
        _line(["---", *["---:"] * len(table.columns), "---"]),
    ]
    measured = [shared_by_rows(table, column) for column in table.columns]
    if any(n is not None for _, n in measured):
        counts = [f"{n:,}" if n is not None else "" for _, n in measured]
        text.append(_line(["*test images*", *counts, ""]))
    best = {c.key: table.best(c) for c in table.columns}
    for section in table.sections:
        if section:
            text.append(_line([f"**{section}**", *[""] * len(table.columns), ""]))
        for number, row in enumerate(table.rows):
            if row.section != section:
                continue
            cells = []
            for column in table.columns:
                cell = table.cell(row, column)
                value = value_text(cell, column) or f"<sup>{marks[cell.reason or 'not reported']}</sup>"
                value = f"**{value}**" if number in best[column.key] and cell.value is not None else value
                if cell.ci95 and column.unit == "percent":
                    value += f" [{100 * cell.ci95[0]:.1f}, {100 * cell.ci95[1]:.1f}]"
                if cell.chance is not None and column.unit == "percent":
                    value += f" (chance {chance_text(cell.chance)})"
                cells.append(value)
            text.append(_line([row.label, *cells, origin(row)]))
    text.append("")
    text += [f"- {note}" for note in table.notes]
    text += [f"- {line}" for line in lines]
    return "\n".join(text) + "\n"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _heading(column: Column) -> str:
    return (
        f"{column.group}: {column.title}" if column.group and column.group != column.title else column.title
    )
