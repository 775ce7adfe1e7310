"""Write a table as Markdown, HTML, plain text or CSV: for the report, ``filip eval`` and README alike.

A :class:`Grid` is a printed table, cell by cell: not a data frame, so that ``filip eval`` prints without pandas.
"""

from __future__ import annotations

import csv
import html
import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

FORMS = ("text", "markdown", "csv", "html")
QUIET = ("common", "difference")  # kinds of lines in italics
LONGEST_LABEL = 34  # letters of plain text, where its width is limited


@dataclass
class Shown:
    """The content of a cell. tone: "up" or "down" for a difference that holds. reason: why the cell is empty."""

    text: str = ""
    interval: str = ""
    bold: bool = False
    tone: str = ""
    reason: str = ""


@dataclass
class Head:
    """The head of a column. words: its cells hold text, aligned left."""

    title: str
    group: str = ""
    words: bool = False


@dataclass
class Line:
    """A row. kind: ours, peer or paper; "common" and "difference" are in italics. hint: shown on hovering."""

    label: str
    cells: Sequence[Shown]
    section: str = ""
    kind: str = ""
    hint: str = ""


@dataclass
class Grid:
    """A table as it is shown. records: the lines of its CSV."""

    heads: Sequence[Head]
    lines: Sequence[Line]
    title: str = ""
    notes: Sequence[str] = ()
    corner: str = ""
    name: str = "table"
    records: list[dict[str, Any]] = field(default_factory=list)


def render(grid: Grid, form: str, width: int | None = None) -> str:
    """Write a table in one of FORMS. width: letters in a line of plain text; None: as many as it needs."""
    if form == "csv":
        return _csv(grid)
    if form == "text":
        return _text(grid, width)
    return {"markdown": _markdown, "html": _html}[form](grid)


def differing(rows: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield each setting that rows do not share, and in words which rows have which value.

    rows: {name of a row: {setting: value}}.
    """
    for setting in dict.fromkeys(name for settings in rows.values() for name in settings):
        by_value: dict[str, list[str]] = {}
        for row, settings in rows.items():
            by_value.setdefault(settings.get(setting, "not stated"), []).append(row)
        if len(by_value) > 1:
            yield setting, "; ".join(f"{value}: {listed(names)}" for value, names in by_value.items())


def listed(names: Sequence[str]) -> str:
    """Return names with commas between them; those that have one themselves are quoted."""
    return ", ".join(f"“{name}”" if "," in name else name for name in names)


def words(*texts: str) -> list[Shown]:
    """Return cells that show these texts."""
    return [Shown(text) for text in texts]


def _csv(grid: Grid) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(grid.records[0]) if grid.records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(grid.records)
    return out.getvalue()


# ---- shared by the formats ----------------------------------------------------------------------------


def marks_of(grid: Grid) -> dict[str, str]:
    """Return the letter of each reason of an empty cell, in order of appearance."""
    reasons = dict.fromkeys(cell.reason for line in grid.lines for cell in line.cells if cell.reason)
    return {reason: letters(number) for number, reason in enumerate(reasons)}


def letters(number: int) -> str:
    """Return letters for a number: 0 -> a, 25 -> z, 26 -> aa."""
    return (letters(number // 26 - 1) if number > 25 else "") + chr(97 + number % 26)


def notes_of(grid: Grid, marks: dict[str, str]) -> list[str]:
    return [*grid.notes, *(f"{mark}: {reason}" for reason, mark in marks.items())]


def _blocks(grid: Grid, room: int) -> Iterator[tuple[str, list[int]]]:
    """Yield the columns that are side by side, with the name of their group: "" where titles distinguish them."""
    numbers = list(range(len(grid.heads)))
    if len(numbers) <= room and not _repeated(grid):
        yield "", numbers
        return
    for group, members in groupby(numbers, key=lambda n: grid.heads[n].group if _repeated(grid) else ""):
        together = list(members)
        yield from ((group, together[n : n + room]) for n in range(0, len(together), room))


def _repeated(grid: Grid) -> bool:
    """Return whether titles of columns mean little without their group, as R@1 does."""
    return len({head.title for head in grid.heads}) < len(grid.heads)


def sections(grid: Grid, block: Sequence[int]) -> Iterator[tuple[str, list[Line]]]:
    """Yield the sections that have something in the block's columns, and their lines."""
    for section, members in groupby(grid.lines, key=lambda line: line.section):
        lines = list(members)
        if len(block) == len(grid.heads) or any(line.cells[n].text for line in lines for n in block):
            yield section, lines


# ---- the formats ---------------------------------------------------------------------------------------


def _markdown(grid: Grid) -> str:
    marks = marks_of(grid)

    def cell(shown: Shown) -> str:
        if shown.reason:
            return f"<sup>{marks[shown.reason]}</sup>"
        text = f"**{_plain(shown.text)}**" if shown.bold else _plain(shown.text)
        return f"{text} {_plain(shown.interval)}".rstrip()

    def row(texts: Sequence[str], italic: bool = False) -> str:
        texts = [f"*{text}*" if italic and text else text for text in texts]
        return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"

    out = [f"## {grid.title}", ""] if grid.title else []
    titles = [f"{head.group}: {head.title}" if _repeated(grid) and head.group else head.title for head in grid.heads]
    out.append(row([grid.corner, *titles]))
    out.append(row(["---", *("---" if head.words else "---:" for head in grid.heads)]))
    for section, lines in sections(grid, range(len(titles))):
        out += [row([f"**{_plain(section)}**", *[""] * len(titles)])] if section else []
        out += [row([_plain(line.label), *map(cell, line.cells)], line.kind in QUIET) for line in lines]
    return "\n".join([*out, "", *(f"- {_plain(note)}" for note in notes_of(grid, marks))]).rstrip("\n") + "\n"


def _plain(text: str) -> str:
    """Return text with asterisks that are not read as emphasis."""
    return text.replace("*", "\\*")


def _html(grid: Grid) -> str:
    """Return the table and its notes as a fragment; the small print below a value is its interval."""
    marks = marks_of(grid)
    heads, safe = grid.heads, html.escape
    kinds = []
    for number, head in enumerate(heads):
        first = number and head.group != heads[number - 1].group
        classes = " ".join(kind for kind, so in (("first", first), ("text", head.words)) if so)
        kinds.append(f' class="{classes}"' if classes else "")

    def cell(shown: Shown, kind: str) -> str:
        if shown.reason:
            return f'<td class="empty" title="{safe(shown.reason)}">–<sup>{marks[shown.reason]}</sup></td>'
        text = f"<b>{safe(shown.text)}</b>" if shown.bold else safe(shown.text)
        text = f'<span class="{shown.tone}">{text}</span>' if shown.tone else text
        return f"<td{kind}>{text}" + (f"<small>{safe(shown.interval)}</small>" if shown.interval else "") + "</td>"

    rows = ["<thead>"]
    if any(head.group for head in heads):
        spans = [(group, len(list(members))) for group, members in groupby(head.group for head in heads)]
        cells = "".join(f'<th colspan="{count}">{safe(group)}</th>' for group, count in spans)
        rows.append(f'<tr class="groups"><th></th>{cells}</tr>')
    cells = "".join(f"<th{kind}>{safe(head.title)}</th>" for head, kind in zip(heads, kinds, strict=True))
    rows.append(f"<tr><th>{safe(grid.corner)}</th>{cells}</tr></thead>")
    for section, lines in sections(grid, range(len(heads))):
        if section:
            title = f"<span>{safe(section)}</span>"
            rows.append(f'<tr class="section"><th colspan="{len(heads) + 1}">{title}</th></tr>')
        for line in lines:
            cells = "".join(cell(shown, kind) for shown, kind in zip(line.cells, kinds, strict=True))
            hint = f' title="{safe(line.hint)}"' if line.hint else ""
            rows.append(f'<tr class="{line.kind}"><th scope="row"{hint}>{safe(line.label)}</th>{cells}</tr>')
    region = f'<div class="scroll" tabindex="0" role="region" aria-label="{safe(grid.title)}">'
    below = "".join(f"<li>{safe(note)}</li>" for note in notes_of(grid, marks))
    return f"{region}<table>{''.join(rows)}</table></div>" + (f'<ul class="notes">{below}</ul>' if below else "")


def _text(grid: Grid, width: int | None) -> str:
    marks = marks_of(grid)

    def cell(shown: Shown) -> str:
        return f"({marks[shown.reason]})" if shown.reason else f"{shown.text} {shown.interval}".rstrip()

    texts = [[cell(shown) for shown in line.cells] for line in grid.lines]
    limit = LONGEST_LABEL if width else max((len(line.label) for line in grid.lines), default=0)
    labels = [s if len(s := line.label) <= limit else s[: limit - 1] + "…" for line in grid.lines]
    size = max(map(len, [grid.corner, *labels]))
    widths = [max(map(len, column)) for column in zip([head.title for head in grid.heads], *texts, strict=True)]
    room = max(1, (width - size) // (max(widths, default=0) + 2)) if width else len(widths)

    def row(label: str, texts: Sequence[str], block: Sequence[int]) -> str:
        cells = [
            text.ljust(widths[n]) if grid.heads[n].words else text.rjust(widths[n])
            for n, text in zip(block, texts, strict=True)
        ]
        return "  ".join([label.ljust(size), *cells])

    out = [grid.title, "-" * len(grid.title)] if grid.title else []
    for group, block in _blocks(grid, room) if width else [("", list(range(len(widths))))]:
        out += ["", group] if group else [""] if grid.title else []
        head = row(grid.corner, [grid.heads[n].title for n in block], block)
        out += [head.rstrip(), "-" * len(head)]
        for section, lines in sections(grid, block):
            out += [f"-- {section}"] if section else []
            for line in lines:
                number = next(n for n, other in enumerate(grid.lines) if other is line)
                out.append(row(labels[number], [texts[number][n] for n in block], block).rstrip())
    notes = notes_of(grid, marks)
    if width:
        notes = [part for note in notes for part in textwrap.wrap(note, width, subsequent_indent="  ")]
    return "\n".join([*out, *(["", *notes] if notes else [])]) + "\n"
