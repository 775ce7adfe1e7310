"""The report's figures: ``python -m filip.report.figures results=results/demo``, after ``filip.report.tables``.

Always written: loss_curves, funnel, augmentation, recall, confusion; zero_shot, component_ablation and efficiency where
the study has them. SVG (augmentation: PNG); with ``png=true`` the plots also as PNG. A figure without data says what is
missing. A run has the same colour in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from filip.command import MISSING, option, run_command
from filip.data.loading.config import AugmentConfig
from filip.eval.pictures.drawing import Cell, sheet
from filip.files import replacing
from filip.progress import say
from filip.report import plots, table_plots
from filip.report.preview import augmentation_sheet, read_samples
from filip.report.results import Results
from filip.report.style import looks
from filip.report.table import Table
from filip.study import Study, load_study
from filip.train.telemetry import read_log

PREVIEWS = 8  # samples in the augmentation preview: one row


@dataclass
class Figures:
    results: str = option(MISSING, "results of a study, e.g. results/demo")
    study: str | None = option(
        None, "study config; null = RESULTS/study.json, which the results were made with"
    )
    out_dir: str | None = option(None, "folder for the figures; null = RESULTS/figures", writes="folder")
    data_dir: str | None = option(
        None, "where <source>/shards and <source>/captions lie; RESULTS/data if null"
    )
    image_size: int | None = option(
        None, "side of the augmented previews; the training's if null", at_least=1
    )
    png: bool = option(False, "write the plots as PNG too")


def main(config: Figures) -> None:
    """Write every figure of a study."""
    study, results = load_study(config.study, config.results), Results(config.results)
    out = Path(config.out_dir or results.folder / "figures")
    tables = results.tables()
    out.mkdir(parents=True, exist_ok=True)
    look = looks(study)
    figures = {
        "loss_curves": plots.curves(
            training_logs(study, results), {study.label(r): found for r, found in look.items()}
        ),
        "funnel": plots.funnel(results.funnel()),
    }
    if "component_ablation" in tables:
        figures["component_ablation"] = table_plots.benchmark_dots(tables["component_ablation"], look)
    if "efficiency_ablation" in tables:
        figures["efficiency"] = table_plots.efficiency_scatter(tables["efficiency_ablation"], look)
    recalls = tables.get("retrieval") or tables.get("component_ablation") or Table("recall", "", [], [])
    figures["recall"] = table_plots.recall_curves(recalls, look)
    if "zero_shot" in tables:
        figures["zero_shot"] = table_plots.benchmark_dots(tables["zero_shot"], look)
    figures["confusion"] = _confusion(study, results, tables)
    for name, figure in figures.items():
        _save(figure, out / name, config.png)
    _save_image(_preview(study, results, config), out / "augmentation.png")


def _confusion(study: Study, results: Results, tables: Mapping[str, Table]) -> Figure:
    """Draw the mistakes of the last classifying row that was evaluated; of its first seed, if it has several."""
    titles = {column.key: column.title for table in tables.values() for column in table.columns}
    for run in reversed(study.rows("zero_shot") or study.rows("component_ablation")):
        entry = results.evaluation(run, "zero_shot")
        if entry and entry["benchmarks"]:
            label = study.label(run) + (", first seed" if len(study.replicas(run)) > 1 else "")
            named = {
                name: titles.get(name) or titles.get(f"{name}_top1", name) for name in entry["benchmarks"]
            }
            shown = {named[name]: task for name, task in entry["benchmarks"].items()}
            return table_plots.confusions(shown, label, looks(study)[run])
    return table_plots.confusions({}, "")


def training_logs(study: Study, results: Results) -> dict[str, list[list[dict[str, Any]]]]:
    """Return {label: the logs of a run and of its repetitions with other seeds}, for every run that has one."""
    logs = {}
    for run in study.trained:
        if study.is_replica(run):
            continue
        folders = [results.run_dir(seed) for seed in study.replicas(run)]
        files = [folder / "log.jsonl" for folder in folders if folder]
        if found := [read_log(file)[0] for file in files if file.is_file()]:
            logs[study.label(run)] = found
    return logs


def _preview(study: Study, results: Results, config: Figures) -> Image.Image:
    base = Path(config.data_dir) if config.data_dir else results.folder / "data"
    samples = []
    for source in study.sources:
        samples += read_samples(base / source / "shards", base / source / "captions", PREVIEWS)
    if not samples:
        empty = Cell(Image.new("RGB", (640, 40), "white"), f"no shards below {base}")
        return sheet([empty], 1, "What training sees", cell_width=640)
    settings = _trained(study, results)
    size = config.image_size or int(
        ((settings.get("model") or {}).get("image") or {}).get("image_size") or 224
    )
    data = settings.get("data") or {}
    names = {field.name for field in fields(AugmentConfig)} - {
        "auto_augment"
    }  # a preview shows it in any case
    augment = AugmentConfig(**{name: value for name, value in data.items() if name in names})
    return augmentation_sheet(samples[:PREVIEWS], size, augment=augment)


def _trained(study: Study, results: Results) -> dict[str, Any]:
    """Return the settings of the first finished pre-training that augments its images, else of the first finished."""
    found = [results.training(run) or {} for run in study.trained if run not in study.fine_tunes]
    settings = [entry["config"] for entry in found if entry.get("config")]
    augmented = [s for s in settings if (s.get("data") or {}).get("auto_augment")]
    return next(iter([*augmented, *settings]), {})


def _save(figure: Figure, stem: Path, png: bool) -> None:
    for extension in ("svg", "png") if png else ("svg",):
        with replacing(stem.with_suffix(f".{extension}")) as part:
            # Without the date, so that equal results give equal files.
            metadata = {"Date": None} if extension == "svg" else {}
            figure.savefig(part, format=extension, metadata=metadata)
    say(str(stem.with_suffix(".svg")))


def _save_image(image: Image.Image, path: Path) -> None:
    with replacing(path) as part:
        image.save(part, format="PNG", optimize=True)
    say(str(path))


if __name__ == "__main__":
    run_command(main, Figures)
