"""The end of a run: the trained weights, then the result, each written atomically."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from filip.common.files import write_json
from filip.models import read_extra, save_model
from filip.runs.saved_files import BEST
from filip.runs.source import FACTS, facts_of
from filip.train.config import TrainConfig
from filip.train.engine import Engine
from filip.train.provenance import now
from filip.train.ranks import Ranks


def gather_to_main(engine: Engine, ranks: Ranks) -> dict[str, Tensor]:
    """Return the float32 state dict of the model on the first rank, gathered from all ranks; empty elsewhere.

    These are the averaged weights where the training averages them (optimizer.average). All ranks call.
    """
    state: dict[str, Tensor] = {}
    for name, weight in engine.whole_weights():
        if ranks.is_main:
            state[name] = weight.detach().to("cpu", torch.float32, copy=True)
    if ranks.is_main:
        state |= {name: buffer.detach().cpu() for name, buffer in engine.model.named_buffers()}
    return state


def write_result(
    config: TrainConfig,
    engine: Engine,
    weights: dict[str, Tensor],
    measured: dict[str, Any],
    manifests: dict[str, str],
    commit: str | None,
) -> None:
    """Write ``config.out``, then ``config.result``; on the first rank only. ``commit``: of the training code."""
    best = Path(config.run_dir, BEST)
    chosen = read_extra(best)["best"] if config.eval.best is not None and best.is_file() else None
    summary = {
        "run": config.run,
        "config": asdict(config),
        "commit": commit,
        "manifest_hashes": manifests,
        "precision": config.precision,
        "zero_stage": engine.zero_stage,
        "global_batch": engine.batching.pairs_per_step,
        **measured,
        "chosen": chosen,
        "finished": now(),
    }
    extra = {
        "run": config.run,
        "steps": chosen["step"] if chosen else measured["steps"],
        "commit": summary["commit"],
        "final": measured["final"],
        FACTS: facts_of(config.out, summary),
    }
    save_model(config.out, engine.model, extra, state=load_file(best) if chosen else weights)
    write_json(config.result, summary)
