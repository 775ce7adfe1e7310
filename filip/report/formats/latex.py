"""Tables in LaTeX, with booktabs."""

from __future__ import annotations

from itertools import groupby

from filip.report.formats.text import chance_text, footnotes, less_text, origin, shared_by_rows, value_text
from filip.report.table import Cell, Column, Table

COLUMNS_PER_BLOCK = 13  # side by side: twelve benchmarks and their average


def to_latex(table: Table) -> str:
    """A booktabs table (``\\usepackage{booktabs,graphicx}``); intervals and chance in small print.

    A table of more than ``COLUMNS_PER_BLOCK`` columns is cut between benchmarks into blocks, one below the other.
    """
    marks, lines = footnotes(table)
    tex = [
        "% needs \\usepackage{booktabs,graphicx}",
        "\\begin{table}",
        f"\\caption{{{_escaped(table.title)}}}",
        f"\\label{{tab:{table.name}}}",
    ]
    for columns in _blocks(table.columns):
        tex += _tabular(table, columns, marks)
    tex += [f"% {row.label}: {origin(row)}" for row in table.rows if row.kind != "paper"]
    tex += [f"\\par\\footnotesize {_escaped(line)}" for line in [*table.notes, *lines]]
    tex.append("\\end{table}")
    return "\n".join(tex) + "\n"


def _blocks(columns: list[Column]) -> list[list[Column]]:
    """Columns that stand side by side: as many complete groups as fit."""
    if len(columns) <= COLUMNS_PER_BLOCK:
        return [columns]
    blocks: list[list[Column]] = [[]]
    for _, members in groupby(columns, key=lambda column: column.group):
        group = list(members)
        if blocks[-1] and len(blocks[-1]) + len(group) > COLUMNS_PER_BLOCK:
            blocks.append([])
        blocks[-1] += group
    return blocks


def _tabular(table: Table, columns: list[Column], marks: dict[str, str]) -> list[str]:
    """The lines of one tabular with these of the table's columns."""
    tex = ["\\resizebox{\\textwidth}{!}{%", f"\\begin{{tabular}}{{l{'r' * len(columns)}}}", "\\toprule"]
    if any(c.group for c in columns):
        spans = [(g, len(list(cs))) for g, cs in groupby(columns, key=lambda c: c.group)]
        tex.append(
            " & " + " & ".join(f"\\multicolumn{{{n}}}{{c}}{{{_escaped(g)}}}" for g, n in spans) + " \\\\"
        )
    tex.append(" & " + " & ".join(_escaped(c.title) for c in columns) + " \\\\")
    tex.append("\\midrule")
    for what, place in (("chance", 0), ("test images", 1)):
        values = [shared_by_rows(table, c)[place] for c in columns]
        if any(v is not None for v in values):
            texts = ["" if v is None else chance_text(v) if place == 0 else f"{v:,}" for v in values]
            tex.append(f"\\textit{{{what}}} & " + " & ".join(texts) + " \\\\")
    for section in table.sections:
        tex.append("\\midrule")
        if section:
            tex.append(f"\\multicolumn{{{len(columns) + 1}}}{{l}}{{\\textit{{{_escaped(section)}}}}} \\\\")
        for row in table.rows:
            if row.section == section:
                cells = [_cell(table.cell(row, c), c, marks) for c in columns]
                # A published row may have the same name as one of ours.
                ambiguous = row.kind == "paper" and not section.startswith("published")
                label = _escaped(row.label) + (" (published)" if ambiguous else "")
                tex.append(f"{label} & " + " & ".join(cells) + " \\\\")
    return [*tex, "\\bottomrule", "\\end{tabular}}\\par\\medskip"]


def _cell(cell: Cell, column: Column, marks: dict[str, str]) -> str:
    if cell.value is None:
        return f"\\textsuperscript{{{marks[cell.reason or 'not reported']}}}"
    value = _escaped(value_text(cell, column))
    value = f"\\textbf{{{value}}}" if cell.leads else value
    if cell.ci95 and column.unit == "percent":
        value += f" {{\\scriptsize [{100 * cell.ci95[0]:.1f}, {100 * cell.ci95[1]:.1f}]}}"
    if cell.less:
        value += f" {{\\scriptsize ${less_text(cell.less)}$}}"
    return value


def _escaped(text: str) -> str:
    special = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    special |= {c: "\\" + c for c in "&%$#_{}"}
    special |= {
        "→": "$\\rightarrow$",
        "×": "$\\times$",
        "…": "\\ldots{}",
        "·": "$\\cdot$",
        "–": "--",
    }  # which pdflatex does not know
    return "".join(special.get(c, c) for c in text)
