"""A fleet on paper: how long a step takes, part by part, what crosses each link, and what a whole run costs.

Flops, bytes and numbers of messages are counted (filip/train/counts.py, filip/interaction/cost.py); seconds follow from
the data sheets in filip/train/hardware.py and from the efficiencies in FleetConfig, which are assumptions. Parts are
added up, since nothing of a step overlaps here but two things: a ring with the scoring of its blocks, and the loader
with everything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from filip.errors import UserError
from filip.files import readable
from filip.interaction.cost import Setting, tiled_on_gpu, triton
from filip.models import DualEncoder, build_model
from filip.train.config import TrainConfig
from filip.train.counts import SMALL_MESSAGES, Message, encoder_flops, loss_messages, passes, zero_messages
from filip.train.engine import Batching, resolve_batching
from filip.train.hardware import GB, GPUS, NETWORKS, FleetConfig, Gpu, Network
from filip.train.host_memory import to_ask_for
from filip.train.losses import exchanged, resolve_weights
from filip.train.memory import (
    CAPTION_TOKENS,
    MemoryPlan,
    host_memory,
    interaction_setting,
    memory_plan,
)
from filip.train.optimizers import OPTIMIZERS
from filip.train.telemetry import duration


@dataclass(frozen=True)
class Links:
    """A fleet's connections as a collective sees them."""

    ranks: int
    per_node: int
    gpu: Gpu
    network: Network
    efficiency: float

    @property
    def nodes(self) -> int:
        return -(-self.ranks // self.per_node)

    def node_bytes(self, message: Message) -> float:
        """Return the bytes that enter a node over the network.

        A ring over all ranks, node after node, enters each node once.
        """
        if self.nodes == 1:
            return 0.0
        received = message.received(self.ranks)
        if (
            message.kind == "all_to_all"
        ):  # every GPU has its own, and what comes from its node does not cross the network
            return self.per_node * received * (self.ranks - self.per_node) / (self.ranks - 1)
        return received

    def seconds(self, message: Message) -> float:
        """Return the time of the slower of the two links, plus the latency of the messages that follow one another."""
        cards = 1 if message.kind.startswith("ring") else self.network.cards  # two GPUs talk through one card
        crossing = self.node_bytes(message) / (cards * self.network.card)
        inside = message.received(self.ranks) / self.gpu.link
        latency = self.network.latency if self.nodes > 1 else 1e-6
        return max(crossing, inside) / self.efficiency + message.hops(self.ranks) * latency


@dataclass(frozen=True)
class FleetPlan:
    """The result of :func:`simulate`; seconds per optimiser step by part, bytes per step by message."""

    config: TrainConfig
    links: Links
    batching: Batching
    seconds: dict[str, float]
    messages: list[Message]
    memory: MemoryPlan
    host: dict[str, float]  # bytes of a node's main memory by part
    mfu: float  # the encoders' arithmetic without recomputation, over the peak of the whole step
    fleet: FleetConfig
    price: float | None

    @property
    def step(self) -> float:
        return sum(self.seconds.values())

    @property
    def steps(self) -> int:
        """Return the optimiser steps of the run."""
        limits = []
        if self.config.epochs is not None:
            limits.append(int(self.config.epochs * (self.fleet.pairs // self.batching.pairs_per_step)))
        if self.config.max_steps is not None:
            limits.append(self.config.max_steps)
        return min(limits)

    def received(self) -> float:
        """Return the bytes that a GPU receives in a step."""
        return sum(message.received(self.links.ranks) for message in self.messages)

    def lines(self) -> list[str]:
        """Return the lines of the report."""
        links, gpu, batch = self.links, self.links.gpu, self.batching
        parts = ", ".join(
            f"{name} {value:.3f} s ({value / self.step:.0%})" for name, value in self.seconds.items() if value
        )
        rate = batch.pairs_per_step / self.step
        days = self.steps * self.step / 86400
        hours = days * 24 * links.ranks
        cost = (
            f", {hours * self.price:,.0f} USD at {self.price:g} each"
            if self.price
            else ", no price known: price="
        )
        fits = "fits" if self.memory.total < 0.9 * gpu.memory else "DOES NOT FIT"
        sent = ", ".join(
            f"{m.part} {m.kind} {readable(m.received(links.ranks))}" for m in self.messages if m.size
        )
        crossing = sum(links.node_bytes(message) for message in self.messages)
        where = f"{links.nodes} nodes, {links.network.title}" if links.nodes > 1 else "one node"
        disk = rate * self.fleet.image_kb * 1000
        return [
            f"fleet       {links.ranks} x {gpu.title}, {min(links.per_node, links.ranks)} a node; {where}",
            f"batch       {batch.global_batch} pairs = {batch.per_rank} x {links.ranks}"
            + (f", {batch.accumulation} batches per step" if batch.accumulation > 1 else ""),
            f"step        {self.step:.3f} s: {parts}",
            f"speed       {rate:,.0f} pairs/s, {rate / links.ranks:.0f} per GPU, {self.mfu:.1%} of the peak (MFU)",
            f"links       a GPU receives {readable(self.received())} a step ({sent}); a node {readable(crossing)} over "
            f"the network; the file system gives {readable(disk)}/s",
            f"{self.memory.lines()[1]} ({fits} in {readable(gpu.memory)})",
            f"host        about {readable(sum(self.host.values()))} of main memory per node, ask for mem_mb="
            f"{to_ask_for(self.host)}: "
            + ", ".join(f"{name} {readable(size)}" for name, size in self.host.items()),
            f"run         {self.steps:,} steps, {duration(self.steps * self.step)}, {hours:,.0f} GPU hours{cost}",
            "assumed     " + ", ".join(f"fleet.{name}={value:g}" for name, value in vars(self.fleet).items()),
        ]


def simulate(
    config: TrainConfig,
    gpus: int,
    gpu: str,
    network: str,
    fleet: FleetConfig,
    price: float | None = None,
) -> FleetPlan:
    """Plan a run on ``gpus`` GPUs. Raise UserError for a kind that is not listed, or a batch that they cannot share."""
    links = make_links(config, gpus, gpu, network, fleet)
    batching = resolve_batching(config, gpus)
    with torch.device("meta"):
        model = build_model(config.model)
    setting = interaction_setting(model, config, batching, gpus)
    sent = exchanged(resolve_weights(config.loss, config.model.interaction))
    parameters = sum(p.numel() for p in model.parameters())
    batches = batching.accumulation
    messages = loss_messages(setting, sent, config.exchange, config.model.embed_dim, batches)
    messages += zero_messages(parameters, config, batches * batching.chunks)
    columns = config.model.text.context_length
    words, captions = min(CAPTION_TOKENS, columns), config.data.captions_per_image
    of_a_pair = encoder_flops(model, words, columns, captions, config.data.feature_cache is None)
    flops = sum(of_a_pair.values()) * batching.per_rank
    peak = links.gpu.single if config.precision == "fp32" else links.gpu.half
    repeated = passes(config.model.gradient_checkpointing, batching.chunks)
    seconds = {
        "encoders": batches * repeated * flops / (peak * fleet.encoder_efficiency),
        "loss": batches * loss_seconds(setting, config, model, links.gpu, peak * fleet.loss_efficiency),
        "exchange": 0.0,
        "gradients": sum(links.seconds(m) for m in messages if m.part == "gradients"),
        "optimiser": optimizer_seconds(parameters, config, gpus, links.gpu),
    }
    small = SMALL_MESSAGES * links.seconds(Message("exchange", "all_gather", 0.0))
    rings = sum(links.seconds(m) for m in messages if m.kind.startswith("ring"))
    others = sum(links.seconds(m) for m in messages if m.part == "exchange") - rings
    seconds["exchange"] = small + others + max(0.0, rings - seconds["loss"])
    step = sum(seconds.values())
    seconds["checkpoints"] = checkpoint_seconds(parameters, config, fleet, step)
    loading = batching.per_rank // captions * batches / (max(1, config.data.workers) * fleet.images_per_core)
    seconds["data"] = max(0.0, loading - step)
    whole = sum(seconds.values())
    return FleetPlan(
        config,
        links,
        batching,
        seconds,
        messages,
        memory_plan(config.model, config, batching, gpus),
        host_memory(config, gpus, links.per_node, fleet.pairs),
        3 * flops * batches / (peak * whole),
        fleet,
        links.gpu.price if price is None else price,
    )


def make_links(config: TrainConfig, gpus: int, gpu: str, network: str, fleet: FleetConfig) -> Links:
    """Return the links; raise UserError for a GPU or network that is not listed, or for impossible numbers."""
    for name, value, known in (("gpu", gpu, list(GPUS)), ("network", network, list(NETWORKS))):
        if value not in known:
            raise UserError(f"{name}={value!r} is not listed; choose one of {', '.join(known)}")
    for name, value in vars(fleet).items():
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"fleet.{name}={value} must be positive")
    if gpus < 1 or (gpus > fleet.gpus_per_node and gpus % fleet.gpus_per_node):
        raise UserError(f"gpus={gpus} are no whole nodes of fleet.gpus_per_node={fleet.gpus_per_node}")
    if config.precision == "bf16" and not GPUS[gpu].triton:
        raise UserError(f"precision=bf16: a {GPUS[gpu].title} has no bf16; use precision=fp16")
    per_node = min(gpus, fleet.gpus_per_node)
    return Links(gpus, per_node, GPUS[gpu], NETWORKS[network], fleet.network_efficiency)


def loss_seconds(
    setting: Setting, config: TrainConfig, model: DualEncoder, gpu: Gpu, flops_per_second: float
) -> float:
    """Return the seconds that the loss takes for one contrastive batch.

    Without Triton the tiled backend waits for memory: a tile is written once and read for each maximum, in float32, and
    for each gradient written and read once, in the tokens' dtype.
    """
    sent = exchanged(resolve_weights(config.loss, config.model.interaction))
    pairs, seconds = setting.local * setting.global_batch, 0.0
    if "tokens" in sent and gpu.triton:
        seconds += triton(setting).flops / flops_per_second
    elif "tokens" in sent:
        tiles = (3 * 4 + 2 * 2 * setting.token_bytes) * pairs * setting.n1 * setting.n2
        seconds += tiled_on_gpu(setting).flops / flops_per_second + tiles / gpu.bandwidth
    if "tokens" in sent and config.token_keep_ratio < 1:  # chosen with a product over the local batch
        tokens = (
            model.image.grid[0] * model.image.grid[1] * min(CAPTION_TOKENS, config.model.text.context_length)
        )
        seconds += 2 * setting.local**2 * tokens * setting.dim / flops_per_second
    if "vectors" in sent:
        seconds += 3 * 2 * pairs * config.model.embed_dim / flops_per_second
    return seconds


def optimizer_seconds(parameters: int, config: TrainConfig, ranks: int, gpu: Gpu) -> float:
    """Return the seconds of one pass over the state that a rank holds."""
    own = parameters / ranks if config.zero_stage else parameters
    return own * OPTIMIZERS[config.optimizer.name].traffic / gpu.bandwidth


def checkpoint_seconds(parameters: int, config: TrainConfig, fleet: FleetConfig, step: float) -> float:
    """Return the seconds that writing all states and the weights adds to each step between two checkpoints."""
    size = parameters * (12 + (2 if config.precision == "fp16" else 4))
    saving = size / (fleet.disk_gb_per_second * GB)
    minutes, every = config.checkpoint.every_minutes, config.checkpoint.every_steps
    between = [60 * minutes] * (minutes > 0) + [every * step] * (every > 0)
    return step * saving / min(between) if between else 0.0
