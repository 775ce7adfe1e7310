"""The first table and the picture of README.md, from the demo: ``python -m filip.report.readme results=results/demo``.

Writes what stands between the two marks in README.md, so that no figure there is typed by hand, and copies the sheet of
scenes to ``picture``.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from filip.command import option, run_command
from filip.errors import UserError
from filip.files import replacing
from filip.report.differences import FEWEST
from filip.report.results import Results
from filip.report.rows import build_tables
from filip.report.table import Cell, Table, chance_text, difference, interval_text, value_text
from filip.report.tables import load_published
from filip.study import Study, load_study
from filip.table_writer import Grid, Head, Line, Shown, render

BEGIN, END = "<!-- demo-results:begin -->", "<!-- demo-results:end -->"


SCENES = {"demo_scenes_new": "new combinations of things", "demo_scenes_artist": "by an unseen artist"}
WAYS = {"i2t": "image → text", "t2i": "text → image"}
ROWS = (  # heading, table, column
    *(
        (f"scenes, {title}: {way}, R@1", "retrieval", f"{name}_{key}_r1")
        for name, title in SCENES.items()
        for key, way in WAYS.items()
    ),
    ("pointing: best patch of a name on its thing", "scene_pointing", "demo_pointing_all"),
    ("the same, patches of things", "scene_pointing", "demo_pointing_among_things"),
    ("selection: one name of the caption wrong", "selection", "demo_select_name_mean"),
    ('selection: two things exchanged ("left of", "above")', "selection", "demo_select_relation_mean"),
    ("single emoji: zero-shot, mean of all tasks", "zero_shot", "average"),
)
SHEET = "eval/scenes_compared.png"  # below the results
TOO_FEW = (
    "Differences are paired over the same images: their intervals say nothing of other seeds, so that none is called "
    "significant."
)
STARRED = (
    "Differences are paired over the seeds and the same images (a t interval over both); those marked * are not "
    "significant at 5 % after Holm's correction over the columns of their table."
)


@dataclass
class Readme:
    results: str = option("results/demo", "results of the demo")
    readme: str = option("README.md", "file with the two marks, rewritten in place")
    picture: str = option(
        "docs/images/alignment.png", "where the sheet of scenes goes, which README shows at its top"
    )
    baseline: str = option("clip", "run of the first column")
    run: str = option(
        "filip", "run of the second column; the last one compares it with the first row of its table"
    )
    published: str = option("eval/published.yaml", "published numbers")


def main(config: Readme) -> None:
    """Write the demo's results into README.md."""
    study = load_study(None, config.results)
    tables = build_tables(study, Results(config.results), load_published(config.published))
    path = Path(config.readme)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    block = results_block(study, tables, (config.baseline, config.run), config.results)
    sheet = Path(config.results) / SHEET
    if sheet.is_file():
        with replacing(config.picture) as part:
            shutil.copyfile(sheet, part)
    with replacing(path) as part:
        part.write_text(put_between_marks(text, block, str(path)), encoding="utf-8")
    print(block)


def put_between_marks(text: str, block: str, name: str, marks: tuple[str, str] = (BEGIN, END)) -> str:
    """Return ``text`` with ``block`` between the marks. Raises UserError if they are not there once each, in order."""
    first, last = marks
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end or first in after or last in after:
        raise UserError(f"{name} needs the lines {first} and {last} once each, in this order")
    return f"{before}{first}\n{block}\n{last}{after}"


def results_block(study: Study, tables: Mapping[str, Table], runs: tuple[str, str], results: str) -> str:
    """Return the table and the sentences below it, in GitHub's Markdown."""
    lines, trainings, compared = [], 1, False
    for heading, name, column in ROWS:
        if name in tables:
            base, ours = (_cell(tables[name], column, run) for run in runs)
            trainings, compared = max(trainings, ours.seeds), compared or ours.less is not None
            chance = Shown("" if base.chance is None else chance_text(base.chance))
            lines.append(Line(heading, [chance, _shown(base), _shown(ours), _difference(ours)]))
    heads = [Head(head) for head in ("chance", *(study.label(run) for run in runs), "difference")]
    spread = (
        f"means of {trainings} trainings of each model, with 95 % intervals of the mean over trainings."
        if trainings > 1
        else "one training of each model, with 95 % intervals over the test images."
    )
    note = [f"From `make demo{f' SEEDS={trainings}' if trainings > 1 else ''}`, in percent: {spread}"]
    if compared:
        note.append(TOO_FEW if trainings < FEWEST else STARRED)
    note.append(f"`{results}/tables/` has all columns and rows.")
    table = render(Grid(heads, lines, whole=True), "markdown")
    return "\n".join([table, *textwrap.wrap(" ".join(note), 118, break_long_words=False)])


def _cell(table: Table, column: str, run: str) -> Cell:
    return next((row.cells[column] for row in table.rows if row.run == run and column in row.cells), Cell())


def _shown(cell: Cell) -> Shown:
    if not isinstance(cell.value, int | float):
        return Shown("not run")
    return Shown(value_text(cell.value), interval_text(*cell.ci95) if cell.ci95 else "")


def _difference(cell: Cell) -> Shown:
    less = cell.less
    if less is None:
        return Shown()
    shown = difference(less.effect, less.interval, less.holds)
    shown.interval += "" if less.holds or cell.seeds < FEWEST else " *"
    return shown


if __name__ == "__main__":
    run_command(main, Readme)
