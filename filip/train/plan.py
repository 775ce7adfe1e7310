"""Plan a training before any of it is allocated: memory per rank, or a whole fleet's arithmetic and traffic.

filip train plan experiment=large ranks=[8,128,192]
filip train plan experiment=large gpus=192 gpu=h100 pairs=340e6
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from filip.command import option, run_command
from filip.errors import UserError
from filip.files import readable
from filip.train.config import TrainConfig
from filip.train.engine import resolve_batching
from filip.train.fleet import Fleet, plan_fleet
from filip.train.hardware import GPUS
from filip.train.memory import memory_plan


def table(config: TrainConfig, world_sizes: list[int]) -> list[str]:
    """Return a row per number of ranks and ZeRO stage, at the batch size of the config."""
    plan = memory_plan(config.model, config, resolve_batching(config, 1), 1)
    checkpointing = "on" if config.model.gradient_checkpointing else "off"
    lines = [
        plan.lines()[0],
        f"precision {config.precision}, gradient checkpointing {checkpointing}, interaction "
        f"{config.model.interaction}, token_keep_ratio {config.token_keep_ratio:g}; about, per rank:",
        f"{'ranks':>6} {'per rank':>9} {'ZeRO':>5} {'total':>9}   of which",
    ]
    for world_size in world_sizes:
        try:
            batching = resolve_batching(config, world_size)
        except UserError as error:
            lines.append(f"{world_size:>6} {error}")
            continue
        for stage in range(1 if config.precision == "fp16" else 0, 4):
            config.zero_stage = stage
            plan = memory_plan(config.model, config, batching, world_size)
            parts = ", ".join(f"{name} {readable(size)}" for name, size in plan.bytes.items() if size)
            lines.append(f"{world_size:>6} {batching.per_rank:>9} {stage:>5} {readable(plan.total):>9}   {parts}")
    return lines


@dataclass
class Plan(Fleet, TrainConfig):
    run_dir: str = option("-", "not used: nothing is written")
    out: str = option("-", "not used")
    result: str = option("-", "not used")
    ranks: list[int] = option([8, 128, 192], "numbers of ranks to plan the memory for", at_least=1)


def main(config: Plan) -> None:
    """Memory per rank, or, with gpus=N, a fleet's arithmetic, traffic, memory and steps; days from a measured log."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # nothing is run: DeepSpeed need not look for a device
    if not config.ranks:
        raise UserError("ranks=[]: the list is empty; give numbers of ranks, such as [8,128]")
    config.check()
    config.model.image.image_size = config.image_size or config.model.image.image_size
    if config.precision == "auto":
        config.precision = "bf16" if GPUS[config.gpu].bf16 else "fp16"
    lines = table(config, config.ranks) if config.gpus is None else plan_fleet(config, config).lines()
    print("\n".join(lines))


if __name__ == "__main__":
    run_command(main, Plan, "train")
