"""Plan a training before any of it is allocated: parameters, arithmetic, traffic, memory and steps of a fleet.

filip train plan experiment=large gpus=192 gpu=h100 pairs=340e6

filip/train/counts.py counts all of it. Seconds are in the log of a run on the machine itself.
"""

from __future__ import annotations

import io
import math
import os
import random
import time
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from filip.cli.command import option, run_command
from filip.common.errors import UserError
from filip.common.files import readable
from filip.loading.config import DataConfig
from filip.loading.transforms import TrainTransform
from filip.train.config import TrainConfig
from filip.train.counts import Counts, Message, by_part, count, host_memory, step_flops, to_ask_for
from filip.train.engine import Batching, resolve_batching
from filip.train.hardware import GPUS, Gpu
from filip.train.precision import use_precision

BUSY = 0.15  # share of its peak at which a GPU should not wait for images; a run's own is speed/mfu in its log
IMAGE_BYTES = 20_000  # a stored image of 256 px, JPEG of quality 95


@dataclass
class Plan(TrainConfig):
    run_dir: str = option("-", "not used: nothing is written")
    out: str = option("-", "not used")
    result: str = option("-", "not used")
    gpus: int = option(8, "GPUs, a rank on each", at_least=1)
    gpu: str = option("h100", f"kind of GPU, for what fits: {', '.join(GPUS)}", choices=tuple(GPUS))
    gpus_per_node: int = option(8, "GPUs of a node; a fleet has whole nodes, or is a part of one", at_least=1)
    pairs: float | None = option(None, "pairs of an epoch, e.g. 340e6: for the steps of a run", at_least=1)


def main(config: Plan) -> None:
    """A training's parameters, arithmetic, traffic, memory and steps on gpus=N; nothing of it is allocated."""
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
    counts, per_node = count(config.model, config, batch, gpus), config.gpus_per_node
    nodes = -(-gpus // per_node)
    place = f"{min(per_node, gpus)} a node; {f'{nodes} nodes' if nodes > 1 else 'one node'}"
    model, memory = counts.lines()
    fits = "fits" if counts.total < 0.9 * gpu.memory else "DOES NOT FIT"
    several = f", {batch.accumulation} batches per step" if batch.accumulation > 1 else ""
    lines = [
        f"fleet       {gpus} x {gpu.title}, {place}",
        model,
        f"batch       {batch.global_batch} pairs = {batch.per_rank} x {gpus}{several}",
        f"encoders    {counts.flops / 1e12:,.1f} TFLOP a step and GPU, forward and backward",
        *([_interaction(counts, gpu, config.backend)] if counts.products else []),
        f"links       {_traffic(counts.messages, gpus, per_node)}",
    ]
    if counts.early_messages:
        schedule = f"token_keep_schedule: {config.token_keep_schedule}"
        lines.append(f"at first    {_traffic(counts.early_messages, gpus, per_node)}; {schedule}")
    lines += [
        f"files       {batch.pairs_per_step:,} reads of about {readable(IMAGE_BYTES)} a step",
        *([f"loader      {loader_needs(config, gpu)[0]}"] if config.data.feature_cache is None else []),
        f"{memory} ({fits} in {readable(gpu.memory)})",
    ]
    if config.pairs is not None:
        parts = host_memory(config, gpus, min(gpus, per_node), int(config.pairs))
        whole, ask = readable(sum(parts.values())), f"ask for mem_mb={to_ask_for(parts)}"
        lines.append(f"host        about {whole} of main memory per node, {ask}: {by_part(parts)}")
    steps = planned_steps(config, batch)
    unknown = "as many steps as the data give: pairs=N says how many an epoch has"
    return [*lines, f"run         {unknown if steps is None else f'{steps:,} steps'}"]


def _interaction(counts: Counts, gpu: Gpu, backend: str) -> str:
    """Say how much the late interaction computes, and by which backend."""
    auto = "triton" if gpu.bf16 else "tiled, since Triton has no tensor-core path before compute capability 8.0"
    share = counts.products / counts.flops
    return (
        f"loss        {counts.products / 1e12:,.1f} TFLOP a step and GPU, {share:.0%} of the encoders'; "
        f"backend={auto if backend == 'auto' else backend}"
    )


def loader_needs(config: TrainConfig, gpu: Gpu) -> tuple[str, bool]:
    """Say how many cores make the images for a GPU that computes at BUSY of its peak; whether data.workers suffice."""
    pair_flops = step_flops(config.model, config, Batching(1, 1, 1, 1))
    peak = gpu.single if config.precision == "fp32" else gpu.half
    rate, workers = images_per_second(config.data, config.model.image.image_size), config.data.workers
    cores, fed = math.ceil(BUSY * peak / pair_flops / rate), workers * rate * pair_flops / peak
    return (
        f"needs {cores} core{'s' * (cores > 1)} a GPU at {BUSY:.0%} of its peak, {rate:,.0f} images/s a core here; "
        f"data.workers={workers} feed {fed:.0%}",
        fed >= BUSY,
    )


def images_per_second(data: DataConfig, image_size: int, seconds: float = 0.5) -> float:
    """Measure how many JPEGs of 256 px a worker on this machine prepares in a second of processor time."""
    colours = np.random.default_rng(0).integers(0, 256, (64, 85, 3), np.uint8)
    picture = io.BytesIO()
    Image.fromarray(colours).resize((341, 256)).save(picture, "JPEG", quality=95)
    transform, rng, threads = TrainTransform(image_size, data), random.Random(0), torch.get_num_threads()
    prepare = transform.crop if data.augment_on == "device" else transform.pixels
    torch.set_num_threads(1)  # as in a worker of the loader
    images, started = 0, time.process_time()
    while (spent := time.process_time() - started) < seconds:
        prepare(picture.getvalue(), rng)
        images += 1
    torch.set_num_threads(threads)
    return images / spent


def planned_steps(config: Plan, batch: Batching) -> int | None:
    """Return the optimiser steps of the run; None if they depend on a number of pairs that is not given."""
    limits = [] if config.max_steps is None else [config.max_steps]
    if config.epochs is not None:
        if config.pairs is None:
            return None
        limits.append(int(config.epochs * (int(config.pairs) // batch.pairs_per_step)))
    return min(limits)


def node_bytes(message: Message, gpus: int, gpus_per_node: int) -> float:
    """Return the bytes that enter a node over the network. A ring over all ranks, node after node, enters it once."""
    if gpus <= gpus_per_node:
        return 0.0
    received = message.received(gpus)
    if message.kind == "all_to_all":  # every GPU has its own, and what comes from its node does not cross the network
        return gpus_per_node * received * (gpus - gpus_per_node) / (gpus - 1)
    return received


def _traffic(messages: list[Message], gpus: int, gpus_per_node: int) -> str:
    received = {message: message.received(gpus) for message in messages if message.size}
    parts = ", ".join(f"{message.part} {message.kind} {readable(size)}" for message, size in received.items())
    crossing = readable(sum(node_bytes(message, gpus, gpus_per_node) for message in messages))
    whole = readable(sum(received.values()))
    return f"a GPU receives {whole} a step ({parts}); a node {crossing} over the network"


if __name__ == "__main__":
    run_command(main, Plan, "train")
