"""Write a table as LaTeX for a paper, by pandas' Styler: booktabs, one tabular of the page's width at most."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Mapping
from itertools import groupby

import pandas as pd

from filip.common.table_writer import QUIET, Grid, Shown, marks_of, notes_of, sections

LATEX_TITLE = 14  # letters of a line in the title of a LaTeX column
LATEX = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
LATEX |= {letter: "\\" + letter for letter in "&%$#_{}"}
# characters that pdflatex does not know
LATEX |= {"→": "$\\rightarrow$", "×": "$\\times$", "·": "$\\cdot$", "−": "$-$", "±": "$\\pm$"}
LATEX |= {"“": "``", "”": "''", "…": "\\ldots{}", "–": "--", "†": "\\textsuperscript{\\dag}"}
LATEX |= {"<": "$<$", ">": "$>$", "|": "\\textbar{}"}  # other letters in TeX's own encoding


def latex(grid: Grid) -> str:
    """Return one booktabs table, in footnotesize or as small as the page's width asks for, by pandas' Styler."""
    marks = marks_of(grid)
    rows: list[list[str]] = []
    for section, lines in sections(grid, range(len(grid.heads))):
        span = f"\\multicolumn{{{len(grid.heads) + 1}}}{{l}}"
        title = f"{span}{{\\textit{{{_escaped(section)}}}}} \\\\\n" if section else ""
        before = f"\\midrule\n{title}" if rows else title
        for line in lines:
            label = f"\\textit{{{_escaped(line.label)}}}" if line.kind in QUIET else _escaped(line.label)
            rows.append([before + label, *(_latex_cell(cell, marks) for cell in line.cells)])
            before = ""
    grouped = [(group, len(list(members))) for group, members in groupby(head.group for head in grid.heads)]
    widths = [count for _, count in grouped for _ in range(count)]
    heads = [(_stacked(head.group, n), _stacked(head.title)) for head, n in zip(grid.heads, widths, strict=True)]
    frame = pd.DataFrame(rows, columns=pd.MultiIndex.from_tuples([("", _escaped(grid.corner)), *heads]))
    if not any(head.group for head in grid.heads):
        frame.columns = frame.columns.droplevel(0)
    longest = [max([len(line.cells[n].text) for line in grid.lines], default=0) for n in range(len(heads))]
    kinds = [
        "p{4cm}" if size > 40 else "l" if head.words else "r" for head, size in zip(grid.heads, longest, strict=True)
    ]
    tabular = frame.style.hide(axis="index").to_latex(
        column_format="l" + "".join(kinds), hrules=True, multicol_align="c"
    )
    ends = list(itertools.accumulate((count for _, count in grouped), initial=1))
    spans = zip(grouped, itertools.pairwise(ends), strict=True)
    if rules := "".join(f"\\cmidrule(lr){{{first + 1}-{last}}}" for (group, _), (first, last) in spans if group):
        tabular = tabular.replace(" \\\\\n", f" \\\\\n{rules}\n", 1)
    out = ["% needs \\usepackage{booktabs,graphicx}", "\\begin{table}", "\\centering\\footnotesize"]
    out += ["\\setlength{\\tabcolsep}{4pt}", f"\\caption{{{_escaped(grid.title)}}}", f"\\label{{tab:{grid.name}}}"]
    out += ["\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%", tabular.rstrip("\n") + "}"]
    notes = [f"{_escaped(note)}\\par" for note in notes_of(grid, marks)]
    out += ["\\par\\smallskip\\raggedright\\scriptsize", *notes] if notes else []
    return "\n".join([*out, "\\end{table}"]) + "\n"


def _latex_cell(shown: Shown, marks: Mapping[str, str]) -> str:
    if shown.reason:
        return f"\\textsuperscript{{{marks[shown.reason]}}}"
    return f"\\textbf{{{_escaped(shown.text)}}}" if shown.bold else _escaped(shown.text)


def _stacked(title: str, columns: int = 1) -> str:
    """Return a title in lines, as wide as its columns are."""
    lines = list(map(_escaped, textwrap.wrap(title, max(LATEX_TITLE, 8 * columns))))
    return "\\shortstack{" + " \\\\ ".join(lines) + "}" if lines[1:] else _escaped(title)


def _escaped(text: str) -> str:
    """Return text for LaTeX, with $s^I$ and its like as mathematics."""
    parts = re.split(r"\b(\w\^\w)\b", text)
    escaped = ("".join(LATEX.get(letter, letter) for letter in part) for part in parts)
    return "".join(f"${parts[n]}$" if n % 2 else part for n, part in enumerate(escaped))
