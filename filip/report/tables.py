"""The paper's tables: ``python -m filip.report.tables study=workflow/config/demo.yaml results=results/demo out_dir=…``.

Writes zero_shot, retrieval, component_ablation and efficiency_ablation, each as .md, .csv, .tex and .html,
and all of them as ``tables.json``. Cells that were not run are empty and say why.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from filip.command import MISSING, option, run_command
from filip.files import replacing, write_json
from filip.report.build import build_tables, load_published
from filip.report.render import RENDERERS
from filip.report.study import Results, load_study

__all__ = ["Tables", "main"]


@dataclass
class Tables:
    study: str = option(MISSING, "study config, e.g. workflow/config/demo.yaml")
    results: str = option(MISSING, "its results, e.g. results/demo")
    out_dir: str = option(MISSING, "folder for the tables")
    published: str = option("eval/published.yaml", "published numbers")
    cards: str = option("eval", "folder of the benchmark cards")


def main(config: Tables) -> None:
    """Write every table of a study in four formats, and tables.json."""
    study = load_study(config.study)
    tables = build_tables(
        study, Results(config.results), load_published(config.published), Path(config.cards)
    )
    out = Path(config.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        for extension, render in RENDERERS.items():
            with replacing(out / f"{name}.{extension}") as part:
                part.write_text(render(table), encoding="utf-8")
        cells = [table.cell(r, c) for r in table.rows if r.kind != "paper" for c in table.columns]
        filled = sum(cell.value is not None for cell in cells)
        print(f"{out / name}.html: {filled} of {len(cells)} cells filled", file=sys.stderr, flush=True)
    content = {"study": study.name, "title": study.title}
    write_json(out / "tables.json", {**content, "tables": {n: t.as_json() for n, t in tables.items()}})


if __name__ == "__main__":
    run_command(main, Tables)
