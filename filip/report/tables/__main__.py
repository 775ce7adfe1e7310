"""The paper's tables: ``python -m filip.report.tables results=results/demo``.

Writes every table of the study as .md, .csv, .tex and .html, and together as ``tables.json``, which page and
summary read. The .tex are for a paper: one table each, without intervals and differences. Cells that were not
run are empty, with the reason.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filip import resources
from filip.cli.command import MISSING, option, run_command
from filip.common.files import replacing, write_json
from filip.common.progress import say
from filip.common.table_writer import render
from filip.report.differences import RESAMPLES
from filip.report.latex import latex
from filip.report.results import Results
from filip.report.style import page
from filip.report.table import Column
from filip.report.tables import build_tables
from filip.study import load_study

WIDEST = 12  # columns of LaTeX, as CLIP's table of retrieval has them
FORMATS = {"md": "markdown", "csv": "csv", "tex": "latex", "html": "html"}  # by the end of the file's name


@dataclass
class Tables:
    results: str = option(MISSING, "results of a study, e.g. results/demo")
    study: str | None = option(None, "study config; null = RESULTS/study.json, which the results were made with")
    out_dir: str | None = option(None, "folder for the tables; null = RESULTS/tables", writes="folder")
    published: str = option("eval/paper_tables.yaml", "published numbers")
    resamples: int = option(
        RESAMPLES, "draws of images behind the interval of each difference between rows", at_least=1
    )


def main(config: Tables) -> None:
    """Write every table of a study in four formats, and tables.json."""
    study = load_study(config.study, config.results)
    tables = build_tables(study, Results(config.results), load_published(config.published), config.resamples)
    out = Path(config.out_dir or Path(config.results, "tables"))
    out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        for extension, form in FORMATS.items():
            if form == "latex":
                text = latex(replace(table, columns=narrowed(table.columns)).grid(paper=True))
            else:
                text = render(table.grid(), form)
            with replacing(out / f"{name}.{extension}") as part:
                part.write_text(page(table.title, text) if form == "html" else text, encoding="utf-8")
        values = [cell.value for row in table.rows if row.kind != "paper" for cell in row.cells.values()]
        say(f"{out / name}.html: {len(values) - values.count(None)} of {len(values)} cells filled")
    content = {"study": study.name, "title": study.title}
    write_json(out / "tables.json", {**content, "tables": {n: t.as_json() for n, t in tables.items()}})


def narrowed(columns: list[Column]) -> list[Column]:
    """Return the columns that fit on a page: of titles that are repeated, such as R@1, R@5 and R@10, the first."""
    counts = Counter(column.title for column in columns)
    if len(columns) <= WIDEST:
        return columns
    first = next((column.title for column in columns if counts[column.title] > 1), None)
    return [column for column in columns if counts[column.title] == 1 or column.title == first]


def load_published(path: str | Path) -> dict[str, Any]:
    """Read the published numbers, in percent; ``paper_tables`` is ``eval/paper_tables.yaml``. UserError if missing."""
    return dict(resources.read_yaml(resources.find("published", path)))


if __name__ == "__main__":
    run_command(main, Tables)
