"""The two tables of terms in docs/token_wise.md, from the results of the study demo_recipes.

    make run STUDY=demo_recipes SEEDS=3
    python -m bench.studies.recipes_page

Writes what stands between the two marks of the page, so that no figure there is typed by hand: what every recipe finds,
and how far it is from the first, paired over images and seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.readme import put_between_marks
from filip.command import option, run_command
from filip.files import replacing
from filip.report.differences import FEWEST
from filip.report.results import Results
from filip.report.table import Cell, Column, Row, Table, chance_text, difference, value_text
from filip.table_writer import Grid, Head, Line, Shown, render, words

BEGIN, END = "<!-- recipes:begin -->", "<!-- recipes:end -->"
HEADS = {  # columns of the table "recipes", and the page's names for them
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
    page: str = option("docs/token_wise.md", "file with the two marks, rewritten in place")


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
    """Return a row for each recipe, with the standard deviation over seeds."""
    keys = [key for key in HEADS if key in columns]
    chances = [table.rows[0].cells[key].chance for key in keys]
    lines = [Line("chance", words(*("" if c is None else chance_text(c) for c in chances)), kind="common")]
    lines += [
        Line(f"`{row.run}`", [_value(row.cells[key], columns[key]) for key in keys]) for row in table.rows
    ]
    return _markdown("run", keys, lines)


def differences(table: Table, columns: dict[str, Column]) -> str:
    """Return a row for each recipe but the first: in points, with an asterisk where it is not significant."""
    first, *others = table.rows
    compared = [key for key in HEADS if key in columns and any(row.cells[key].less for row in others)]
    lines = [Line(f"`{row.run}`", [_less(row, key) for key in compared]) for row in others]
    return _markdown(f"less `{first.run}`", compared, lines)


def _value(cell: Cell, column: Column) -> Shown:
    spread = (
        f"±{100 * cell.std:.1f}"
        if column.unit == "percent" and cell.seeds > 1 and cell.std is not None
        else ""
    )
    return Shown(value_text(cell.value, column.unit) or "–", spread)


def _less(row: Row, key: str) -> Shown:
    cell = row.cells[key]
    if cell.less is None:
        return Shown("–")
    return Shown(
        difference(cell.less.effect, cell.less.interval, cell.less.holds).text,
        "" if cell.less.holds or cell.seeds < FEWEST else "*",
    )


def _markdown(corner: str, keys: list[str], lines: list[Line]) -> str:
    return render(
        Grid([Head(HEADS[key]) for key in keys], lines, corner=corner, whole=True), "markdown"
    ).rstrip("\n")


if __name__ == "__main__":
    run_command(main, RecipesPage)
