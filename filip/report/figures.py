"""The report's figures: ``python -m filip.report.figures study=… results=results/demo out_dir=…``.

Always written: loss_curves, funnel, augmentation; component_ablation, efficiency, recall, confusion where the
study has them. PNG; with ``vector=true`` the plots also as SVG. What is missing is said in the figure.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from filip.command import MISSING, option, run_command
from filip.data.atomic import replacing
from filip.eval.pictures import Cell, sheet
from filip.report import plots
from filip.report.build import build_tables, load_published
from filip.report.preview import augmentation_sheet, read_samples
from filip.report.study import Results, Study, load_study

__all__ = ["Figures", "main", "read_log"]


@dataclass
class Figures:
    study: str = option(MISSING, "study config, e.g. workflow/config/demo.yaml")
    results: str = option(MISSING, "its results, e.g. results/demo")
    out_dir: str = option(MISSING, "folder for the figures")
    data_dir: str | None = option(
        None, "where <source>/shards and <source>/captions lie; RESULTS/data if null"
    )
    published: str = option("eval/published.yaml", "published numbers")
    cards: str = option("eval", "folder of the benchmark cards")
    image_size: int | None = option(None, "side of the augmented previews; the training's if null")
    previews: int = option(8, "samples in the augmentation preview")
    vector: bool = option(False, "write the plots as SVG too")


def main(config: Figures) -> None:
    """Write every figure of a study."""
    study, results = load_study(config.study), Results(config.results)
    out = Path(config.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    tables = build_tables(study, results, load_published(config.published), Path(config.cards))
    figures = {"loss_curves": plots.curves(_logs(study, results)), "funnel": plots.funnel(results.funnel())}
    if "component_ablation" in tables:
        figures["component_ablation"] = plots.ablation_bars(tables["component_ablation"])
    if "efficiency_ablation" in tables:
        figures["efficiency"] = plots.efficiency_scatter(tables["efficiency_ablation"])
    figures |= _evaluation_plots(study, results)
    for name, figure in figures.items():
        _save(figure, out / name, config.vector)
    _save_image(_preview(study, results, config), out / "augmentation.png")


def _evaluation_plots(study: Study, results: Results) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    retrieval = {run: results.evaluation(run, "retrieval") for run in study.rows("retrieval")}
    first = next(iter(study.benchmarks("retrieval")), None)
    curves = {
        study.label(run): entry["benchmarks"][first]
        for run, entry in retrieval.items()
        if entry and first in entry["benchmarks"]
    }
    if curves and first:
        found["recall"] = plots.recall_curves(curves, first)
    run = next((r for r in reversed(study.rows("zero_shot")) if results.evaluation(r, "zero_shot")), None)
    entry = results.evaluation(run, "zero_shot") if run else None
    if entry and entry["tasks"]:
        found["confusion"] = plots.confusions(entry["tasks"])
    return found


def _logs(study: Study, results: Results) -> dict[str, list[dict[str, Any]]]:
    logs = {}
    for run in study.trained:
        folder = results.run_dir(run)
        if folder and (folder / "log.jsonl").is_file():
            logs[study.label(run)] = read_log(folder / "log.jsonl")
    return logs


def read_log(path: Path) -> list[dict[str, Any]]:
    """The measurements of a run's log.jsonl (events and a line cut short by a kill are passed over)."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "step" in entry and "event" not in entry:
            lines.append(entry)
    return lines


def _preview(study: Study, results: Results, config: Figures) -> Image.Image:
    base = Path(config.data_dir) if config.data_dir else results.folder / "data"
    samples = []
    for source in study.sources:
        samples += read_samples(base / source / "shards", base / source / "captions", config.previews)
    if not samples:
        empty = Cell(Image.new("RGB", (640, 40), "white"), f"no shards below {base}")
        return sheet([empty], 1, "What training sees", cell_width=640)
    size = config.image_size or _trained_size(study, results) or 224
    return augmentation_sheet(samples[: config.previews], size)


def _trained_size(study: Study, results: Results) -> int | None:
    """The image size that the first finished run was trained at."""
    for run in study.trained:
        settings = (results.training(run) or {}).get("config", {})
        image = (settings.get("model") or {}).get("image")
        if isinstance(image, dict) and image.get("image_size"):
            return int(image["image_size"])
    return None


def _save(figure: Figure, stem: Path, vector: bool) -> None:
    for extension in ("png", "svg") if vector else ("png",):
        with replacing(stem.with_suffix(f".{extension}")) as part:
            # Without the date, so that equal results give equal files.
            metadata = {"Date": None} if extension == "svg" else {}
            figure.savefig(part, format=extension, metadata=metadata)
    plt.close(figure)
    print(stem.with_suffix(".png"), file=sys.stderr, flush=True)


def _save_image(image: Image.Image, path: Path) -> None:
    with replacing(path) as part:
        image.save(part, format="PNG", optimize=True)
    print(path, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main, Figures)
