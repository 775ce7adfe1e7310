"""A study's results on disk, read: what was trained, evaluated and measured, and why something is not there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from filip.errors import UserError

__all__ = ["Results", "Study", "load_study"]


@dataclass(frozen=True)
class Study:
    """A study config (``workflow/config/<name>.yaml``, or the merged one beside the results)."""

    config: dict[str, Any]
    path: Path

    @property
    def name(self) -> str:
        return str(self.config["study"])

    @property
    def title(self) -> str:
        return str(self.config.get("title", self.name))

    @property
    def trained(self) -> dict[str, dict[str, Any]]:
        """Pre-training runs and fine-tunings by name."""
        return {**self.config.get("runs", {}), **(self.config.get("fine_tune") or {})}

    @property
    def fine_tuned(self) -> dict[str, dict[str, Any]]:
        return self.config.get("fine_tune") or {}

    @property
    def efficiency(self) -> dict[str, dict[str, Any]]:
        return self.config.get("efficiency") or {}

    @property
    def sources(self) -> list[str]:
        tuned = [str(t["source"]) for t in self.fine_tuned.values() if "source" in t]
        return list(dict.fromkeys([*self.config.get("sources", []), *tuned]))

    @property
    def peers(self) -> dict[str, dict[str, Any]]:
        """Other people's models that this study evaluates: ``{name: {label, model: open_clip:…}}``."""
        return self.config.get("peers") or {}

    def label(self, run: str) -> str:
        return str({**self.peers, **self.trained}.get(run, {}).get("label", run))

    def rows(self, table: str) -> list[str]:
        """The runs of a table, in order; peers follow where they were evaluated in the same way."""
        named = list((self.config.get("tables") or {}).get(table) or [])
        peers = self.peers if named and table in ("zero_shot", "retrieval") else ()
        return list(dict.fromkeys([*named, *peers]))

    def benchmarks(self, kind: str) -> list[str]:
        """Names of the cards of ``zero_shot``, ``retrieval``, ``alignment`` or ``linear_probe``."""
        return list((self.config.get("eval") or {}).get(kind) or [])

    def replicas(self, run: str) -> list[str]:
        """A run and its repetitions with other seeds (``replicas: {filip: [filip_s1, filip_s2]}``)."""
        return [run, *((self.config.get("replicas") or {}).get(run) or [])]


def load_study(path: str | Path) -> Study:
    """Read a study config. Raises UserError if it is missing or has no ``study`` key."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"no study config at {file}; give study=workflow/config/demo.yaml")
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(config, dict) or "study" not in config:
        raise UserError(f"{file} has no key `study`; is it a study config (workflow/config/*.yaml)?")
    return Study(config, file)


class Results:
    """The JSON files below ``results/<study>``. A file that is not there is None; ``why`` says so."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def evaluation(self, run: str, protocol: str) -> dict[str, Any] | None:
        """``eval/<run>/<protocol>.json``, protocol being zero_shot, retrieval or alignment."""
        return self._read(self.folder / "eval" / run / f"{protocol}.json")

    def training(self, run: str) -> dict[str, Any] | None:
        """``models/<run>.json``, written by training."""
        return self._read(self.folder / "models" / f"{run}.json")

    def efficiency(self, row: str) -> dict[str, Any] | None:
        """``efficiency/<row>.json``, written by the short trainings of the efficiency ablation."""
        return self._read(self.folder / "efficiency" / f"{row}.json")

    def funnel(self) -> list[dict[str, Any]]:
        """``funnel.json``: what each stage took in, gave out and dropped."""
        content = self._read(self.folder / "funnel.json")
        return content if isinstance(content, list) else list((content or {}).get("stages", []))

    def run_dir(self, run: str) -> Path | None:
        """The run's folder, from the training result or, failing that, the newest ``runs/<run>-*``."""
        training = self.training(run) or {}
        told = training.get("run_dir") or (training.get("config") or {}).get("run_dir")
        if told and Path(told).is_dir():
            return Path(told)
        found = sorted(self.folder.glob(f"runs/{run}-*"), key=lambda p: p.stat().st_mtime)
        return found[-1] if found else None

    def run_id(self, run: str) -> str | None:
        """The run's name with its config hash, as its folder is called."""
        folder = self.run_dir(run)
        return folder.name if folder else None

    def why(self, *parts: str) -> str:
        """The reason to print for a file that is not there."""
        return f"not run: no {Path(self.folder, *parts)}"

    def _read(self, file: Path) -> Any:
        if not file.is_file():
            return None
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise UserError(
                f"{file} is not valid JSON ({error}); delete it and run its rule again"
            ) from error
