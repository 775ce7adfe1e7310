"""One summary of a study: ``python -m filip.report.summary results=results/demo``, after ``filip.report.tables``.

``summary.json`` has ``stages`` (seconds by stage), ``funnel`` (by stage: in, out, dropped by reason), ``tables``
(each cell with value, chance, n) and ``runs`` (config, commit, samples per second). The page shows the same,
with the attribution of the images.
"""

from __future__ import annotations

import csv
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filip.command import MISSING, option, run_command
from filip.errors import UserError
from filip.files import replacing, write_json
from filip.report.formats.html import page, table_html
from filip.report.formats.text import short_commit
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
    out: str | None = option(None, "the summary, JSON; null = RESULTS/summary.json")
    page: str | None = option(None, "the summary as an HTML page; null = RESULTS/summary.html")
    attribution: str | None = option(None, "attribution.json; RESULTS/corpus/attribution.json if null")


def main(config: Summary) -> None:
    """Write summary.json and the page."""
    study, results = load_study(config.study, config.results), Results(config.results)
    tables = results.tables()
    content = summary(study, results, tables)
    credits = Path(config.attribution or results.folder / "corpus" / "attribution.json")
    attribution = json.loads(credits.read_text(encoding="utf-8")) if credits.is_file() else {}
    with replacing(config.page or results.folder / "summary.html") as part:
        part.write_text(_page(study, content, tables, attribution), encoding="utf-8")
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


# ---- the page ------------------------------------------------------------------------------------------


def _page(
    study: Study, content: dict[str, Any], tables: Mapping[str, Table], attribution: Mapping[str, Any]
) -> str:
    parts = [f"<h2>{html.escape(table.title)}</h2>{table_html(table)}" for table in tables.values()]
    parts += [_stages_html(content["stages"]), _funnel_html(content["funnel"]), _runs_html(content["runs"])]
    if attribution:
        parts.append(_attribution_html(attribution))
    return page(study.title, "\n".join(parts))


def _table_html(heads: list[str], rows: list[list[str]], text: tuple[int, ...] = ()) -> str:
    """rows hold HTML already; columns in ``text`` are words, not numbers."""
    mark = [' class="text"' if i in text else "" for i in range(len(heads))]
    head = "".join(f"<th{m}>{html.escape(h)}</th>" for h, m in zip(heads, mark, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{m}>{cell}</td>" for cell, m in zip(row, mark, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>{body}</table></div>'


def _stages_html(stages: Mapping[str, float]) -> str:
    total = sum(stages.values())
    longest = max(stages.values(), default=1.0)
    rows = [
        [
            html.escape(name),
            f"{seconds:,.1f}",
            f'<span class="bar" style="width:{max(1, 220 * seconds / longest):.0f}px"></span>',
        ]
        for name, seconds in stages.items()
    ]
    rows.append(
        [
            "<b>sum</b>",
            f"<b>{total:,.1f}</b>",
            f"{total / 60:.1f} minutes, counting stages that ran at the same time in full",
        ]
    )
    return "<h2>Time of each stage</h2>" + _table_html(["stage", "seconds", ""], rows, (2,))


def _funnel_html(funnel: list[dict[str, Any]]) -> str:
    rows = [
        [
            html.escape(str(stage.get("source", ""))),
            html.escape(str(stage["stage"])),
            f"{stage['in']:,}",
            f"{stage['out']:,}",
            f"{sum(stage['dropped'].values()):,}",
            html.escape(str(stage.get("unit", "pairs"))),
            html.escape(
                ", ".join(f"{reason} {count:,}" for reason, count in stage["dropped"].items()) or "nothing"
            ),
        ]
        for stage in funnel
    ]
    heads = ["source", "stage", "in", "out", "dropped", "unit", "dropped because"]
    return "<h2>Data funnel</h2>" + _table_html(heads, rows, (1, 5, 6))


def _runs_html(runs: Mapping[str, Any]) -> str:
    rows = []
    for name, run in runs.items():
        if not run["trained"]:
            rows.append([html.escape(run["label"]), html.escape(name), *["–"] * 6, "not run"])
            continue
        numbers = [run["steps"], run["global_batch"], run["samples_per_second"], run["seconds_per_iteration"]]
        memory = run["peak_memory_mb"]
        commit = html.escape(short_commit(run["commit"] or "–"))
        cells = ["–" if n is None else f"{n:,.4g}" if isinstance(n, float) else f"{n:,}" for n in numbers]
        peak = "–" if memory is None else f"{memory:,.0f}"
        run_id = html.escape(str(run["run_id"] or name))
        rows.append(
            [
                html.escape(run["label"]),
                run_id,
                *cells,
                peak,
                html.escape(str(run["precision"] or "–")),
                commit,
            ]
        )
    heads = ["run", "id", "steps", "batch", "pairs / s", "s / step", "peak MB", "precision", "commit"]
    return "<h2>Runs</h2>" + _table_html(heads, rows, (1, 7, 8))


def _attribution_html(attribution: Mapping[str, Any]) -> str:
    rows = []
    for name, entry in attribution.items():
        if not isinstance(entry, Mapping):
            continue
        title = html.escape(str(entry.get("title", name)))
        home, licence = (html.escape(str(entry.get(k, "")), quote=True) for k in ("homepage", "license_url"))
        rows.append(
            [
                f'<a href="{home}">{title}</a>' if home else title,
                html.escape(str(entry.get("author", ""))),
                f'<a href="{licence}">{html.escape(str(entry.get("license", "")))}</a>',
                html.escape(str(entry.get("role", ""))),
                f"{entry['images']:,}" if isinstance(entry.get("images"), int) else "",
                html.escape(str(entry.get("package", ""))),
                html.escape(str(entry.get("changes", ""))),
            ]
        )
    heads = ["set", "author", "licence", "used for", "images", "package", "changes"]
    return "<h2>Attribution</h2>" + _table_html(heads, rows, (1, 2, 3, 5, 6))


if __name__ == "__main__":
    run_command(main, Summary)
