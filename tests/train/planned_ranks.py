"""Run in each rank by test_fleet.py and test_plan.py: what a training step receives and holds, beside its plan.

What it receives is counted at the calls of torch.distributed.
"""

import gc
import json
import math
import os
import sys
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from filip.command import compose_config
from filip.device import peak_memory_mb
from filip.models import Encoded, TextFeatures, build_model
from filip.train.config import TrainConfig
from filip.train.counts import Counts, Message, count
from filip.train.deepspeed_engine import DeepSpeedEngine
from filip.train.engine import Engine, resolve_batching
from filip.train.engines import make_engine
from filip.train.losses import Loss, resolve_weights
from filip.train.ranks import Ranks, start_ranks
from filip.train.step import backward

ENGINES = ("engine=ddp", "zero_stage=1", "zero_stage=2", "zero_stage=3")
WORDS = 18  # tokens of every caption, as the plan assumes


class Received(TorchDispatchMode):
    """A count of the bytes that reach this rank, by kind of collective, without counts, lengths and less than 1 kB."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        if function.namespace == "c10d":
            self._count(function.__name__.split(".")[0].strip("_"), arguments)
        return function(*arguments, **(keywords or {}))

    def _count(self, name: str, arguments: Any) -> None:
        ranks = dist.get_world_size()
        tensors = [t for t in tree_leaves(arguments) if isinstance(t, Tensor)]
        sizes = [t.nbytes for t in tensors if t.is_floating_point()]
        kind, received = {
            "allgather": ("all_gather", sum(sizes) * (ranks - 1) / (ranks + 1)),
            "allgather_base": ("all_gather", sum(sizes) * (ranks - 1) / (ranks + 1)),
            "reduce_scatter": ("reduce_scatter", sum(sizes) * (ranks - 1) / (ranks + 1)),
            "_reduce_scatter_base": ("reduce_scatter", sum(sizes) * (ranks - 1) / (ranks + 1)),
            "reduce_scatter_base": ("reduce_scatter", sum(sizes) * (ranks - 1) / (ranks + 1)),
            "allreduce": ("all_reduce", 2 * sum(sizes) * (ranks - 1) / ranks),
            "alltoall_base": ("all_to_all", sum(sizes) / 2 * (ranks - 1) / ranks),
            "recv": ("ring", sum(sizes)),
        }.get(name, ("", 0))
        if received > 1000:
            self.bytes[kind] += received


def planned(messages: list[Message], ranks: int) -> dict[str, float]:
    found: Counter[str] = Counter()
    for message in messages:
        found[message.kind.removesuffix("_and_back")] += message.received(ranks)
    return dict(found)


def config_of(*overrides: str) -> TrainConfig:
    return compose_config(TrainConfig, ["run_dir=-", "out=-", *overrides], "train")


def plan_of(config: TrainConfig, ranks: Ranks) -> Counts:
    return count(config.model, config, resolve_batching(config, ranks.world_size), ranks.world_size)


def two_steps(config: TrainConfig, ranks: Ranks, words: int | None = None) -> tuple[Engine, Counter[str]]:
    """Take two steps with captions of full length or so many words; return the engine, and what the second received."""
    words = words or config.model.text.context_length
    torch.manual_seed(0)
    batching = resolve_batching(config, ranks.world_size)
    loss = Loss(resolve_weights(config.loss, config.model.interaction), config)
    engine = make_engine(build_model(config.model), config, batching, ranks.device, loss)
    b, side = batching.per_rank, config.model.image.image_size
    batch = {
        "pixels": torch.randn(b, 3, side, side),
        "ids": torch.randint(1, 49000, (b, words)),
        "lengths": torch.full((b,), words),
        "group": torch.arange(b) + b * ranks.rank,
    }
    backward(engine, batch, loss)
    with Received() as received:
        backward(engine, batch, loss)
    return engine, received.bytes


def steps(ranks: Ranks) -> dict[str, Any]:
    result = {}
    for engine, exchange in zip(ENGINES, ("ring", "gather", "ring", "gather"), strict=True):
        config = config_of(
            "model=tiny", "precision=fp32", engine, f"exchange={exchange}", f"global_batch={96 * ranks.world_size}"
        )
        _, received = two_steps(config, ranks, WORDS)
        result[f"{engine}, {exchange}"] = {
            "received": dict(received),
            "planned": planned(plan_of(config, ranks).messages, ranks.world_size),
        }
    return result


def presets(ranks: Ranks) -> dict[str, Any]:
    """Return what the loss of the paper's two presets receives in their first step and in a late one."""
    result = {}
    for name in ("base", "large"):
        config = config_of(f"experiment={name}", f"global_batch={32 * ranks.world_size}")
        counts = plan_of(config, ranks)
        with torch.device("meta"):
            patches = math.prod(build_model(config.model).image.grid)
        for step, messages in ((0, counts.early_messages), (1_000_000, counts.messages)):
            image, text = (torch.randn(*shape, config.model.embed_dim) for shape in ((32, patches), (32 * WORDS,)))
            text = TextFeatures(text.requires_grad_(), torch.full((32,), WORDS))
            encoded = Encoded(image.requires_grad_(), text, torch.ones(1))
            loss = Loss(resolve_weights(config.loss, config.model.interaction), config)
            with Received() as received:
                loss(encoded, torch.arange(32) + 32 * ranks.rank, step).loss.backward()
            result[f"{name}, step {step}"] = {
                "received": dict(received.bytes),
                "planned": planned([m for m in messages if m.part == "exchange"], ranks.world_size),
            }
    return result


def held(engine: Engine) -> dict[str, int]:
    """Return the bytes of distinct storages: weights, master weights that are not views of them, moments."""
    moments = [t for state in engine.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    flats = []
    if isinstance(engine, DeepSpeedEngine):
        wrapper = engine.deepspeed.optimizer
        flats += getattr(wrapper, "single_partition_of_fp32_groups", [])
        flats += getattr(wrapper, "fp32_partitioned_groups_flat", [])
    weights = [getattr(p, "ds_tensor", p) for p in engine.model.parameters()]
    weight_storages = storages(weights)
    return {
        "weights": sum(weight_storages.values()),
        "master weights": sum(size for place, size in storages(flats).items() if place not in weight_storages),
        "moments": sum(storages(moments).values()),
    }


def storages(tensors: list[Tensor]) -> dict[int, int]:
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def peak_mb(ranks: Ranks) -> float:
    return peak_memory_mb(ranks.device) * 2**20 / 1e6


def stages(ranks: Ranks) -> dict[str, dict]:
    result = {}
    for name in ENGINES:
        config = config_of("model=tiny", "precision=fp32", name, "global_batch=12")
        engine, _ = two_steps(config, ranks)
        result[name] = {"held": held(engine), "planned": plan_of(config, ranks).memory}
        del engine
        gc.collect()
    return result


def peak(ranks: Ranks, checkpointing: str) -> dict[str, float]:
    config = config_of(
        "model=small",
        "precision=fp32",
        "global_batch=32",
        "model.image.layers=6",
        "model.text.layers=3",
        f"model.gradient_checkpointing={checkpointing}",
    )
    two_steps(config_of("model=tiny", "precision=fp32", "global_batch=4"), ranks)  # what is loaded at first use
    before = peak_mb(ranks)
    two_steps(config, ranks)
    return {"measured": peak_mb(ranks) - before, "planned": plan_of(config, ranks).total / 1e6}


if __name__ == "__main__":
    started = start_ranks()
    what, *options = sys.argv[1:]
    measured = {"steps": steps, "presets": presets, "stages": stages, "peak": peak}[what]
    outcome = measured(started, *options)
    if started.is_main:
        print("RESULT", json.dumps(outcome), flush=True)
    dist.barrier()
    os._exit(0)
