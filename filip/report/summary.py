"""Write one summary of a study: ``python -m filip.report.summary results=results/demo``, after ``filip.report.tables``.

``summary.json`` has ``stages`` (seconds by stage), ``funnel`` (by stage: in, out, dropped by reason), ``tables``
(each cell with value, chance, n), ``search`` (each run's scores by the values that were tried) and ``runs`` (of every
training: config, commit, CPU, seconds, hashes of its data, its results, and its curve). It is the record of a study:
records/README.md. ``filip report page`` and ``filip report show`` are for people.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from textwrap import shorten
from typing import Any

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError
from filip.common.files import write_json
from filip.common.table_writer import Grid, Head, Line, words
from filip.report.results import Results
from filip.report.table import Table
from filip.study import PROTOCOLS, Study, load_study
from filip.study.search import best_values, scores
from filip.train.telemetry import LOG, read_log, scalars

RUN_FACTS = (  # taken over from the result of a training
    *("config", "commit", "cpu", "samples_per_second", "seconds_per_iteration", "training_seconds"),
    *("processor_seconds", "peak_memory_mb", "steps", "epochs", "world_size", "global_batch", "precision", "final"),
    *("manifest_hashes", "feature_maps", "started", "finished"),
)


@dataclass
class Summary:
    results: str = option(MISSING, "results of a study, e.g. results/demo")
    study: str | None = option(None, "study config; null = RESULTS/study.json, which the results were made with")
    out: str | None = option(None, "the summary, JSON; null = RESULTS/summary.json", writes="file")


def main(config: Summary) -> None:
    """Write the results of a study as one JSON."""
    study, results = load_study(config.study, config.results), Results(config.results)
    content = summary(study, results, results.tables())
    write_json(config.out or results.folder / "summary.json", content)


def summary(study: Study, results: Results, tables: Mapping[str, Table]) -> dict[str, Any]:
    """Return the content of summary.json."""
    runs = {}
    for name in study.trained:
        runs[name] = _run(study.label(name), results.training(name), results.run_id(name))
        runs[name] |= {"found": _found(results, name), "curve": _curve(results, name)}
    for name in study.efficiency:
        runs[f"efficiency/{name}"] = _run(study.label(name), results.efficiency(name), results.run_id(name))
    return {
        "stages": stage_seconds(results.folder / "benchmarks"),
        "funnel": results.funnel(),
        "tables": {name: table.as_json() for name, table in tables.items()},
        "search": searches(study, results),
        "runs": runs,
    }


def stage_seconds(folder: Path) -> dict[str, float]:
    """Read seconds by stage from Snakemake's benchmark files, longest first; a stage is a file's path without ``.tsv``.

    A file of several repetitions counts with their mean. Raises UserError for a file that has no column ``s``.
    """
    seconds = {}
    for file in sorted(folder.rglob("*.tsv")):
        with open(file, newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t"))
        try:
            values = [float(row["s"]) for row in rows]
        except (KeyError, ValueError) as error:
            raise UserError(f"{file} is not one of Snakemake's benchmark files: {error!r}") from error
        if values:
            seconds[file.relative_to(folder).with_suffix("").as_posix()] = sum(values) / len(values)
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def _run(label: str, result: dict[str, Any] | None, run_id: str | None) -> dict[str, Any]:
    facts = result or {}
    return {
        "label": label,
        "run_id": run_id,
        "trained": result is not None,
        **{key: facts.get(key) for key in RUN_FACTS},
    }


def _found(results: Results, run: str) -> dict[str, float]:
    """Return the headline figures of a run's evaluations, e.g. {"retrieval/demo_scenes_new_i2t_r1": 0.61}."""
    return {
        f"{protocol}/{benchmark}{tag}": value
        for protocol in PROTOCOLS
        for benchmark, numbers in (results.evaluation(run, protocol) or {}).get("benchmarks", {}).items()
        for tag, value in scalars(numbers).items()
    }


def _curve(results: Results, run: str) -> list[dict[str, float]]:
    """Return the measurements of a training while it learned, by step, with the seconds of the steps until then."""
    file = results.run_dir(run)
    lines = read_log(file / LOG)[0] if file and (file / LOG).is_file() else []
    return [
        {key: value for key, value in line.items() if key == "step" or key.startswith(("time/", "eval/"))}
        for line in lines
        if any(key.startswith("eval/") for key in line)
    ]


def searches(study: Study, results: Results) -> dict[str, Any]:
    """Return by run its settings, the score of each combination of values by seed, and the best values.

    A run with a trial that is not there yet is left out.
    """
    by_run = {}
    for run in study.runs:
        trials = [results.training(trial) for trial in study.trials_of(run)]
        if trials and all(trials) and (searched := study.searched(run)):
            card = study.config["search"]["card"]
            by_values = scores([trial for trial in trials if trial], searched[1], card)
            tried = [{"values": list(values), "scores": by_seed} for values, by_seed in by_values.items()]
            best = list(best_values(by_values, card))
            by_run[run] = {"card": card, "settings": searched[1], "tried": tried, "best": best}
    return by_run


# ---- as tables, for the page and the terminal ----------------------------------------------------------


def funnel_grid(funnel: Sequence[Mapping[str, Any]]) -> Grid:
    """Return how many pairs each stage of each source kept, and below it why it dropped others, with some of them."""
    lines = []
    for stage in funnel:
        dropped, notes = stage["dropped"], stage.get("notes", {})
        samples = {**notes.get("examples", {}), **notes.get("samples", {})}
        counts = (f"{count:,}" for count in (stage["in"], stage["out"], sum(dropped.values())))
        shown = words(stage.get("source") or "", *counts, stage.get("unit") or "pairs", "")
        lines.append(Line(stage["stage"].replace("_", " "), shown))
        for reason, count in dropped.items():
            lines.append(
                Line(
                    f"· {reason.replace('_', ' ')}",
                    words("", "", "", f"{count:,}", "", _some(samples.get(reason, []))),
                    kind="difference",
                )
            )
    heads = [
        Head("source", words=True),
        *map(Head, ("in", "out", "dropped")),
        Head("unit", words=True),
        Head("for example", words=True),
    ]
    return Grid(heads, lines, "Data funnel", corner="stage")


def _some(samples: Sequence[str | Mapping[str, Any]], most: int = 3) -> str:
    """Return the first of the captions or addresses that a rule dropped."""
    texts = [str(sample if isinstance(sample, str) else sample.get("caption") or "") for sample in samples]
    return " · ".join(shorten(text, 100, placeholder="…") for text in list(filter(None, texts))[:most])


def search_grid(study: Study, by_run: Mapping[str, Mapping[str, Any]]) -> Grid:
    """Return a row for each run and combination of values: the mean score over the seeds, and whether it was taken."""
    lines = []
    for run, search in by_run.items():
        for number, tried in enumerate(search["tried"]):
            values = ", ".join(
                f"{name} {value}" for name, value in zip(search["settings"], tried["values"], strict=True)
            )
            mean = f"{100 * fmean(tried['scores'].values()):.1f}"
            at_edge = len(search["settings"]) == 1 and number in (0, len(search["tried"]) - 1)
            edge = ", at the edge of the grid" if at_edge else ""
            taken = f"taken{edge}" if tried["values"] == search["best"] else ""
            lines.append(Line(study.label(run), words(values, mean, str(len(tried["scores"])), taken)))
    card = study.config["search"]["card"]
    heads = [Head("values", words=True), Head(f"score on {card}, %"), Head("seeds"), Head("", words=True)]
    return Grid(heads, lines, "The search: settings of which each run takes the best values", corner="run")


if __name__ == "__main__":
    run_command(main, Summary)
