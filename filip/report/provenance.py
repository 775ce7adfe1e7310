"""Collect where a study's results come from: code, versions, machine, the time of each stage in order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from filip.report.results import Results
from filip.report.table import short_commit
from filip.study import Study

# Rules by what they are part of; all others are data stages.
KINDS = {
    "train": ("train", "efficiency"),
    "eval": ("evaluate", "alignment_sheet", "compare", "scene_sheet", "explorer"),
    "report": ("tables", "figures", "summary", "page"),
}
ORDER = ("data", "train", "eval", "report")


def stage_groups(seconds: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """Return (kind, rule in words, seconds) of every rule, in the order of the DAG. seconds: of ``<rule>/<job>``."""
    found: dict[str, float] = {}
    for name, value in seconds.items():
        rule = name.partition("/")[0]
        found[rule] = found.get(rule, 0.0) + value
    kinds = {rule: kind for kind, rules in KINDS.items() for rule in rules}
    grouped = [(kinds.get(rule, "data"), rule.replace("_", " "), value) for rule, value in found.items()]
    return sorted(grouped, key=lambda group: (ORDER.index(group[0]), -group[2]))


def duration(seconds: float) -> str:
    """Return ``42 s``, ``6.2 min`` or ``3.1 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def facts(study: Study, results: Results) -> list[tuple[str, str]]:
    """Return what is known about the trainings: (name, value) pairs for print."""
    trained = [found for run in study.trained if (found := results.training(run))]
    starts = [start for run in study.trained if (start := _last_start(results, run))]
    rows = [
        ("commit", _distinct([short_commit(str(found.get("commit") or "")) for found in trained])),
        ("trained", _period(trained)),
        ("versions", _distinct([_versions(start) for start in starts])),
        ("machine", _distinct([_machine(start) for start in starts])),
        ("data", _distinct([_hashes(found) for found in trained])),
        ("results", str(results.folder)),
    ]
    return [(name, value) for name, value in rows if value]


def _last_start(results: Results, run: str) -> dict[str, Any] | None:
    folder = results.run_dir(run)
    file = folder / "starts.jsonl" if folder else None
    lines = file.read_text(encoding="utf-8").splitlines() if file and file.is_file() else []
    try:
        return json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:  # cut short by a kill
        return None


def _distinct(values: list[str]) -> str:
    return "; ".join(dict.fromkeys(value for value in values if value))


def _period(trained: list[dict[str, Any]]) -> str:
    starts = sorted(str(found["started"]) for found in trained if found.get("started"))
    ends = sorted(str(found["finished"]) for found in trained if found.get("finished"))
    return f"{_day(starts[0])} to {_day(ends[-1])} (UTC)" if starts and ends else ""


def _day(time: str) -> str:
    """Write 2026-11-25T18:36:53+00:00 as 2026-11-25 18:36."""
    return time[:16].replace("T", " ")


def _versions(start: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in (start.get("versions") or {}).items())


def _machine(start: Mapping[str, Any]) -> str:
    ranks = start.get("world_size")
    counted = f"{ranks} {'rank' if ranks == 1 else 'ranks'}" if ranks else ""
    return ", ".join(part for part in (counted, str(start.get("machine") or "")) if part)


def _hashes(found: Mapping[str, Any]) -> str:
    hashes = found.get("manifest_hashes") or {}
    return ", ".join(f"{source} (manifest {str(value)[:12]})" for source, value in hashes.items())
