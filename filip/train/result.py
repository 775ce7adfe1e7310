"""The end of a run: the trained weights, then result.json, each written atomically, that one last of all."""

from __future__ import annotations

import json
import statistics
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import filip
from filip.data.manifest import changed_since
from filip.errors import UserError
from filip.files import write_json
from filip.models import save_model
from filip.train.config import TrainConfig
from filip.train.engine import Engine


def full_weights(engine: Engine, keep: bool) -> dict[str, Tensor]:
    """The fp32 state dict of the model, gathered from any ZeRO stage; all ranks call, those with ``keep`` get it."""
    from deepspeed.utils import safe_get_full_fp32_param

    state: dict[str, Tensor] = {}
    for name, parameter in engine.model.named_parameters():
        whole = safe_get_full_fp32_param(parameter)
        if keep:
            state[name] = (parameter if whole is None else whole).detach().to("cpu", torch.float32, copy=True)
    if keep:
        state |= {name: buffer.detach().cpu() for name, buffer in engine.model.named_buffers()}
    return state


def write_result(
    config: TrainConfig,
    engine: Engine,
    weights: dict[str, Tensor],
    measured: dict[str, Any],
    manifests: dict[str, str],
) -> None:
    """``config.out`` and then ``config.result``; on the first rank only."""
    summary = {
        "run": config.run,
        "config": asdict(config),
        "commit": commit(),
        "manifest_hashes": manifests,
        "precision": config.precision,
        "zero_stage": engine.zero_stage,
        "global_batch": engine.batching.pairs_per_step,
        **measured,
        "finished": now(),
    }
    extra = {
        "run": config.run,
        "steps": measured["steps"],
        "commit": summary["commit"],
        "final": measured["final"],
    }
    save_model(config.out, engine.model, extra, state=weights)
    write_json(config.result, summary)


def timings(step_seconds: list[float], pairs_per_step: int) -> dict[str, float | None]:
    """Median seconds per iteration and the pairs per second that it means; None if nothing was timed."""
    median = statistics.median(step_seconds) if step_seconds else None
    return {
        "seconds_per_iteration": median,
        "samples_per_second": pairs_per_step / median if median else None,
    }


def read_manifests(config: TrainConfig) -> dict[str, str]:
    """{shards folder: hash in its manifest}; UserError if a manifest that was given cannot be read."""
    hashes = {}
    for source in config.data.sources:
        if source.manifest is None:
            continue
        try:
            hashes[source.shards] = str(
                json.loads(Path(source.manifest).read_text(encoding="utf-8"))["sha256"]
            )
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"cannot read the manifest {source.manifest} of {source.shards}: {error}; "
                "write it with python -m filip.data.manifest, or leave manifest out"
            ) from error
    return hashes


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


def refuse_changed_data(config: TrainConfig) -> None:
    """UserError if the data of a source are no longer what its manifest says. Reads every side-car: for one rank."""
    for source in config.data.sources:
        if source.manifest is None or not (changed := changed_since(source.manifest)):
            continue
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"the data are no longer those of {source.manifest}: {'; '.join(changed[:3])}{more}. Restore them, or, to "
            "go on with the changed data, write the manifest again with python -m filip.data.manifest"
        )
