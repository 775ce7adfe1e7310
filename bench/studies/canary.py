"""The canary: do the paper's optimiser, schedule and selection, scaled down, learn what all tokens learn?

    python -m bench.studies.canary                       # what is missing of it: 45 CPU seconds a training
    python -m bench.studies.canary only='[all tokens]' seeds='[3,4]'
    python -m bench.studies.canary table=true            # the table of docs/token_wise.md, from what is there

LAMB, its peak rate, decay, eps and temperature are those of filip/conf/experiment/base.yaml; what is scaled down are
towers, batch and number of steps (the speedrun's, bench/speedrun.py). Every training is kept in DATA.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.speedrun import Place, configure, evaluate, prepare, training
from bench.studies.onset_page import with_interval
from filip.command import compose_config, option, run_command
from filip.files import write_json
from filip.progress import say
from filip.train.config import TrainConfig
from filip.train.provenance import commit
from filip.train.schedule import make_schedule
from workflow.estimate import cpu_name

DATA = Path("records/canary")
QUARTER = "token_keep_ratio=0.25"
SLOW = "optimizer.temperature_lr_factor=0.1"
ROWS: dict[str, list[str]] = {
    "all tokens": [],
    "a quarter": [QUARTER],
    "all tokens, slow temperature": [SLOW],
    "a quarter, slow temperature": [QUARTER, SLOW],
    "a quarter, slow temperature, at least 6": [QUARTER, SLOW, "token_keep_minimum=6"],
    "a quarter, slow temperature, contrast, at least 6": [
        QUARTER, SLOW, "token_keep_minimum=6", "token_score=contrast",
    ],
    "a quarter, slow temperature, without [BOS] and [EOS]": [QUARTER, SLOW, "model.exclude_special_tokens=true"],
    "a quarter from step 200, slow temperature": [
        QUARTER, SLOW, "token_keep_schedule='switch from 1 to 0.25 at step 200'",
    ],
}  # fmt: skip


@dataclass
class Canary(Place):
    """Options: which trainings to add."""

    only: list[str] = option([], "rows; empty = all")
    seeds: list[int] = option([0, 1, 2, 3, 4], "a training each")
    paper: str = option("base", "experiment whose optimiser is scaled down")
    steps: int = option(400, "steps of each training")
    table: bool = option(False, "print the table, and train nothing")


def main(canary: Canary) -> None:
    """Train what is missing, seed by seed and row by row."""
    if canary.table:
        print(table())
        return
    for seed in canary.seeds:
        for row in canary.only or ROWS:
            file = DATA / f"{canary.paper}-{row.replace(',', '').replace(' ', '-')}-{seed}.json"
            if not file.exists():
                say(f"{row}, seed {seed}")
                write_json(
                    file, {"row": row, "seed": seed, "paper": canary.paper, **curve(canary, row, seed)}
                )


def scaled_down(paper: str) -> list[str]:
    """Return the overrides with which the speedrun trains by the optimiser of the experiment ``paper``."""
    config = compose_config(TrainConfig, [f"experiment={paper}", "run_dir=-", "out=-", "result=-"], "train")
    o = config.optimizer
    peak = make_schedule(o.base_lr, config.global_batch or 0, 0, 1).peak
    base = o.base_lr * peak / make_schedule(o.base_lr, 128, 0, 1).peak
    return [
        f"optimizer.name={o.name}", f"optimizer.base_lr={base:.4g}", f"optimizer.weight_decay={o.weight_decay}",
        "optimizer.eps=1e-4", f"optimizer.temperature_lr_factor={o.temperature_lr_factor}", "token_maximum=hard",
        f"model.init_temperature={config.model.init_temperature}",
    ]  # fmt: skip


def curve(canary: Canary, row: str, seed: int) -> dict[str, Any]:
    """Train ``row`` once; return loss, scale and recall every hundred steps."""
    settings = [*scaled_down(canary.paper), *ROWS[row], f"max_steps={canary.steps}", f"seed={seed}"]
    config = configure(canary, "demo_speedrun", settings)
    corpus = prepare(config, canary)
    points = []
    for state in training(config, corpus):
        if state.step % 100 == 0:
            scale, found = float(state.model.scale().detach()), evaluate(state.model, corpus)
            point = {
                "step": state.step,
                "seconds": state.seconds,
                "loss": state.loss,
                "scale": scale,
                **found,
            }
            points.append({name: round(value, 2) for name, value in point.items()})
            say(json.dumps(points[-1]))
    return {"steps": canary.steps, "commit": commit(), "cpu": cpu_name(), "points": points}


def table() -> str:
    """Return the Markdown table: each row's loss by step, its scale and its recall at the end."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(DATA.glob("*.json"))]
    lines = [
        f"| tokens | seeds | loss at steps 100, 200, 300, 400 (chance {math.log(128):.2f}) | scale | R@1 |",
        "| --- | ---: | --- | ---: | ---: |",
    ]
    for row in ROWS:
        curves = [one["points"] for one in found if one["row"] == row]
        if curves:
            losses = ", ".join(
                f"{fmean(p['loss'] for p in points):.2f}" for points in zip(*curves, strict=True)
            )
            last = [points[-1] for points in curves]
            recall = with_interval(fmean((p["i2t"], p["t2i"])) for p in last)
            scale = fmean(p["scale"] for p in last)
            lines.append(f"| {row} | {len(curves)} | {losses} | {scale:.0f} | {recall} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main, Canary)
