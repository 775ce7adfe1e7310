"""Where a run comes from: code, versions, and every start of it with its settings."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import filip
from filip.files import write_json
from filip.train.config import TrainConfig

STARTS = "starts.jsonl"
FINISHED = "finished.json"
PACKAGES = ("torch", "deepspeed", "timm", "numpy")


def record_start(run_dir: Path, config: TrainConfig, step: int, world_size: int) -> dict[str, Any]:
    """Append a start at ``step`` to ``starts.jsonl`` and write ``config.json``. Returns what was appended."""
    entry = {
        "time": now(),
        "step": step,
        "world_size": world_size,
        "commit": commit(),
        "versions": versions(),
        "config": asdict(config),
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / STARTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    write_json(run_dir / "config.json", entry["config"])
    (run_dir / FINISHED).unlink(missing_ok=True)
    return entry


def record_finish(run_dir: Path, step: int, commit: str | None) -> None:
    """Mark the run as finished: its checkpoints are not continued by the next start."""
    write_json(run_dir / FINISHED, {"time": now(), "step": step, "commit": commit})


def is_finished(run_dir: Path) -> bool:
    """True if the last start of the run wrote its result."""
    return (run_dir / FINISHED).is_file()


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide the numbers."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


def commit() -> str | None:
    """The git commit of this code, with ``+`` if the tree differs from it; None outside a repository."""
    root = Path(filip.__file__).resolve().parent.parent
    try:
        head = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
        if head.returncode:
            return None
        dirty = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def now() -> str:
    """Local time with its zone, ISO 8601."""
    return datetime.now(UTC).astimezone().isoformat(timespec="seconds")
