"""Record in a run's folder each start, with code and versions, and the end, with copies of the results."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import filip
from filip.common.device import machine
from filip.common.files import replacing, write_json
from filip.runs.saved_files import FINISHED, KEPT

STARTS = "starts.jsonl"
PACKAGES = ("torch", "deepspeed", "timm", "numpy")


def record_start(run_dir: Path, config: Any, step: int, world_size: int, steps: int | None = None) -> dict[str, Any]:
    """Append a start at ``step`` of ``steps`` to ``starts.jsonl`` and write ``config.json``; returns the start.

    config: the training's, a dataclass.
    """
    entry = {
        "time": now(),
        "step": step,
        "steps": steps,
        "world_size": world_size,
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
        "config": asdict(config),
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / STARTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    write_json(run_dir / "config.json", entry["config"])
    (run_dir / FINISHED).unlink(missing_ok=True)
    return entry


def record_finish(
    run_dir: Path,
    step: int,
    commit: str | None,
    training: str | None = None,
    files: Sequence[str] = (),
    code: str | None = None,
) -> None:
    """Mark the run as finished: its checkpoints are not continued by the next start.

    training: hash of the settings that a later start must share to be given this run's result.
    files: the results, of which the run keeps copies. code: hash of the code of this training.
    """
    copies = run_dir / KEPT
    for file in files:
        copies.mkdir(exist_ok=True)
        copy_or_link(Path(file), copies / Path(file).name)
    record = {"time": now(), "step": step, "commit": commit, "code": code, "training": training}
    write_json(run_dir / FINISHED, record)


def kept_result(run_dir: Path, training: str, files: Sequence[str], code: str) -> Path | None:
    """Return the folder with copies of a finished run's ``files``, or None.

    None if the run was not this ``training`` with this code. Otherwise another training would only repeat it. A
    workflow asks for one after its Snakemake has died: it deletes the results before it starts the training anew.
    """
    record, copies = json.loads((run_dir / FINISHED).read_text(encoding="utf-8")), run_dir / KEPT
    if (record.get("training"), record.get("code")) != (training, code):
        return None
    return copies if all((copies / Path(file).name).is_file() for file in files) else None


def copy_or_link(source: Path, target: Path) -> None:
    """Give a file that nobody changes in place a second name, or copy it where the file system cannot."""
    with replacing(target) as part:
        part.unlink(missing_ok=True)
        try:
            os.link(source, part)
        except OSError:
            shutil.copyfile(source, part)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide the numbers."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


def commit() -> str | None:
    """Return the git commit of this code, with ``+`` if the tree differs from it; None outside a repository."""
    root = Path(filip.__file__).resolve().parent.parent
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


def now() -> str:
    """Return the local time with its zone, ISO 8601."""
    return datetime.now(UTC).astimezone().isoformat(timespec="seconds")
