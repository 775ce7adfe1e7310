"""One summary of a study: ``python -m filip.report.summary results=results/demo``, after ``filip.report.tables``.

``summary.json`` has ``stages`` (seconds by stage), ``funnel`` (by stage: in, out, dropped by reason), ``tables``
(each cell with value, chance, n) and ``runs`` (config, commit, samples per second). ``filip report page`` and
``filip report show`` are for people.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filip.command import MISSING, option, run_command
from filip.errors import UserError
from filip.files import write_json
from filip.report.results import Results
from filip.report.table import Table
from filip.study import Study, load_study

RUN_FACTS = (  # what the summary takes over from the result of a training
    *("config", "commit", "samples_per_second", "seconds_per_iteration", "peak_memory_mb", "steps", "epochs"),
    *("world_size", "global_batch", "precision", "final", "manifest_hashes", "started", "finished"),
)


@dataclass
class Summary:
    results: str = option(MISSING, "results of a study, e.g. results/demo")
    study: str | None = option(
        None, "study config; null = RESULTS/study.json, which the results were made with"
    )
    out: str | None = option(None, "the summary, JSON; null = RESULTS/summary.json", writes="file")


def main(config: Summary) -> None:
    """Write what a study has found as one JSON."""
    study, results = load_study(config.study, config.results), Results(config.results)
    content = summary(study, results, results.tables())
    write_json(config.out or results.folder / "summary.json", content)


def summary(study: Study, results: Results, tables: Mapping[str, Table]) -> dict[str, Any]:
    """The content of summary.json."""
    return {
        "stages": stage_seconds(results.folder / "benchmarks"),
        "funnel": results.funnel(),
        "tables": {name: _plain(table) for name, table in tables.items()},
        "runs": _runs(study, results),
    }


def stage_seconds(folder: Path) -> dict[str, float]:
    """Seconds by stage from Snakemake's benchmark files, longest first; a stage is a file's path without ``.tsv``.

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


def _plain(table: Table) -> dict[str, Any]:
    """A table as {columns, rows: [{label, kind, run, commit, cells: {column: {value, chance, n, …}}}]}."""
    content = table.as_json()
    for row in content["rows"]:
        for column in table.columns:
            row["cells"].setdefault(
                column.key, {"value": None, "chance": None, "n": None, "reason": "not reported"}
            )
    return content


def _runs(study: Study, results: Results) -> dict[str, Any]:
    runs = {}
    for name in study.trained:
        runs[name] = _run(study.label(name), results.training(name), results.run_id(name))
    for name in study.efficiency:
        runs[f"efficiency/{name}"] = _run(study.label(name), results.efficiency(name), results.run_id(name))
    return runs


def _run(label: str, result: dict[str, Any] | None, run_id: str | None) -> dict[str, Any]:
    found = result or {}
    return {
        "label": label,
        "run_id": run_id,
        "trained": result is not None,
        **{key: found.get(key) for key in RUN_FACTS},
    }


if __name__ == "__main__":
    run_command(main, Summary)
