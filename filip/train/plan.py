"""Plan a training: parameters, arithmetic, memory and steps of a fleet.

filip train plan experiment=large gpus=192 gpu=h100 pairs=340e6

Its GPU hours are arithmetic over a share of the peak; measured seconds are in the log of a run on the machine.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from filip.cli.command import option, run_command
from filip.common.errors import UserError
from filip.common.files import readable
from filip.train.config import TrainConfig
from filip.train.costs import GPUS, Counts, count
from filip.train.engine import Batching, resolve_batching, use_precision

RESTART_MINUTES = 10  # from a failure to the next step, assumed


@dataclass
class Plan(TrainConfig):
    run_dir: str = option("-", "not used: nothing is written")
    out: str = option("-", "not used")
    result: str = option("-", "not used")
    gpus: int = option(8, "GPUs, a rank on each", at_least=1)
    gpu: str = option("h100", f"kind of GPU, for what fits: {', '.join(GPUS)}", choices=tuple(GPUS))
    gpus_per_node: int = option(8, "GPUs of a node; a fleet has whole nodes, or is a part of one", at_least=1)
    pairs: float | None = option(None, "pairs of an epoch, e.g. 340e6: for the steps of a run", at_least=1)
    mfu: float = option(
        0.4, "share of the peak for the GPU hours; the paper's come to 0.03 (base) and 0.11 (large)", above=0, at_most=1
    )
    euros: float | None = option(None, "price of a GPU hour, for that of the run", above=0)
    failure: float = option(8064, "GPU hours for each failure: assumed, one in 42 hours at 192 GPUs", above=0)


def main(config: Plan) -> None:
    """A training's parameters, arithmetic, memory and steps on gpus=N; nothing of it is allocated."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # nothing is run: DeepSpeed need not look for a device
    config.check()
    config.model.image.image_size = config.image_size or config.model.image.image_size
    if config.precision == "auto":
        use_precision(config, "bf16" if GPUS[config.gpu].bf16 else "fp16")
    print("\n".join(report(config)))


def report(config: Plan) -> list[str]:
    """Return the lines of the plan. Raise UserError for half a node, a precision without hardware, an odd batch."""
    gpus, gpu = config.gpus, GPUS[config.gpu]
    if gpus > config.gpus_per_node and gpus % config.gpus_per_node:
        raise UserError(f"gpus={gpus} is not a whole number of nodes of gpus_per_node={config.gpus_per_node}")
    if config.precision == "bf16" and not gpu.bf16:
        raise UserError(f"precision=bf16: a {gpu.title} has no bf16; use precision=fp16")
    batch = resolve_batching(config, gpus)
    auto = "triton" if gpu.bf16 else "tiled, since Triton has no tensor-core path before compute capability 8.0"
    backend = auto if config.backend == "auto" else config.backend
    on_gpu = replace(config, backend=backend.partition(",")[0])
    counts, per_node = count(config.model, on_gpu, batch, gpus), config.gpus_per_node
    nodes = -(-gpus // per_node)
    place = f"{min(per_node, gpus)} a node; {f'{nodes} nodes' if nodes > 1 else 'one node'}"
    model, memory = counts.lines()
    fits = "fits" if counts.total < 0.9 * gpu.memory else "DOES NOT FIT"
    several = f", {batch.accumulation} batches per step" if batch.accumulation > 1 else ""
    first, last = counts.interaction
    begins = "" if first == last else f"{first / 1e12:,.1f} TFLOP in the first step, in the last "
    share = f"{last / 1e12:,.1f} TFLOP a step and GPU, {last / counts.flops:.0%} of the encoders'; backend={backend}"
    loss = [f"interaction {begins}{share}"] if last else []
    lines = [
        f"fleet       {gpus} x {gpu.title}, {place}",
        model,
        f"batch       {batch.global_batch} pairs = {batch.per_rank} x {gpus}{several}",
        f"encoders    {counts.flops / 1e12:,.1f} TFLOP a step and GPU, forward and backward",
        *loss,
        f"files       {batch.pairs_per_step:,} reads a step",
        f"{memory} ({fits} in {readable(gpu.memory)})",
    ]
    steps = planned_steps(config, batch)
    if steps is None:
        return [*lines, "run         as many steps as the data give: pairs=N says how many an epoch has"]
    return [*lines, f"run         {steps:,} steps", price(config, counts, steps)]


def price(config: Plan, counts: Counts, steps: int) -> str:
    """Return the line of GPU hours: all arithmetic at ``mfu`` of the peak, and what failures cost."""
    gpu, again = GPUS[config.gpu], config.checkpoint.every_minutes / 2 + RESTART_MINUTES
    peak = config.mfu * (gpu.single if config.precision == "fp32" else gpu.half)
    first, last = counts.interaction  # a schedule falls in a straight line, nearly: tokens of both sides
    hours, whole = (config.gpus * steps * (counts.flops + loss) / peak / 3600
                    for loss in ((first + last) / 2, counts.all_tokens))  # fmt: skip
    stops = hours / config.failure
    goodput = hours / (hours + stops * again / 60 * config.gpus)
    paid = f", {config.euros * hours / goodput:,.0f} euros" if config.euros else ""
    saved = f", {whole:,.0f} with all tokens" if whole > hours else ""
    return (
        f"price       computed, not measured: {hours / goodput:,.0f} GPU hours at {config.mfu:.0%} of the peak{paid}, "
        f"{hours / goodput / config.gpus / 24:,.1f} days, {stops:.1f} stops and a goodput of {goodput:.1%}{saved}"
    )


def planned_steps(config: Plan, batch: Batching) -> int | None:
    """Return the optimiser steps of the run; None if they depend on a number of pairs that is not given."""
    limits = [] if config.max_steps is None else [config.max_steps]
    if config.epochs is not None:
        if config.pairs is None:
            return None
        if config.pairs < batch.pairs_per_step:
            raise UserError(
                f"pairs={config.pairs:g} are fewer than the {batch.pairs_per_step} of a step: train on more"
            )
        limits.append(int(config.epochs * (int(config.pairs) // batch.pairs_per_step)))
    return min(limits)


if __name__ == "__main__":
    run_command(main, Plan, "train")
