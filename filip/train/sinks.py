"""Further places for the numbers of a run, by name (``log_to``): Weights & Biases, trackio and MLflow.

TensorBoard and log.jsonl have them in any case. A place that fails later is left out, and a line says so.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from filip.errors import UserError
from filip.files import digest
from filip.progress import say

PROJECT = "filip"
Numbers = Mapping[str, float]


class Sink:
    """A place for numbers: ``record(step, numbers)`` and ``close()``."""

    def __init__(self, name: str, log: Callable[[int, Numbers], Any], end: Callable[[], Any]) -> None:
        self.name, self.log, self.end = name, log, end
        self.works = True

    def record(self, step: int, numbers: Numbers) -> None:
        self._attempt(lambda: self.log(step, numbers))

    def close(self) -> None:
        self._attempt(self.end)

    def _attempt(self, call: Callable[[], Any]) -> None:
        try:
            if self.works:
                call()
        except Exception as error:
            self.works = False
            say(f"log_to={self.name} has failed and gets no more numbers of this start: {error}")


def _like_wandb(name: str, run: str, folder: Path, settings: dict[str, Any]) -> Sink:
    """Open Weights & Biases, or trackio, which has the same functions. A resumed run goes on there, too."""
    module = importlib.import_module(name)
    place: dict[str, Any] = {"name": run}
    if name == "wandb":
        place |= {"id": digest(str(folder.resolve()))[:16], "dir": str(folder)}
    module.init(project=PROJECT, config=settings, resume="allow", **place)
    return Sink(name, lambda step, numbers: module.log(dict(numbers), step=step), module.finish)


def _mlflow(name: str, run: str, folder: Path, settings: dict[str, Any]) -> Sink:
    """Open MLflow. ``run_dir/mlflow`` has the id of the run there, with which a later start goes on."""
    mlflow = importlib.import_module(name)
    known = folder / "mlflow"
    mlflow.set_experiment(PROJECT)
    opened = mlflow.start_run(known.read_text() if known.is_file() else None, run_name=run)
    known.write_text(opened.info.run_id)
    mlflow.log_params(settings)
    return Sink(name, lambda step, numbers: mlflow.log_metrics(dict(numbers), step=step), mlflow.end_run)


SINKS = {"wandb": _like_wandb, "trackio": _like_wandb, "mlflow": _mlflow}


def check_sink(name: str | None) -> None:
    """Raise UserError if ``log_to`` names no place, or one whose package is not installed."""
    if name is None:
        return
    if name not in SINKS:
        raise UserError(f"log_to={name!r} is unknown; choose one of {', '.join(SINKS)}")
    if PathFinder.find_spec(name) is None:
        raise UserError(f"log_to={name} needs the package {name}, which is not installed: pip install {name}")


def open_sink(name: str | None, run: str, folder: Path, settings: dict[str, Any]) -> Sink | None:
    """Open the place that ``log_to`` names for the run in ``folder``; None without one.

    Raises UserError if it cannot be opened.
    """
    if name is None:
        return None
    try:
        return SINKS[name](name, run, folder, settings)
    except Exception as error:
        raise UserError(
            f"log_to={name} cannot be opened: {error}; log in to it, or leave log_to out (W&B without a network: "
            "WANDB_MODE=offline)"
        ) from error
