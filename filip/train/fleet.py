"""A fleet on paper: what a step computes, what crosses each link, what each GPU and node holds, and how many steps.

All of it is counted (filip/train/counts.py, filip/train/memory.py, filip/interaction/cost.py), and tests compare the
counts with what torch counts and ranks send. Seconds are not: they come from the log of a run on the machine itself.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path

import torch

from filip.command import option
from filip.errors import UserError
from filip.files import nothing_at, readable
from filip.models import build_model
from filip.train.config import TrainConfig
from filip.train.counts import Message, encoder_flops, loss_messages, zero_messages
from filip.train.engine import Batching, resolve_batching
from filip.train.hardware import GPUS
from filip.train.host_memory import to_ask_for
from filip.train.losses import exchanged, resolve_weights
from filip.train.memory import MemoryPlan, encoded_tokens, host_memory, interaction_setting, memory_plan
from filip.train.telemetry import duration

IMAGE_BYTES = 20_000  # a stored image of 256 px, JPEG of quality 95


@dataclass
class Fleet:
    """The machines that a plan is for."""

    gpus: int | None = option(None, "plan a whole fleet of so many GPUs, not only the memory of a rank", at_least=1)
    gpu: str = option("h100", f"kind of GPU, for what fits: {', '.join(GPUS)}", choices=tuple(GPUS))
    gpus_per_node: int = option(8, "GPUs of a node; a fleet has whole nodes, or is a part of one", at_least=1)
    pairs: float | None = option(None, "pairs of an epoch, e.g. 340e6: for the steps of a run", at_least=1)
    log: str | None = option(None, "a run's folder or log.jsonl: its seconds per step give the days of this plan")


@dataclass(frozen=True)
class FleetPlan:
    """The result of :func:`plan_fleet`; bytes per optimiser step by message."""

    config: TrainConfig
    fleet: Fleet
    ranks: int
    batching: Batching
    flops: float  # the encoders' on a rank, forward and backward, without recomputation
    messages: list[Message]
    memory: MemoryPlan
    measured: MeasuredSpeed | None = None
    host: dict[str, float] = field(default_factory=dict)  # bytes of a node's main memory by part

    @property
    def nodes(self) -> int:
        return -(-self.ranks // self.fleet.gpus_per_node)

    @property
    def steps(self) -> int | None:
        """Return the optimiser steps of the run; None if they depend on a number of pairs that is not given."""
        limits = [] if self.config.max_steps is None else [self.config.max_steps]
        if self.config.epochs is not None:
            if self.fleet.pairs is None:
                return None
            limits.append(int(self.config.epochs * (int(self.fleet.pairs) // self.batching.pairs_per_step)))
        return min(limits)

    def received(self) -> float:
        """Return the bytes that a GPU receives in a step."""
        return sum(message.received(self.ranks) for message in self.messages)

    def node_bytes(self, message: Message) -> float:
        """Return the bytes that enter a node over the network.

        A ring over all ranks, node after node, enters each node once.
        """
        if self.nodes == 1:
            return 0.0
        received = message.received(self.ranks)
        if message.kind == "all_to_all":
            # every GPU has its own, and what comes from its node does not cross the network
            of_a_node = self.fleet.gpus_per_node
            return of_a_node * received * (self.ranks - of_a_node) / (self.ranks - 1)
        return received

    def lines(self) -> list[str]:
        """Return the lines of the report."""
        gpu, batch = GPUS[self.fleet.gpu], self.batching
        fits = "fits" if self.memory.total < 0.9 * gpu.memory else "DOES NOT FIT"
        sent = ", ".join(f"{m.part} {m.kind} {readable(m.received(self.ranks))}" for m in self.messages if m.size)
        crossing = sum(self.node_bytes(message) for message in self.messages)
        where = f"{self.nodes} nodes" if self.nodes > 1 else "one node"
        return [
            f"fleet       {self.ranks} x {gpu.title}, {min(self.fleet.gpus_per_node, self.ranks)} a node; {where}",
            f"batch       {batch.global_batch} pairs = {batch.per_rank} x {self.ranks}"
            + (f", {batch.accumulation} batches per step" if batch.accumulation > 1 else ""),
            f"encoders    {self.flops / 1e12:,.1f} TFLOP a step and GPU, forward and backward",
            f"links       a GPU receives {readable(self.received())} a step ({sent}); a node {readable(crossing)} over "
            "the network",
            f"files       {batch.pairs_per_step:,} reads of about {readable(IMAGE_BYTES)} a step",
            f"{self.memory.lines()[1]} ({fits} in {readable(gpu.memory)})",
            *self._host_lines(),
            *self._run_lines(),
        ]

    def _host_lines(self) -> list[str]:
        if not self.host:
            return []
        parts = ", ".join(f"{name} {readable(size)}" for name, size in self.host.items())
        ask = f"ask for mem_mb={to_ask_for(self.host)}"
        return [f"host        about {readable(sum(self.host.values()))} of main memory per node, {ask}: {parts}"]

    def _run_lines(self) -> list[str]:
        if self.steps is None:
            return ["run         as many steps as the data give: pairs=N says how many an epoch has"]
        if self.measured is None:
            return [f"run         {self.steps:,} steps; log=RUN_DIR of a run on this machine says how long they take"]
        return [f"run         {self.steps:,} steps, {self.measured.describe(self.steps, self.ranks)}"]


@dataclass(frozen=True)
class MeasuredSpeed:
    """Seconds per step as a run has logged them, after its first tenth."""

    place: str
    ranks: int
    per_rank: int
    seconds: list[float]

    def describe(self, steps: int, ranks: int) -> str:
        tenths = statistics.quantiles(self.seconds, n=10) if len(self.seconds) > 1 else self.seconds * 9
        low, middle, high = tenths[0], statistics.median(self.seconds), tenths[-1]
        other = "" if ranks == self.ranks else f"; measured on {self.ranks} ranks, and {ranks} exchange more"
        return (
            f"{duration(steps * middle)} ({duration(steps * low)} to {duration(steps * high)}) at {middle:.3f} s a "
            f"step (80% of {len(self.seconds)} intervals of {self.place}: {low:.3f} to {high:.3f}){other}"
        )


def plan_fleet(config: TrainConfig, fleet: Fleet) -> FleetPlan:
    """Plan a run on ``fleet.gpus`` GPUs. Raise UserError for a kind that is not listed, or an impossible batch."""
    gpus = fleet.gpus or 1
    if gpus > fleet.gpus_per_node and gpus % fleet.gpus_per_node:
        raise UserError(f"gpus={gpus} is not a whole number of nodes of gpus_per_node={fleet.gpus_per_node}")
    if config.precision == "bf16" and not GPUS[fleet.gpu].bf16:
        raise UserError(f"precision=bf16: a {GPUS[fleet.gpu].title} has no bf16; use precision=fp16")
    batching = resolve_batching(config, gpus)
    with torch.device("meta"):
        model = build_model(config.model)
    setting = interaction_setting(model, config, batching, gpus, config.token_keep_ratio)
    sent = exchanged(resolve_weights(config.loss, config.model.interaction))
    parameters = sum(p.numel() for p in model.parameters())
    batches = batching.accumulation
    messages = loss_messages(setting, sent, config.exchange, config.model.embed_dim, batches)
    messages += zero_messages(parameters, config, batches * batching.chunks)
    columns = config.model.text.context_length
    words = encoded_tokens(config.model.text)
    of_a_pair = encoder_flops(model, words, columns, config.data.feature_cache is None)
    return FleetPlan(
        config,
        fleet,
        gpus,
        batching,
        3 * sum(of_a_pair.values()) * batching.per_rank * batches,
        messages,
        memory_plan(config.model, config, batching, gpus),
        None if fleet.log is None else read_log(Path(fleet.log), batching.per_rank * batches),
        {} if fleet.pairs is None else host_memory(config, gpus, min(gpus, fleet.gpus_per_node), int(fleet.pairs)),
    )


def read_log(place: Path, per_rank: int) -> MeasuredSpeed:
    """Read the seconds per step from a run's log. Raise UserError if it has none, or if its ranks had other batches."""
    folder = place.parent if place.name == "log.jsonl" else place
    log = folder / "log.jsonl"
    if not log.is_file():
        raise UserError(f"log={place}: {nothing_at(log, 'give the run_dir of a training')}")
    seconds, ranks, pairs = [], 0, 0.0
    for line in log.read_text(encoding="utf-8").splitlines():
        values = json.loads(line) if line.endswith("}") else {}
        if "speed/seconds_per_step" in values:
            seconds.append(float(values["speed/seconds_per_step"]))
            pairs = values["speed/pairs_per_second"] * seconds[-1]
    starts = folder / "starts.jsonl"
    if starts.is_file():
        ranks = json.loads(starts.read_text(encoding="utf-8").splitlines()[-1])["world_size"]
    if not seconds or not ranks:
        raise UserError(f"log={place}: no step has been logged there yet")
    if round(pairs / ranks) != per_rank:
        raise UserError(
            f"log={place}: a step there has {round(pairs / ranks)} pairs per rank, and {per_rank} in this plan, which "
            "take another time; measure with the same batch per rank"
        )
    return MeasuredSpeed(str(place), ranks, per_rank, seconds[len(seconds) // 10 :])
