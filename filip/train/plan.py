"""Plan a training before any of it is allocated: memory per rank, or a whole fleet's arithmetic and traffic.

filip train plan experiment=large ranks=[8,128,192]
filip train plan experiment=large gpus=192 gpu=h100 pairs=340e6

filip/train/counts.py counts everything but seconds: they come from the log of a run on the machine itself.
"""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from filip.command import option, run_command
from filip.errors import UserError
from filip.files import nothing_at, readable
from filip.train.config import TrainConfig
from filip.train.counts import Counts, Message, by_part, count, host_memory, to_ask_for
from filip.train.engine import Batching, resolve_batching
from filip.train.hardware import GPUS
from filip.train.telemetry import duration, read_log

IMAGE_BYTES = 20_000  # a stored image of 256 px, JPEG of quality 95


@dataclass
class Plan(TrainConfig):
    run_dir: str = option("-", "not used: nothing is written")
    out: str = option("-", "not used")
    result: str = option("-", "not used")
    ranks: list[int] = option([8, 128, 192], "numbers of ranks to plan the memory for", at_least=1)
    gpus: int | None = option(None, "plan a whole fleet of so many GPUs, not only the memory of a rank", at_least=1)
    gpu: str = option("h100", f"kind of GPU, for what fits: {', '.join(GPUS)}", choices=tuple(GPUS))
    gpus_per_node: int = option(8, "GPUs of a node; a fleet has whole nodes, or is a part of one", at_least=1)
    pairs: float | None = option(None, "pairs of an epoch, e.g. 340e6: for the steps of a run", at_least=1)
    log: str | None = option(None, "a run's folder or log.jsonl: its seconds per step give the days of this plan")


def main(config: Plan) -> None:
    """Memory per rank, or, with gpus=N, a fleet's arithmetic, traffic, memory and steps; days from a measured log."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # nothing is run: DeepSpeed need not look for a device
    if not config.ranks:
        raise UserError("ranks=[]: the list is empty; give numbers of ranks, such as [8,128]")
    config.check()
    config.model.image.image_size = config.image_size or config.model.image.image_size
    if config.precision == "auto":
        config.precision = "bf16" if GPUS[config.gpu].bf16 else "fp16"
    print("\n".join(memory_table(config) if config.gpus is None else plan_fleet(config).lines()))


def memory_table(config: Plan) -> list[str]:
    """Return a row per number of ranks and ZeRO stage, at the batch size of the config."""
    checkpointing = "on" if config.model.gradient_checkpointing else "off"
    lines = [
        count(config.model, config, resolve_batching(config, 1), 1).lines()[0],
        f"precision {config.precision}, gradient checkpointing {checkpointing}, interaction "
        f"{config.model.interaction}, token_keep_ratio {config.token_keep_ratio:g}; about, per rank:",
        f"{'ranks':>6} {'per rank':>9} {'ZeRO':>5} {'total':>9}   of which",
    ]
    for ranks in config.ranks:
        try:
            batching = resolve_batching(config, ranks)
        except UserError as error:
            lines.append(f"{ranks:>6} {error}")
            continue
        for stage in range(1 if config.precision == "fp16" else 0, 4):
            config.zero_stage = stage
            counts = count(config.model, config, batching, ranks)
            shown = f"{ranks:>6} {batching.per_rank:>9} {stage:>5} {readable(counts.total):>9}"
            lines.append(f"{shown}   {by_part(counts.memory)}")
    return lines


@dataclass(frozen=True)
class FleetPlan:
    """The result of :func:`plan_fleet`."""

    config: Plan
    ranks: int
    batching: Batching
    counts: Counts
    host: dict[str, float] = field(default_factory=dict)  # bytes of a node's main memory by part

    @property
    def nodes(self) -> int:
        return -(-self.ranks // self.config.gpus_per_node)

    @property
    def steps(self) -> int | None:
        """Return the optimiser steps of the run; None if they depend on a number of pairs that is not given."""
        limits = [] if self.config.max_steps is None else [self.config.max_steps]
        if self.config.epochs is not None:
            if self.config.pairs is None:
                return None
            limits.append(int(self.config.epochs * (int(self.config.pairs) // self.batching.pairs_per_step)))
        return min(limits)

    def node_bytes(self, message: Message) -> float:
        """Return the bytes that enter a node over the network.

        A ring over all ranks, node after node, enters each node once.
        """
        if self.nodes == 1:
            return 0.0
        received = message.received(self.ranks)
        if message.kind == "all_to_all":
            # every GPU has its own, and what comes from its node does not cross the network
            of_a_node = self.config.gpus_per_node
            return of_a_node * received * (self.ranks - of_a_node) / (self.ranks - 1)
        return received

    def lines(self) -> list[str]:
        """Return the lines of the report."""
        gpu, batch, counts = GPUS[self.config.gpu], self.batching, self.counts
        fits = "fits" if counts.total < 0.9 * gpu.memory else "DOES NOT FIT"
        lines = [
            f"fleet       {self.ranks} x {gpu.title}, {min(self.config.gpus_per_node, self.ranks)} a node; "
            + (f"{self.nodes} nodes" if self.nodes > 1 else "one node"),
            f"batch       {batch.global_batch} pairs = {batch.per_rank} x {self.ranks}"
            + (f", {batch.accumulation} batches per step" if batch.accumulation > 1 else ""),
            f"encoders    {counts.flops / 1e12:,.1f} TFLOP a step and GPU, forward and backward",
            f"links       {self._traffic(counts.messages)}",
        ]
        if counts.early_messages:
            schedule = f"token_keep_schedule: {self.config.token_keep_schedule}"
            lines.append(f"at first    {self._traffic(counts.early_messages)}; {schedule}")
        lines += [
            f"files       {batch.pairs_per_step:,} reads of about {readable(IMAGE_BYTES)} a step",
            f"{counts.lines()[1]} ({fits} in {readable(gpu.memory)})",
        ]
        if self.host:
            ask = f"ask for mem_mb={to_ask_for(self.host)}"
            whole = readable(sum(self.host.values()))
            lines.append(f"host        about {whole} of main memory per node, {ask}: {by_part(self.host)}")
        return [*lines, f"run         {self._run()}"]

    def _traffic(self, messages: list[Message]) -> str:
        received = {message: message.received(self.ranks) for message in messages if message.size}
        parts = ", ".join(f"{message.part} {message.kind} {readable(size)}" for message, size in received.items())
        crossing = readable(sum(self.node_bytes(message) for message in messages))
        whole = readable(sum(received.values()))
        return f"a GPU receives {whole} a step ({parts}); a node {crossing} over the network"

    def _run(self) -> str:
        days = "; log=RUN_DIR of a run on this machine says how long they take"
        if self.config.log is not None:
            per_rank = self.batching.per_rank * self.batching.accumulation
            days = f", {measured_days(Path(self.config.log), self.steps or 0, self.ranks, per_rank)}"
        if self.steps is None:
            return "as many steps as the data give: pairs=N says how many an epoch has"
        return f"{self.steps:,} steps{days}"


def plan_fleet(config: Plan) -> FleetPlan:
    """Plan a run on ``config.gpus`` GPUs. Raise UserError for a kind that is not listed, or an impossible batch."""
    gpus = config.gpus or 1
    if gpus > config.gpus_per_node and gpus % config.gpus_per_node:
        raise UserError(f"gpus={gpus} is not a whole number of nodes of gpus_per_node={config.gpus_per_node}")
    if config.precision == "bf16" and not GPUS[config.gpu].bf16:
        raise UserError(f"precision=bf16: a {GPUS[config.gpu].title} has no bf16; use precision=fp16")
    batching = resolve_batching(config, gpus)
    on_a_node = min(gpus, config.gpus_per_node)
    host = {} if config.pairs is None else host_memory(config, gpus, on_a_node, int(config.pairs))
    return FleetPlan(config, gpus, batching, count(config.model, config, batching, gpus), host)


def measured_days(place: Path, steps: int, ranks: int, per_rank: int) -> str:
    """Write how long ``steps`` take by the seconds per step that a run has logged after its first tenth.

    Raises UserError if it has logged none, or if its ranks did not have ``per_rank`` pairs.
    """
    folder = place.parent if place.name == "log.jsonl" else place
    log, starts = folder / "log.jsonl", folder / "starts.jsonl"
    if not log.is_file():
        raise UserError(f"log={place}: {nothing_at(log, 'give the run_dir of a training')}")
    seconds, pairs = [], 0.0
    for values in read_log(log)[0]:
        if "speed/seconds_per_step" in values:
            seconds.append(float(values["speed/seconds_per_step"]))
            pairs = values["speed/pairs_per_second"] * seconds[-1]
    if not seconds or not starts.is_file():
        raise UserError(f"log={place}: no step has been logged there yet")
    logged_ranks = json.loads(starts.read_text(encoding="utf-8").splitlines()[-1])["world_size"]
    if round(pairs / logged_ranks) != per_rank:
        raise UserError(
            f"log={place}: a step there has {round(pairs / logged_ranks)} pairs per rank, and {per_rank} in this plan, "
            "which take another time; measure with the same batch per rank"
        )
    seconds = seconds[len(seconds) // 10 :]
    tenths = statistics.quantiles(seconds, n=10) if len(seconds) > 1 else seconds * 9
    low, middle, high = tenths[0], statistics.median(seconds), tenths[-1]
    other = "" if ranks == logged_ranks else f"; measured on {logged_ranks} ranks, and {ranks} exchange more"
    return (
        f"{duration(steps * middle)} ({duration(steps * low)} to {duration(steps * high)}) at {middle:.3f} s a "
        f"step (80% of {len(seconds)} intervals of {place}: {low:.3f} to {high:.3f}){other}"
    )


if __name__ == "__main__":
    run_command(main, Plan, "train")
