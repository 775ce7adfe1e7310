"""The two tables of docs/recipes.md, from the results of the study demo_recipes.

    make run STUDY=demo_recipes SEEDS=3
    python -m bench.studies.recipes_page

Writes what stands between the two marks of the page, so that no figure there is typed by hand: what every recipe finds,
and how far it is from the first, paired over images and seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from filip.command import option, run_command
from filip.files import replacing
from filip.report.formats.text import chance_text, value_text
from filip.report.readme import put_between_marks
from filip.report.results import Results
from filip.report.table import Cell, Column, Row, Table

BEGIN, END = "<!-- recipes:begin -->", "<!-- recipes:end -->"
HEADS = {  # columns of the table "recipes", and what the page calls them
    "demo_scenes_new_i2t_r1": "new, image → text",
    "demo_scenes_new_t2i_r1": "new, text → image",
    "demo_scenes_artist_i2t_r1": "artist, image → text",
    "demo_scenes_artist_t2i_r1": "artist, text → image",
    "demo_select_name_mean": "name",
    "demo_select_relation_mean": "relation",
    "demo_pointing_all": "pointing",
    "demo_segmentation_miou": "mIoU",
    "average": "zero-shot",
    "time_ratio": "time",
    "memory_ratio": "memory",
}


@dataclass
class RecipesPage:
    results: str = option("results/demo_recipes", "results of the study")
    page: str = option("docs/recipes.md", "file with the two marks, rewritten in place")


def main(config: RecipesPage) -> None:
    """Write both tables into the page."""
    table = Results(config.results).tables()["recipes"]
    columns = {column.key: column for column in table.columns if column.key in HEADS}
    block = f"{found(table, columns)}\n\n{differences(table, columns)}"
    path = Path(config.page)
    text = put_between_marks(path.read_text(encoding="utf-8"), block, str(path), (BEGIN, END))
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
    print(block)


def found(table: Table, columns: dict[str, Column]) -> str:
    """A row for each recipe, with the standard deviation over seeds."""
    heads = [head for key, head in HEADS.items() if key in columns]
    chances = [table.rows[0].cells.get(key, Cell()).chance for key in HEADS if key in columns]
    rows = [["*chance*", *("" if chance is None else f"*{chance_text(chance)}*" for chance in chances)]]
    rows += [
        [
            f"`{row.run}`",
            *(_value(row.cells.get(key, Cell()), columns[key]) for key in HEADS if key in columns),
        ]
        for row in table.rows
    ]
    return _markdown(["run", *heads], rows)


def differences(table: Table, columns: dict[str, Column]) -> str:
    """A row for each recipe but the first: in points, with \\* where it is not significant."""
    compared = [key for key in HEADS if key in columns and any(row.cells[key].less for row in table.rows)]
    rows = [[f"`{row.run}`", *(_less(row, key) for key in compared)] for row in table.rows[1:]]
    return _markdown([f"less `{table.rows[0].run}`", *(HEADS[key] for key in compared)], rows)


def _value(cell: Cell, column: Column) -> str:
    text = value_text(cell, column) or "–"
    if column.unit == "percent" and cell.seeds > 1 and cell.std is not None:
        text += f" ±{100 * cell.std:.1f}"
    return text


def _less(row: Row, key: str) -> str:
    less = row.cells[key].less
    if less is None:
        return "–"
    return f"{100 * less.effect:+.1f}" + ("" if less.holds else " \\*")


def _markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---", *("---:" for _ in heads[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    run_command(main, RecipesPage)
