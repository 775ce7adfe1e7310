"""Tables as Markdown, CSV, LaTeX and HTML. All four are made from the same cells; none computes anything."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Callable
from itertools import groupby

from filip.report.page import page
from filip.report.table import Cell, Column, Row, Table

__all__ = [
    *("RENDERERS", "footnotes", "html_table", "short_commit", "shown"),
    *("to_csv", "to_html", "to_latex", "to_markdown"),
]


def shown(cell: Cell, column: Column) -> str:
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


def footnotes(table: Table) -> tuple[dict[str, str], list[str]]:
    """Marks for the reasons of empty cells: {reason: "a"} in order of appearance, and the lines to print."""
    marks: dict[str, str] = {}
    for row in table.rows:
        for column in table.columns:
            cell = table.cell(row, column)
            if cell.value is None:
                reason = cell.reason or "not reported"
                if reason not in marks:
                    marks[reason] = _letters(len(marks))
    return marks, [f"{mark}: {reason}" for reason, mark in marks.items()]


def _letters(number: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa."""
    text = ""
    number += 1
    while number:
        number, digit = divmod(number - 1, 26)
        text = chr(97 + digit) + text
    return text


def _common(table: Table, column: Column) -> tuple[float | None, int | None]:
    """Chance and number of images of a column: the same for every row measured here."""
    for row in table.rows:
        cell = table.cell(row, column)
        if row.kind != "paper" and cell.chance is not None:
            return cell.chance, cell.n
    return None, None


def _origin(row: Row) -> str:
    if row.kind == "paper":
        return "published"
    commit = f"@{short_commit(row.commit)}" if row.commit else ""
    seeds = max((cell.seeds for cell in row.cells.values()), default=1)
    repeated = f", mean of {seeds} seeds" if seeds > 1 else ""
    return f"{row.run_id or row.run or ''}{commit}{repeated}"


def short_commit(commit: str) -> str:
    """The first eight digits, and the ``+`` that says that the tree differed from the commit."""
    return commit[:8] + "+" * commit.endswith("+")


# ---- Markdown ------------------------------------------------------------------------------------------


def to_markdown(table: Table) -> str:
    """GitHub's Markdown: ``value [low, high] (chance c)``; the best measured row of each section in bold."""
    marks, lines = footnotes(table)
    heads = ["", *(_heading(c) for c in table.columns), "run"]
    text = [
        f"## {table.title}",
        "",
        _md_line(heads),
        _md_line(["---", *["---:"] * len(table.columns), "---"]),
    ]
    measured = [_common(table, column) for column in table.columns]
    if any(n is not None for _, n in measured):
        counts = [f"{n:,}" if n is not None else "" for _, n in measured]
        text.append(_md_line(["*test images*", *counts, ""]))
    best = {c.key: table.best(c) for c in table.columns}
    for section in table.sections:
        if section:
            text.append(_md_line([f"**{section}**", *[""] * len(table.columns), ""]))
        for number, row in enumerate(table.rows):
            if row.section != section:
                continue
            cells = []
            for column in table.columns:
                cell = table.cell(row, column)
                value = shown(cell, column) or f"<sup>{marks[cell.reason or 'not reported']}</sup>"
                value = f"**{value}**" if number in best[column.key] and cell.value is not None else value
                if cell.ci95 and column.unit == "percent":
                    value += f" [{100 * cell.ci95[0]:.1f}, {100 * cell.ci95[1]:.1f}]"
                if cell.chance is not None and column.unit == "percent":
                    value += f" (chance {chance_text(cell.chance)})"
                cells.append(value)
            text.append(_md_line([row.label, *cells, _origin(row)]))
    text.append("")
    text += [f"- {note}" for note in table.notes]
    text += [f"- {line}" for line in lines]
    return "\n".join(text) + "\n"


def _md_line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _heading(column: Column) -> str:
    return (
        f"{column.group}: {column.title}" if column.group and column.group != column.title else column.title
    )


# ---- CSV -----------------------------------------------------------------------------------------------

CSV_COLUMNS = (
    *("table", "section", "row", "kind", "run", "run_id", "commit", "column", "unit"),
    *("value", "chance", "n", "ci95_low", "ci95_high", "seeds", "std", "reason"),
)


def to_csv(table: Table) -> str:
    """One line per cell, fractions as in tables.json: what a spreadsheet or pandas wants."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in table.rows:
        for column in table.columns:
            cell = table.cell(row, column)
            low, high = cell.ci95 or (None, None)
            head = [table.name, row.section, row.label, row.kind, row.run, row.run_id, row.commit]
            body = [column.key, column.unit, cell.value, cell.chance, cell.n, low, high, cell.seeds, cell.std]
            writer.writerow([*head, *body, cell.reason])
    return out.getvalue()


# ---- LaTeX ---------------------------------------------------------------------------------------------


LATEX_COLUMNS = 13  # side by side: twelve benchmarks and their average


def to_latex(table: Table) -> str:
    """A booktabs table (``\\usepackage{booktabs,graphicx}``); intervals and chance in small print.

    A table of more than ``LATEX_COLUMNS`` columns is cut between benchmarks into blocks that stand below each other.
    """
    marks, lines = footnotes(table)
    tex = [
        "% needs \\usepackage{booktabs,graphicx}",
        "\\begin{table}",
        f"\\caption{{{_tex(table.title)}}}",
        f"\\label{{tab:{table.name}}}",
    ]
    for columns in _blocks(table.columns):
        tex += _tex_block(table, columns, marks)
    tex += [f"% {row.label}: {_origin(row)}" for row in table.rows if row.kind != "paper"]
    tex += [f"\\par\\footnotesize {_tex(line)}" for line in [*table.notes, *lines]]
    tex.append("\\end{table}")
    return "\n".join(tex) + "\n"


def _blocks(columns: list[Column]) -> list[list[Column]]:
    """Columns that stand side by side: as many whole groups as there is room for."""
    if len(columns) <= LATEX_COLUMNS:
        return [columns]
    blocks: list[list[Column]] = [[]]
    for _, members in groupby(columns, key=lambda column: column.group):
        group = list(members)
        if blocks[-1] and len(blocks[-1]) + len(group) > LATEX_COLUMNS:
            blocks.append([])
        blocks[-1] += group
    return blocks


def _tex_block(table: Table, columns: list[Column], marks: dict[str, str]) -> list[str]:
    """The lines of one tabular with these of the table's columns."""
    tex = ["\\resizebox{\\textwidth}{!}{%", f"\\begin{{tabular}}{{l{'r' * len(columns)}}}", "\\toprule"]
    if any(c.group for c in columns):
        spans = [(g, len(list(cs))) for g, cs in groupby(columns, key=lambda c: c.group)]
        tex.append(" & " + " & ".join(f"\\multicolumn{{{n}}}{{c}}{{{_tex(g)}}}" for g, n in spans) + " \\\\")
    tex.append(" & " + " & ".join(_tex(c.title) for c in columns) + " \\\\")
    tex.append("\\midrule")
    for what, place in (("chance", 0), ("test images", 1)):
        values = [_common(table, c)[place] for c in columns]
        if any(v is not None for v in values):
            texts = ["" if v is None else chance_text(v) if place == 0 else f"{v:,}" for v in values]
            tex.append(f"\\textit{{{what}}} & " + " & ".join(texts) + " \\\\")
    best = {c.key: table.best(c) for c in columns}
    for section in table.sections:
        tex.append("\\midrule")
        if section:
            tex.append(f"\\multicolumn{{{len(columns) + 1}}}{{l}}{{\\textit{{{_tex(section)}}}}} \\\\")
        for number, row in enumerate(table.rows):
            if row.section == section:
                cells = [_tex_cell(table.cell(row, c), c, marks, number in best[c.key]) for c in columns]
                # A published row may bear the name of one of ours.
                told = row.kind == "paper" and not section.startswith("published")
                label = _tex(row.label) + (" (published)" if told else "")
                tex.append(f"{label} & " + " & ".join(cells) + " \\\\")
    return [*tex, "\\bottomrule", "\\end{tabular}}\\par\\medskip"]


def _tex_cell(cell: Cell, column: Column, marks: dict[str, str], bold: bool) -> str:
    if cell.value is None:
        return f"\\textsuperscript{{{marks[cell.reason or 'not reported']}}}"
    value = _tex(shown(cell, column))
    value = f"\\textbf{{{value}}}" if bold else value
    if cell.ci95 and column.unit == "percent":
        value += f" {{\\scriptsize [{100 * cell.ci95[0]:.1f}, {100 * cell.ci95[1]:.1f}]}}"
    return value


def _tex(text: str) -> str:
    special = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    special |= {c: "\\" + c for c in "&%$#_{}"}
    special |= {"→": "$\\rightarrow$", "×": "$\\times$", "…": "\\ldots{}"}  # which pdflatex does not know
    return "".join(special.get(c, c) for c in text)


# ---- HTML ----------------------------------------------------------------------------------------------


def to_html(table: Table) -> str:
    """A self-contained page: the value large, interval and chance small below it."""
    return page(table.title, html_table(table))


def html_table(table: Table) -> str:
    """The table itself with its notes, as a fragment of HTML."""
    marks, lines = footnotes(table)
    best = {c.key: table.best(c) for c in table.columns}
    rows = [_html_head(table)]
    for section in table.sections:
        if section:
            rows.append(
                f'<tr class="section"><th colspan="{len(table.columns) + 2}">{html.escape(section)}</th></tr>'
            )
        for number, row in enumerate(table.rows):
            if row.section != section:
                continue
            cells = "".join(
                _html_cell(table.cell(row, c), c, marks, number in best[c.key]) for c in table.columns
            )
            rows.append(
                f'<tr class="{row.kind}"><th scope="row">{html.escape(row.label)}</th>{cells}'
                f'<td class="run">{html.escape(_origin(row))}</td></tr>'
            )
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    reasons = "".join(f"<li><sup>{mark}</sup> {html.escape(reason)}</li>" for reason, mark in marks.items())
    return (
        f'<div class="scroll"><table>{"".join(rows)}</table></div>'
        f'<ul class="notes">{notes}{reasons if lines else ""}</ul>'
    )


def _html_head(table: Table) -> str:
    groups = ""
    if any(c.group for c in table.columns):
        spans = [(g, len(list(cs))) for g, cs in groupby(table.columns, key=lambda c: c.group)]
        cells = "".join(f'<th colspan="{n}">{html.escape(g)}</th>' for g, n in spans)
        groups = f'<tr class="groups"><th></th>{cells}<th></th></tr>'
    titles = "".join(f"<th>{html.escape(c.title)}</th>" for c in table.columns)
    head = f"<thead>{groups}<tr><th></th>{titles}<th>run</th></tr>"
    common = [_common(table, c) for c in table.columns]
    if any(n is not None for _, n in common):
        cells = "".join(
            "<td></td>"
            if n is None
            else f"<td>{n:,} images{'' if chance is None else f'<br>chance {chance_text(chance)}'}</td>"
            for chance, n in common
        )
        head += f'<tr class="common"><th></th>{cells}<td></td></tr>'
    return head + "</thead>"


def _html_cell(cell: Cell, column: Column, marks: dict[str, str], bold: bool) -> str:
    if cell.value is None:
        reason = cell.reason or "not reported"
        return f'<td class="empty" title="{html.escape(reason)}"><sup>{marks[reason]}</sup></td>'
    value = html.escape(shown(cell, column))
    small = []
    if cell.ci95 and column.unit == "percent":
        small.append(f"{100 * cell.ci95[0]:.1f}–{100 * cell.ci95[1]:.1f}")
    if cell.chance is not None and column.unit == "percent":
        small.append(f"chance {chance_text(cell.chance)}")
    value = f"<b>{value}</b>" if bold else value
    return f"<td>{value}{''.join(f'<small>{s}</small>' for s in small)}</td>"


RENDERERS: dict[str, Callable[[Table], str]] = {
    "md": to_markdown,
    "csv": to_csv,
    "tex": to_latex,
    "html": to_html,
}
