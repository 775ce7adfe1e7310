"""Run in each rank by test_plan.py: bytes that a run really holds, stage by stage, and its peak, as JSON."""

import gc
import json
import os
import sys

import torch
from torch import Tensor

from filip.command import compose_config
from filip.device import peak_memory_mb
from filip.models import build_model
from filip.train.config import TrainConfig
from filip.train.counts import count
from filip.train.engine import Engine, make_engine, resolve_batching
from filip.train.losses import Loss, resolve_weights
from filip.train.ranks import Ranks, start_ranks
from filip.train.step import backward


def config_of(*overrides: str) -> TrainConfig:
    places = ["run_dir=-", "out=-", "precision=fp32"]
    return compose_config(TrainConfig, [*places, *overrides], "train")


def one_step(config: TrainConfig, ranks: Ranks) -> Engine:
    torch.manual_seed(0)
    batching = resolve_batching(config, ranks.world_size)
    loss = Loss(resolve_weights(config.loss, config.model.interaction), config)
    engine = make_engine(build_model(config.model), config, batching, ranks.world_size, loss)
    b, side, words = batching.per_rank, config.model.image.image_size, config.model.text.context_length
    batch = {
        "pixels": torch.randn(b, 3, side, side),
        "ids": torch.randint(1, 49000, (b, words)),
        "lengths": torch.full((b,), words),
        "group": torch.arange(b) + b * ranks.rank,
    }
    backward(engine, batch, loss)
    return engine


def held(engine: Engine) -> dict[str, int]:
    """Return the bytes of distinct storages: weights, master weights that are not views of them, moments."""
    moments = [t for state in engine.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    wrapper = engine.deepspeed.optimizer
    flats = [
        *getattr(wrapper, "single_partition_of_fp32_groups", []),
        *getattr(wrapper, "fp32_partitioned_groups_flat", []),
    ]
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
    for stage in range(4):
        config = config_of("model=tiny", f"zero_stage={stage}", "global_batch=12")
        engine = one_step(config, ranks)
        plan = count(config.model, config, engine.batching, ranks.world_size)
        result[f"stage {stage}"] = {"held": held(engine), "planned": plan.memory}
        del engine
        gc.collect()
    return result


def peak(ranks: Ranks, checkpointing: str) -> dict[str, float]:
    config = config_of(
        "model=small",
        "global_batch=32",
        "model.image.layers=6",
        "model.text.layers=3",
        f"model.gradient_checkpointing={checkpointing}",
    )
    one_step(config_of("model=tiny", "global_batch=4"), ranks)  # what is loaded at first use
    before = peak_mb(ranks)
    engine = one_step(config, ranks)
    plan = count(config.model, config, engine.batching, ranks.world_size)
    return {"measured": peak_mb(ranks) - before, "planned": plan.total / 1e6}


def main(what: str) -> None:
    ranks = start_ranks()
    result = stages(ranks) if what == "stages" else peak(ranks, what)
    if ranks.is_main:
        print("RESULT", json.dumps(result), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
