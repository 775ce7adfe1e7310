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
from filip.eval.outcomes import Record, read_outcomes
from filip.files import replacing
from filip.report.differences import FEWEST, Difference, differences
from filip.report.results import Results
from filip.report.rows import build_tables
from filip.report.table import Cell, Table, chance_text, difference, interval_text, value_text
from filip.report.tables import load_published
from filip.study import Study, load_study
from filip.table_writer import Grid, Head, Line, Shown, render

BEGIN, END = "<!-- demo-results:begin -->", "<!-- demo-results:end -->"


@dataclass(frozen=True)
class Headline:
    """A row of README's table: where its cells are, and its outcomes ("<group>/<measure>")."""

    heading: str
    table: str
    column: str
    outcome: str | None = None


SCENES = {"demo_scenes_new": "new combinations of things", "demo_scenes_artist": "by an unseen artist"}
WAYS = {"i2t": "image → text", "t2i": "text → image"}
NAME, RELATION, AMONG = "demo_select_name", "demo_select_relation", "right_among_things"
POINTING = "scene_pointing"
SHEET = "eval/scenes_compared.png"  # below the results
TOO_FEW = (
    "Differences are paired over the same images: their intervals say nothing of other seeds, so that none is called "
    "significant."
)
STARRED = (
    "Differences are paired over the seeds and the same images (a t interval over both); those marked \\* are not "
    "significant at 5 % after Holm's correction."
)
MEASURES = (
    *(
        Headline(f"scenes, {title}: {way}, R@1", "retrieval", f"{name}_{key}_r1", f"{name}.{key}/r1")
        for name, title in SCENES.items()
        for key, way in WAYS.items()
    ),
    Headline("pointing: best patch of a name on its thing", POINTING, "demo_pointing_all", "demo_pointing/right"),
    Headline("the same, patches of things", POINTING, "demo_pointing_among_things", f"demo_pointing/{AMONG}"),
    Headline("selection: one name of the caption wrong", "selection", f"{NAME}_mean", f"{NAME}/mean"),
    Headline(
        'selection: two things exchanged ("left of", "above")', "selection", f"{RELATION}_mean", f"{RELATION}/mean"
    ),
    Headline("single emoji: zero-shot, mean of all tasks", "zero_shot", "average"),
)  # fmt: skip


@dataclass
class Readme:
    results: str = option("results/demo", "results of the demo")
    readme: str = option("README.md", "file with the two marks, rewritten in place")
    picture: str = option(
        "docs/images/alignment.png", "where the sheet of scenes goes, which README shows at its top"
    )
    baseline: str = option("clip", "run of the first column")
    run: str = option("filip", "run of the second column, which the last compares with the first")
    published: str = option("eval/published.yaml", "published numbers")


def main(config: Readme) -> None:
    """Write the demo's results into README.md."""
    study = load_study(None, config.results)
    tables = build_tables(study, Results(config.results), load_published(config.published))
    path = Path(config.readme)
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    runs = (config.baseline, config.run)
    block = results_block(study, tables, runs, _differences(study, config), config.results)
    sheet = Path(config.results) / SHEET
    if sheet.is_file():
        with replacing(config.picture) as part:
            shutil.copyfile(sheet, part)
    with replacing(path) as part:
        part.write_text(put_between_marks(text, block, str(path)), encoding="utf-8")
    print(block)


def put_between_marks(text: str, block: str, name: str, marks: tuple[str, str] = (BEGIN, END)) -> str:
    """``text`` with ``block`` between the marks. Raises UserError if they are not there once each, in order."""
    first, last = marks
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end or first in after or last in after:
        raise UserError(f"{name} needs the lines {first} and {last} once each, in this order")
    return f"{before}{first}\n{block}\n{last}{after}"


def results_block(
    study: Study,
    tables: Mapping[str, Table],
    runs: tuple[str, str],
    found: Mapping[str, Difference],
    results: str,
) -> str:
    """Return the table and the sentences below it, in GitHub's Markdown."""
    lines, trainings = [], 1
    for measure in MEASURES:
        if measure.table in tables:
            cells = [_cell(tables[measure.table], measure.column, run) for run in runs]
            trainings = max(trainings, cells[-1].seeds)
            chance = Shown("" if cells[0].chance is None else chance_text(cells[0].chance))
            against = [_difference(found.get(measure.outcome or ""))] if found else []
            lines.append(Line(measure.heading, [chance, *map(_shown, cells), *against]))
    heads = ["chance", *(study.label(run) for run in runs), *(["difference"] if found else [])]
    spread = (
        f"means of {trainings} trainings of each model, with 95 % intervals of the mean over trainings."
        if trainings > 1
        else "one training of each model, with 95 % intervals over the test images."
    )
    note = [f"From `make demo{f' SEEDS={trainings}' if trainings > 1 else ''}`, in percent: {spread}"]
    if found:
        note.append(TOO_FEW if trainings < FEWEST else STARRED)
    note.append(f"`{results}/tables/` has all columns and rows.")
    table = render(Grid([Head(head) for head in heads], lines, whole=True), "markdown")
    return "\n".join([table, *textwrap.wrap(" ".join(note), 118, break_long_words=False)])


def _cell(table: Table, column: str, run: str) -> Cell:
    return next((row.cells[column] for row in table.rows if row.run == run and column in row.cells), Cell())


def _shown(cell: Cell) -> Shown:
    if not isinstance(cell.value, int | float):
        return Shown("not run")
    return Shown(value_text(cell.value), interval_text(*cell.ci95) if cell.ci95 else "")


def _difference(found: Difference | None) -> Shown:
    if found is None:
        return Shown()
    shown = difference(found.effect, *found.interval, found.holds)
    shown.interval += "" if found.holds or found.trainings < FEWEST else " *"
    return shown


def _differences(study: Study, config: Readme) -> dict[str, Difference]:
    """Of the second run and the first, by outcome; none where outcomes are missing."""
    trainings = {run: study.replicas(run) for run in (config.baseline, config.run)}
    try:
        ours, theirs = (
            [_outcomes(config.results, member) for member in trainings[run]]
            for run in (config.run, config.baseline)
        )
        return {d.column: d for d in differences(ours, theirs, [s.outcome for s in MEASURES if s.outcome])}
    except UserError as error:
        print(f"no differences: {error}")
        return {}


def _outcomes(results: str, run: str) -> Record:
    """The outcomes of a training in all protocols that README shows."""
    protocols = dict.fromkeys(shown.table for shown in MEASURES if shown.outcome)
    record: Record = {}
    for protocol in protocols:
        record |= read_outcomes(Path(results) / "eval" / run / f"{protocol}.json")
    return record


if __name__ == "__main__":
    run_command(main, Readme)
