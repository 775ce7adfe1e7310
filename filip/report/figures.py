"""The report's figures: ``python -m filip.report.figures results=results/demo``, after ``filip.report.tables``.

Always written: loss_curves, funnel, recall, confusion; zero_shot, component_ablation, efficiency and learning where the
study has them. SVG; with ``png=true`` also as PNG. A figure without data names the missing data. A run has the same
colour in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from filip.cli.command import MISSING, option, run_command
from filip.common.files import replacing
from filip.common.progress import say
from filip.eval.cards import load_card
from filip.report import plots, table_plots
from filip.report.results import Results
from filip.report.style import Look, looks
from filip.report.table import Table
from filip.study import Study, load_study
from filip.train.telemetry import read_log, score_on

Logs = dict[str, list[list[dict[str, Any]]]]  # of each seed of a run, by the run's label


@dataclass
class Figures:
    results: str = option(MISSING, "results of a study, e.g. results/demo")
    study: str | None = option(None, "study config; null = RESULTS/study.json, which the results were made with")
    out_dir: str | None = option(None, "folder for the figures; null = RESULTS/figures", writes="folder")
    png: bool = option(False, "write the plots as PNG too")


def main(config: Figures) -> None:
    """Write every figure of a study."""
    study, results = load_study(config.study, config.results), Results(config.results)
    out = Path(config.out_dir or results.folder / "figures")
    tables = results.tables()
    out.mkdir(parents=True, exist_ok=True)
    look = looks(study)
    logs = training_logs(study, results)
    figures = {"loss_curves": plots.curves(logs, by_label(study)), "funnel": plots.funnel(results.funnel())}
    if "component_ablation" in tables:
        figures["component_ablation"] = table_plots.benchmark_dots(tables["component_ablation"], look)
    if "efficiency_ablation" in tables:
        figures["efficiency"] = table_plots.efficiency_scatter(tables["efficiency_ablation"], look)
    recalls = tables.get("retrieval") or tables.get("component_ablation") or Table("recall", "", [], [])
    figures["recall"] = table_plots.recall_curves(recalls, look)
    if "zero_shot" in tables:
        figures["zero_shot"] = table_plots.benchmark_dots(tables["zero_shot"], look)
    if study.curve:
        figures["learning"] = _learning(study, study.curve["card"], logs)
    figures["confusion"] = _confusion(study, results, tables)
    for name, figure in figures.items():
        _save(figure, out / name, config.png)


def _confusion(study: Study, results: Results, tables: Mapping[str, Table]) -> Figure:
    """Draw the mistakes of the last classifying row that was evaluated, by its first seed if it has several."""
    titles = {column.key: column.title for table in tables.values() for column in table.columns}
    for run in reversed(study.rows("zero_shot") or study.rows("component_ablation")):
        entry = results.evaluation(run, "zero_shot")
        if entry and entry["benchmarks"]:
            label = study.label(run) + (", first seed" if len(study.replicas(run)) > 1 else "")
            named = {name: titles.get(name) or titles.get(f"{name}_top1", name) for name in entry["benchmarks"]}
            shown = {named[name]: task for name, task in entry["benchmarks"].items()}
            return table_plots.confusions(shown, label, looks(study)[run])
    return table_plots.confusions({}, "")


def _learning(study: Study, card: str, logs: Logs) -> Figure:
    title = f"R@1 of {load_card(card).title}, %"
    share = partial(score_on, card)
    if study.config["launch"].get("accelerator") == "cpu":
        return plots.learning(logs, by_label(study), share, title)
    return plots.learning(logs, by_label(study), share, title, ("time/seconds", "seconds of the steps"))


def by_label(study: Study) -> dict[str, Look]:
    """Return the look of every run by the label that it has in figures."""
    return {study.label(run): look for run, look in looks(study).items()}


def training_logs(study: Study, results: Results) -> Logs:
    """Return {label: the logs of a run and of its repetitions with other seeds}, for every run that has one."""
    logs = {}
    for run in [*study.runs, *study.fine_tunes]:
        if study.is_replica(run):
            continue
        folders = [results.run_dir(seed) for seed in study.replicas(run)]
        files = [folder / "log.jsonl" for folder in folders if folder]
        if found := [read_log(file)[0] for file in files if file.is_file()]:
            logs[study.label(run)] = found
    return logs


def _save(figure: Figure, stem: Path, png: bool) -> None:
    for extension in ("svg", "png") if png else ("svg",):
        with replacing(stem.with_suffix(f".{extension}")) as part:
            # Without the date, so that equal results give equal files.
            metadata = {"Date": None} if extension == "svg" else {}
            figure.savefig(part, format=extension, metadata=metadata)
    say(str(stem.with_suffix(".svg")))


if __name__ == "__main__":
    run_command(main, Figures)
