"""The tables and the pictures of README.md: ``python -m bench.readme``, after the studies demo, binding, demo_ablation.

Writes what is between the marks in README.md, so that no figure there is typed by hand, copies the sheet of
scenes to ``picture``, and draws how the models learn into ``curves``. A study whose results are not there keeps its
table.
"""

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from matplotlib.figure import Figure

from filip.cli.command import option, run_command
from filip.common.errors import UserError
from filip.common.files import replacing
from filip.common.table_writer import Grid, Head, Line, Shown, render
from filip.models.config import config_from_dict
from filip.report import plots
from filip.report.differences import FEWEST
from filip.report.plots import training_logs
from filip.report.results import Results
from filip.report.rows import build_tables
from filip.report.style import looks
from filip.report.table import Cell, Table, chance_text, difference, interval_text, value_text
from filip.report.tables import load_published
from filip.study import Study, load_study

BEGIN, END = "<!-- demo-results:begin -->", "<!-- demo-results:end -->"
BINDING = "<!-- binding-results:begin -->", "<!-- binding-results:end -->"
EFFICIENCY = "<!-- efficiency-results:begin -->", "<!-- efficiency-results:end -->"
ABLATION = "<!-- ablation-results:begin -->", "<!-- ablation-results:end -->"


ROWS = (  # heading, table, column
    ("a scene of three things is found by its caption, R@1", "retrieval", "demo_scenes_new_t2i_r1"),
    ("the same by an artist of whom no picture was trained on", "retrieval", "demo_scenes_artist_t2i_r1"),
    ("the best patch of a word is on its thing", "scene_pointing", "demo_pointing_all"),
    ("a drawing of one thing is found by its caption, R@1", "retrieval", "demo_test_t2i_r1"),
)
BINDING_COLUMNS = (  # heading, table, column
    ("true caption preferred to one with two colours exchanged", "selection", "binding_exchange_mean"),
    ("R@1, image → text", "retrieval", "binding_new_i2t_r1"),
    ("R@1, text → image", "retrieval", "binding_new_t2i_r1"),
    ("best patch of a word is on its thing", "scene_pointing", "binding_pointing_all"),
)
ABLATION_COLUMNS = (  # heading, column of ours, the paper's benchmark, column of the paper
    ("a scene is found by its caption, R@1", "demo_scenes_new_t2i_r1", "MSCOCO", "mscoco_t2i_r1"),
    ("its caption is found, R@1", "demo_scenes_new_i2t_r1", "MSCOCO", "mscoco_i2t_r1"),
    ("zero-shot, mean of eight sets", "average", "ImageNet", "imagenet_top1"),
)
CONFIGS = Path("workflow/config")
SHEET = "eval/scenes_compared.png"  # below the results
TOO_FEW = f"Differences are paired over the same images and seeds; with fewer than {FEWEST} none is called significant."
STARRED = (
    "Differences are paired over the seeds and the same images (a t interval over both); those marked * are "
    "significant at 5 % after Holm's correction over the primary columns, which `workflow/config/demo.yaml` names."
)


@dataclass
class Readme:
    results: str = option("results/demo", "results of the demo")
    binding: str = option("results/binding", "results of the study binding, of the first table")
    ablation: str = option("results/demo_ablation", "results of the study demo_ablation")
    readme: str = option("README.md", "file with the two marks, rewritten in place")
    picture: str = option("docs/images/alignment.png", "where the sheet of scenes goes, which README shows at its top")
    curves: str = option("docs/images/learning.png", "where the learning curves go, which README shows below the table")
    binding_picture: str = option("docs/images/binding.svg", "where exchanged colours by size go: docs/token_wise.md")
    runs: list[str] = option(["clip", "filip", "smooth"], "the columns; each is compared with the one before it")
    published: str = option("eval/published.yaml", "published numbers")


def main(config: Readme) -> None:
    """Write the results of the studies into README.md."""
    page, published = Path(config.readme), load_published(config.published)
    if Path(config.ablation).is_dir():
        components = build_tables(*_read(config.ablation), published)["component_ablation"]
        put_on_page(page, ablation_block(components, published["component_ablation"]), ABLATION)
    if Path(config.binding).is_dir():
        study, results = _read(config.binding)
        tables = build_tables(study, results, published)
        put_on_page(page, binding_block(study, tables, results), BINDING)
        with replacing(config.binding_picture) as part:
            binding_figure(study, tables, results).savefig(part, format="svg")
    if not Path(config.results).is_dir():
        return
    study, results = _read(config.results)
    steps = [build_tables(_only(study, pair), results, published) for pair in pairwise(config.runs)]
    put_on_page(page, results_block(study, steps, config.runs, results))
    sheet = Path(config.results) / SHEET
    if sheet.is_file():
        with replacing(config.picture) as part:
            shutil.copyfile(sheet, part)
    logs = training_logs(study, results)
    labels = {study.label(run): look for run, look in looks(study).items() if run in config.runs}
    if shown := {label: logs[label] for label in labels if label in logs}:
        with replacing(config.curves) as part:
            found = plots.learning(shown, labels, lambda line: line.get("accuracy/i2t"), "% of a batch of 128 found")
            found.savefig(part, format="png", dpi=110)
    if (table := steps[0].get("efficiency_ablation")) is not None and EFFICIENCY[0] in page.read_text(encoding="utf-8"):
        put_on_page(page, efficiency_block(table), EFFICIENCY)


def _read(folder: str) -> tuple[Study, Results]:
    return load_study(None, folder), Results(folder)


def _only(study: Study, runs: Sequence[str]) -> Study:
    """Return the study with tables of these runs alone, so that the first is what the others are compared with."""
    tables = {name: [run for run in runs if run in listed] for name, listed in study.config["tables"].items()}
    return Study({**study.config, "tables": tables})


def put_on_page(page: Path, block: str, marks: tuple[str, str] = (BEGIN, END)) -> None:
    """Write ``block`` between the marks of a page and print it. UserError unless they are there once each, in order."""
    first, last = marks
    before, begin, rest = (page.read_text(encoding="utf-8") if page.is_file() else "").partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end or first in after or last in after:
        raise UserError(f"{page} needs the lines {first} and {last} once each, in this order")
    with replacing(page) as part:
        part.write_text(f"{before}{first}\n{block}\n{last}{after}", encoding="utf-8")
    print(block)


def _block(heads: Sequence[str], lines: Sequence[Line], note: str) -> str:
    """Return a table in GitHub's Markdown with a note below it, in lines of README's width."""
    table = render(Grid(list(map(Head, heads)), lines), "markdown")
    return "\n".join([table, *textwrap.wrap(note, 118, break_long_words=False)])


def results_block(study: Study, steps: Sequence[Mapping[str, Table]], runs: Sequence[str], results: Results) -> str:
    """Return the table and the sentences below it, in GitHub's Markdown.

    steps: the tables of each run but the first, with the one before it.
    """
    lines, trainings, compared = [], 1, False
    for heading, name, column in ROWS:
        if name in steps[0]:
            base = _cell(steps[0][name], column, runs[0])
            ours = [_cell(tables[name], column, run) for tables, run in zip(steps, runs[1:], strict=True)]
            trainings = max(trainings, *(cell.seeds for cell in ours))
            compared = compared or any(cell.less is not None for cell in ours)
            chance = Shown("" if base.chance is None else chance_text(base.chance))
            shown = [chance, *map(_shown, [base, *ours]), *map(_difference, ours)]
            lines.append(Line(heading, shown))
    labels = [study.label(run) for run in runs]
    less = [f"{ours} less {base}" for base, ours in pairwise(labels)]
    spread = (
        f"means of {trainings} trainings of each model, with 95 % intervals over trainings and test images."
        if trainings > 1
        else "one training of each model, with 95 % intervals over the test images."
    )
    asked = "" if trainings == _seeds_by_default("demo") else f" SEEDS={trainings}"
    note = [f"From `make demo{asked}`, in percent: {spread}"]
    if compared:
        note.append(TOO_FEW if trainings < FEWEST else STARRED)
    note += _prices(study, runs, results)
    note.append(f"`{results.folder}/tables/` has all columns and rows.")
    return _block(["chance", *labels, *less], lines, " ".join(note))


def binding_block(study: Study, tables: Mapping[str, Table], results: Results) -> str:
    """Return the table of which colour belongs to which thing: a row a model, with its size and its seconds."""
    heads = ["numbers a side", "CPU s"]
    for heading, name, column in BINDING_COLUMNS:
        chance = next(c for row in tables[name].rows if (c := row.cells[column].chance) is not None)
        heads.append(f"{heading} (chance {chance_text(chance)})")
    rows = sorted(study.rows("selection"), key=lambda run: run not in study.peers)
    entries = {run: [entry for member in study.replicas(run) if (entry := results.training(member))] for run in rows}
    lines, trainings = [], max(map(len, entries.values()))
    for run, trained in entries.items():
        job = results.folder / "benchmarks" / "evaluate" / f"{run}.tsv"
        if trained:
            count, dim = vectors(trained[0]["config"]["model"])
            numbers = f"{count} x {dim}" if count > 1 else f"{dim:,}"
            seconds = f"{fmean(entry['processor_seconds'] for entry in trained):.0f}"
        elif run in study.peers:  # fitted when it is evaluated, in one job
            numbers = (results.evaluation(run, "retrieval") or {}).get("numbers", "")
            seconds = f"{float(job.read_text().split()[-1]):.0f}, with its evaluation" if job.is_file() else ""
        else:
            continue
        shown = [Shown(numbers), Shown(seconds)]
        for _, name, column in BINDING_COLUMNS:
            cell = _cell(tables[name], column, run)
            shown.append(Shown("–") if cell == Cell() else _shown(cell))  # a peer in no such table has no patches
        fewer = f" ({len(trained)} trainings)" if trained and len(trained) < trainings else ""
        lines.append(Line(study.label(run) + fewer, shown))
    asked = "" if trainings == _seeds_by_default(study.name) else f" SEEDS={trainings}"
    note = (
        f"From `make run STUDY={study.name}{asked}` and `python -m bench.readme`, in percent: means of {trainings} "
        "trainings, with 95 % intervals over trainings and test images. CPU s: user and system, of a training's steps."
    )
    return _block(heads, lines, note)


def binding_figure(study: Study, tables: Mapping[str, Table], results: Results) -> Figure:
    """Draw how often the true caption is preferred to one with two colours exchanged, over the numbers a side."""
    figure, (axis,) = plots.grid(1, 1, 6.5, 3.6)
    shown = looks(study)
    for run in study.rows("selection"):
        trained = [entry for member in study.replicas(run) if (entry := results.training(member))]
        cell = _cell(tables["selection"], BINDING_COLUMNS[0][2], run)
        if not trained or not isinstance(cell.value, float):
            continue
        count, dim = vectors(trained[0]["config"]["model"])
        ends = [[100 * abs(cell.value - end)] for end in cell.ci95] if cell.ci95 else None
        seconds = fmean(entry["processor_seconds"] for entry in trained)
        label, colour = f"{study.label(run)}: {seconds:.0f} s", shown[run].colour
        marker = "s" if count > 1 else "o"  # there are more models than colours
        axis.errorbar(count * dim, 100 * cell.value, ends, fmt=marker, color=colour, capsize=2, label=label)
    axis.set_xscale("log", base=2)
    axis.legend(loc="lower right")
    axis.set_xlabel("numbers that an image keeps")
    axis.set_ylabel("exchanged colours rejected, % (chance 50)")
    axis.grid(True, axis="y")
    return figure


def efficiency_block(table: Table) -> str:
    """Return the paper's Table 5 in small: a step's time and memory over the pooled model's, here and in the paper."""
    ours, paper = ([row for row in table.rows if row.kind == kind] for kind in ("ours", "paper"))
    heads = [f"{what}, {where}" for what in ("time", "memory") for where in ("here", "paper")]
    lines = []
    for here, there in zip(ours, paper, strict=False):
        numbers = [row.cells[key].number for key in ("time_ratio", "memory_ratio") for row in (here, there)]
        lines.append(Line(f"{here.label} ({there.label})", [Shown("" if n is None else f"{n:.2f}") for n in numbers]))
    note = (
        "From `make demo`: the median step of two ranks, each with the work of one of 64 (32 pairs, 2,048 texts), all "
        "rows in turn, over the pooled one's; the paper's is on 8 V100. Memory: a step's beyond weights and optimiser."
    )
    return _block(heads, lines, note)


def ablation_block(table: Table, published: Mapping[str, Any]) -> str:
    """Return the paper's Table 4 in small: what each component adds to the baseline, here and in the paper."""
    paper = [dict(zip(published["columns"], numbers, strict=True)) for numbers in list(published.values())[1:]]
    heads = [head for column in ABLATION_COLUMNS for head in (column[0], "gain", f"gain, paper, {column[2]}")]
    lines = []
    for row, theirs in zip(table.rows, paper, strict=True):
        shown = []
        for _, ours, _, benchmark in ABLATION_COLUMNS:
            value, base = (r.cells[ours].number or 0.0 for r in (row, table.rows[0]))
            gains = 100 * (value - base), theirs[benchmark] - paper[0][benchmark]
            shown += [_shown(row.cells[ours]), *(Shown("" if row is table.rows[0] else f"{g:+.1f}") for g in gains)]
        lines.append(Line(row.label, shown))
    trainings = max(cell.seeds for row in table.rows for cell in row.cells.values())
    note = f"From `make run STUDY=demo_ablation`, in percent: means of {trainings} trainings of each model."
    return _block(heads, lines, note)


def _seeds_by_default(study: str) -> int:
    return int(yaml.safe_load((CONFIGS / f"{study}.yaml").read_text(encoding="utf-8"))["seeds"])


def _prices(study: Study, runs: Sequence[str], results: Results) -> list[str]:
    """Return a sentence with the seconds of a training and the size of an image of each run, as far as known."""
    found = []
    for run in runs:
        trained = [entry for member in study.replicas(run) if (entry := results.training(member))]
        seconds = [entry["training_seconds"] for entry in trained if "training_seconds" in entry]
        if seconds and "model" in trained[0].get("config", {}):
            count, dim = vectors(trained[0]["config"]["model"])
            # the quickest: other work on the machine only adds
            found.append(f"{study.label(run)} {min(seconds):.0f} s and {4 * count * dim / 1000:.1f} kB")
    return [f"A training takes two cores, and a picture's vectors: {', '.join(found)}."] if found else []


def vectors(model: Mapping[str, Any]) -> tuple[int, int]:
    """Return the number of vectors of an image that a model above a stem compares, and their width."""
    config = config_from_dict(dict(model))
    side = config.image.image_size // (config.image.stem_stride * config.image.stem_cells)
    return 1 if config.interaction == "pooled" else side**2, config.compared_dim


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
    shown.interval += " *" if less.holds else ""
    return shown


if __name__ == "__main__":
    run_command(main, Readme)
