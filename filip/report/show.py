"""Print the results of a study in a terminal: ``filip report show results=results/demo``."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError
from filip.common.files import json_record, nothing_at
from filip.common.table_writer import Grid, Head, Line, render, words
from filip.report.own_pictures import OwnPictures
from filip.report.results import Results
from filip.report.table import Cell, Column, Table, value_text
from filip.study import Study, load_study

HEADLINE_COLUMNS = 4  # of the first table, where a study's config names none
HEADLINE_ROWS = 8


@dataclass
class Show:
    results: str = option(MISSING, "results folder of a study (results/demo), or its summary.json")
    table: str = option("", "a table to print in full; empty: the headline")


def main(config: Show) -> None:
    """Print the results of a study: a line for each model, and where the rest is."""
    place = Path(config.results)
    file = place / "summary.json" if place.is_dir() or place.suffix != ".json" else place
    if not place.exists():
        raise UserError(nothing_at(place, "give the results of a study, e.g. results/demo"))
    if not file.is_file():
        raise UserError(f"no summary at {file}; `make demo` (or snakemake for another study) writes it")
    summary = json_record(file, "the summary of a study", "tables", "funnel")
    width = shutil.get_terminal_size((110, 40)).columns
    tables = {name: Table.from_json(table) for name, table in summary["tables"].items()}
    if config.table and config.table not in tables:
        raise UserError(f"table={config.table}: {file} has {', '.join(tables)}")
    study = load_study(None, file.parent)
    if not config.table and (own := OwnPictures.of(study, Results(file.parent))):
        print("\n".join(own.sentences()))
        print("\n".join(["", *(f"{what}:\n  {command}" for what, command in own.next_commands())]))
        return
    grid = tables[config.table].grid() if config.table else headline(tables, study.config.get("headline", []))
    print(render(grid, "text", width))
    if not config.table:
        print("\n".join(lead(study, tables)))


def headline(tables: Mapping[str, Table], names: list[str]) -> Grid:
    """Return a line for each column that a study calls its headline, as ``table/column``, with each model's value.

    Without names the first columns of the first table. Raises UserError for a column that is not there.
    """
    if not names and tables:
        first = next(iter(tables.values()))
        names = [f"{first.name}/{column.key}" for column in first.columns if column.unit == "percent"]
        names = names[:HEADLINE_COLUMNS]
    columns = [_column(tables, name) for name in names]
    cells: dict[str, dict[str, Cell]] = {}
    for name, (table, column) in zip(names, columns, strict=True):
        for row in table.rows:
            if row.kind == "ours" and row.section == table.rows[0].section:
                cells.setdefault(row.label, {})[name] = row.cells[column.key]
    rows = dict(list(cells.items())[:HEADLINE_ROWS])
    lines = []
    for name, (_, column) in zip(names, columns, strict=True):
        found = [row.get(name) for row in rows.values()]
        chance = next((cell.chance for cell in found if cell is not None), None)
        values = ["" if cell is None else value_text(cell.value) for cell in found]
        label = f"{column.group}: {column.title}" if column.group else column.title
        lines.append(Line(label, words(*values, "" if chance is None else value_text(chance))))
    return Grid([*map(Head, rows), Head("chance")], lines, "Found, %")


def lead(study: Study, tables: Mapping[str, Table]) -> list[str]:
    """Return the sentences of a study's ``lead``, one a column (``table/column``), with each run's number in it.

    A sentence goes without its numbers' column, or without one of its runs. Raises UserError for an unknown column.
    """
    sentences = []
    for name, sentence in study.config.get("lead", {}).items():
        table, column = _column(tables, name)
        values = {row.run: row.cells[column.key].value for row in table.rows if row.run}
        with suppress(KeyError):
            shown = {run: f"{100 * v:.0f}" for run, v in values.items() if isinstance(v, int | float)}
            sentences.append(sentence.format(**shown))
    return sentences


def _column(tables: Mapping[str, Table], name: str) -> tuple[Table, Column]:
    table, _, key = name.partition("/")
    for column in tables[table].columns if table in tables else ():
        if column.key == key:
            return tables[table], column
    raise UserError(f"headline: the study's tables have no column {name!r}")


if __name__ == "__main__":
    run_command(main, Show)
