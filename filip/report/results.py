"""Read ``results/<study>``: trainings, evaluations and measurements, and the reasons for missing ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filip.common.errors import UserError
from filip.common.files import json_record
from filip.eval.outcomes import Record, outcomes_file, read_outcomes
from filip.report.table import Table


class Results:
    """The JSON files below ``results/<study>``. A missing file reads as None; ``why`` gives the reason to print."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._joined: dict[tuple[str, str], dict[str, Any] | None] = {}

    def evaluation(self, run: str, protocol: str) -> dict[str, Any] | None:
        """Read ``eval/<run>/<protocol>/*.json``, a file for each benchmark, as one result of all benchmarks."""
        if (run, protocol) not in self._joined:
            results = [self._read(file) for file in self._evaluations(run, protocol)]
            self._joined[run, protocol] = _join(results) if results else None
        return self._joined[run, protocol]

    def outcomes(self, run: str, protocol: str) -> Record | None:
        """Read what happened to each image, kept next to :meth:`evaluation`; None for results without it."""
        files = [file for file in self._evaluations(run, protocol) if outcomes_file(file).is_file()]
        return {group: found for file in files for group, found in read_outcomes(file).items()} if files else None

    def _evaluations(self, run: str, protocol: str) -> list[Path]:
        return sorted((self.folder / "eval" / run / protocol).glob("*.json"))

    def training(self, run: str) -> dict[str, Any] | None:
        """Read ``models/<run>.json``, written by training."""
        return self._read(self.folder / "models" / f"{run}.json")

    def efficiency(self, row: str) -> dict[str, Any] | None:
        """Read ``efficiency/<row>.json``, written by the short trainings of the efficiency ablation."""
        return self._read(self.folder / "efficiency" / f"{row}.json")

    def funnel(self) -> list[dict[str, Any]]:
        """Read ``funnel.json``: how many pairs entered and left each stage, and how many were dropped and why."""
        return list((self._read(self.folder / "funnel.json") or {}).get("stages", []))

    def scenes(self) -> dict[str, Any] | None:
        """Read ``eval/scenes_compared.json``: scenes as models see them, with pictures (filip.eval.pictures.scenes)."""
        return self._read(self.folder / "eval" / "scenes_compared.json")

    def tables(self) -> dict[str, Table]:
        """Read the tables by name, from ``tables/tables.json``. Raises UserError if the tables were not written yet."""
        file = self.folder / "tables" / "tables.json"
        content = self._read(file)
        if content is None:
            raise UserError(
                f"no tables at {file}; write them with: python -m filip.report.tables results={self.folder}"
            )
        return {name: Table.from_json(table) for name, table in content["tables"].items()}

    def run_dir(self, run: str) -> Path | None:
        """Return the run's folder, from the training result or, failing that, the newest ``runs/<run>-*``."""
        training = self.training(run) or {}
        recorded = training.get("run_dir") or (training.get("config") or {}).get("run_dir")
        if recorded and Path(recorded).is_dir():
            return Path(recorded)
        folders = sorted(self.folder.glob(f"runs/{run}-*"), key=lambda path: path.stat().st_mtime)
        return folders[-1] if folders else None

    def run_id(self, run: str) -> str | None:
        """Return the run's name with its config hash, as its folder is called."""
        folder = self.run_dir(run)
        return folder.name if folder else None

    def why(self, *parts: str) -> str:
        """Return the reason to print for a missing file."""
        return f"not run: no {Path(self.folder, *parts)}"

    def _read(self, file: Path) -> Any:
        return json_record(file, "a result: delete it and run its rule again") if file.is_file() else None


def _join(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the results of several benchmarks as one; a setting in which they differ has all of its values."""
    joined: dict[str, Any] = {}
    settings: dict[str, list[Any]] = {}
    for result in results:
        joined |= result
        for name, value in result.get("settings", {}).items():
            settings.setdefault(name, [])
            settings[name] += [] if value in settings[name] else [value]
    for key in ("benchmarks", "skipped"):
        joined[key] = {name: found for result in results for name, found in result.get(key, {}).items()}
    several = {
        name: values[0] if len(values) == 1 else ", ".join(map(str, values)) for name, values in settings.items()
    }
    return {**joined, "settings": several}
