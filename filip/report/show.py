"""The summary of a study in a terminal: ``filip report show results=results/demo``."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filip.command import MISSING, option, run_command
from filip.errors import UserError
from filip.files import nothing_at
from filip.report.summary import funnel_grid, runs_grid, stages_grid
from filip.report.table import Table
from filip.table_writer import render


@dataclass
class Show:
    results: str = option(MISSING, "results folder of a study (results/demo), or its summary.json")


def main(config: Show) -> None:
    """Print the summary of a study in the terminal: times, funnel, tables, runs."""
    print(text(load(config.results), shutil.get_terminal_size((110, 40)).columns))


def load(where: str) -> dict[str, Any]:
    """Read summary.json of a results folder. Raises UserError if it is not there."""
    path = Path(where)
    file = path / "summary.json" if path.is_dir() or path.suffix != ".json" else path
    if not path.exists():
        raise UserError(nothing_at(path, "give the results of a study, e.g. results/demo"))
    if not file.is_file():
        raise UserError(f"no summary at {file}; `make demo` (or snakemake for another study) writes it")
    return json.loads(file.read_text(encoding="utf-8"))


def text(summary: dict[str, Any], width: int = 110) -> str:
    """Return the summary as plain text, no line longer than ``width`` where that is possible."""
    tables = [Table.from_json(table).grid() for table in summary["tables"].values()]
    grids = [stages_grid(summary["stages"]), funnel_grid(summary["funnel"]), *tables, runs_grid(summary["runs"])]
    return "\n".join(render(grid, "text", width) for grid in grids)


if __name__ == "__main__":
    run_command(main, Show)
