"""The summary of a study in a terminal: ``filip report show results=results/demo``."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from filip.command import MISSING, option, run_command
from filip.errors import UserError
from filip.files import nothing_at
from filip.report.formats.text import short_commit, value_text
from filip.report.table import Cell, Column


@dataclass
class Show:
    results: str = option(MISSING, "results folder of a study (results/demo), or its summary.json")


def main(config: Show) -> None:
    """Print the summary of a study in the terminal: times, funnel, tables, runs."""
    try:
        print(text(load(config.results), shutil.get_terminal_size((110, 40)).columns))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def load(where: str) -> dict[str, Any]:
    """summary.json of a results folder. Raises UserError if it is not there."""
    path = Path(where)
    file = path / "summary.json" if path.is_dir() or path.suffix != ".json" else path
    if not path.exists():
        raise UserError(nothing_at(path, "give the results of a study, e.g. results/demo"))
    if not file.is_file():
        raise UserError(f"no summary at {file}; `make demo` (or snakemake for another study) writes it")
    return json.loads(file.read_text(encoding="utf-8"))


def text(summary: dict[str, Any], width: int = 110) -> str:
    """The summary as plain text, no line longer than ``width`` where that is possible."""
    parts = _stages(summary["stages"])
    parts += _funnel(summary["funnel"], width)
    for table in summary["tables"].values():
        parts += _table(table, width)
    parts += _runs(summary["runs"])
    return "\n".join(parts)


def _stages(stages: dict[str, float]) -> list[str]:
    longest = max(stages.values(), default=1)
    size = max((len(name) for name in stages), default=0)
    lines = [_head("Time of each stage")]
    for name, seconds in stages.items():
        lines.append(f"  {name:<{size}}  {seconds:8.1f} s  {'#' * max(1, round(30 * seconds / longest))}")
    return [*lines, f"  {'sum':<{size}}  {sum(stages.values()):8.1f} s", ""]


def _funnel(funnel: list[dict[str, Any]], width: int) -> list[str]:
    lines = [_head("Funnel")]
    for stage in funnel:
        counts = f"{stage['in']:>11,} → {stage['out']:>11,} {stage.get('unit', 'pairs')}"
        lines.append(f"  {stage.get('source', ''):<12} {stage['stage']:<12} {counts}")
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in stage["dropped"].items())
        lines += _wrapped(f"dropped: {reasons or 'nothing'}", width, "      ")
    return [*lines, ""]


def _table(table: dict[str, Any], width: int) -> list[str]:
    """A table in blocks of as many columns as fit."""
    lines = [_head(table["title"])]
    rows = table["rows"]
    size = min(34, max([11, *(len(row["label"]) for row in rows)]))
    values = {c["key"]: [_value(row["cells"].get(c["key"], {}), c) for row in rows] for c in table["columns"]}
    widths = {c["key"]: max(9, len(c["title"]), *map(len, values[c["key"]])) for c in table["columns"]}
    for block in _blocks(table["columns"], widths, width - size - 2):
        if any(column["group"] for column in block):
            lines.append(f"  {'':<{size}} " + _groups(block, widths))
        lines.append(f"  {'':<{size}} " + _cells(block, widths, [c["title"] for c in block]))
        for name, key in (("chance", "chance"), ("test images", "n")):
            shared = [_shared(rows, column["key"], key) for column in block]
            if any(shared):
                lines.append(f"  {name:<{size}} " + _cells(block, widths, shared))
        section = ""
        for number, row in enumerate(rows):
            if row["section"] != section:
                section = row["section"]
                lines.append(f"  -- {section}")
            cells = _cells(block, widths, [values[c["key"]][number] for c in block])
            lines.append(f"  {_cut(row['label'], size):<{size}} {cells}")
        lines.append("")
    for note in table.get("notes", []):
        lines += _wrapped(note, width, "  ")
    return [*lines, ""]


def _cells(block: list[dict[str, Any]], widths: dict[str, int], texts: list[str]) -> str:
    return " ".join(f"{text:>{widths[column['key']]}}" for column, text in zip(block, texts, strict=True))


def _blocks(columns: list[dict[str, Any]], widths: dict[str, int], room: int) -> list[list[dict[str, Any]]]:
    """Columns that fit side by side; a block ends where a group does, if the group fits at all."""
    blocks: list[list[dict[str, Any]]] = []
    for group, members in groupby(columns, key=lambda column: column["group"]):
        together = list(members)
        need = sum(widths[c["key"]] + 1 for c in together)
        used = sum(widths[c["key"]] + 1 for c in blocks[-1]) if blocks else room + 1
        if group and used + need <= room:
            blocks[-1] += together
            continue
        for column in together:
            used = sum(widths[c["key"]] + 1 for c in blocks[-1]) if blocks else room + 1
            new = column is together[0] and group
            if new or used + widths[column["key"]] + 1 > room:
                blocks.append([])
            blocks[-1].append(column)
    return blocks


def _groups(block: list[dict[str, Any]], widths: dict[str, int]) -> str:
    parts = []
    for group, members in groupby(block, key=lambda column: column["group"]):
        span = sum(widths[column["key"]] + 1 for column in members) - 1
        parts.append(f"{_cut(group, span):>{span}}")
    return " ".join(parts)


def _shared(rows: list[dict[str, Any]], column: str, key: str) -> str:
    """Chance or number of images of a column, from the first row that has it."""
    found = (row["cells"].get(column, {}).get(key) for row in rows)
    value = next((v for v in found if v is not None), None)
    if value is None:
        return ""
    return f"{value:,}" if key == "n" else f"{100 * value:.2g}"


def _value(cell: dict[str, Any], column: dict[str, Any]) -> str:
    value = cell.get("value")
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    plain = value_text(Cell(value), Column(column["key"], column["title"], unit=column["unit"]))
    half = cell.get("ci95") and column["unit"] == "percent"
    return f"{plain} ±{50 * (cell['ci95'][1] - cell['ci95'][0]):.1f}" if half else plain


def _runs(runs: dict[str, Any]) -> list[str]:
    size = max((len(name) for name in runs), default=0)
    lines = [_head("Runs")]
    for name, run in runs.items():
        if not run["trained"]:
            lines.append(f"  {name:<{size}}  not run")
            continue
        rate = (
            f"{run['samples_per_second']:,.0f} pairs/s" if run["samples_per_second"] else "speed not measured"
        )
        lines.append(
            f"  {name:<{size}}  {run['steps']:,} steps, {rate}, commit {short_commit(run['commit'] or '–')}"
        )
    return lines


def _head(title: str) -> str:
    return f"{title}\n{'-' * len(title)}"


def _cut(words: str, limit: int) -> str:
    return words if len(words) <= limit else words[: limit - 1] + "…"


def _wrapped(words: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(words, width, initial_indent=indent, subsequent_indent=indent)


if __name__ == "__main__":
    run_command(main, Show)
