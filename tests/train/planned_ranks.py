"""Run in each rank by test_plan.py: what a training step holds, beside its plan."""

import gc
import json
import os

import torch
import torch.distributed as dist
from torch import Tensor

from filip.cli.command import compose_config
from filip.models import build_model
from filip.train.config import TrainConfig
from filip.train.costs import count
from filip.train.engine import DeepSpeedEngine, Engine, make_engine, resolve_batching
from filip.train.losses import Loss, resolve_weights
from filip.train.ranks import Ranks, start_ranks
from filip.train.step import forward_backward

ENGINES = ("engine=ddp", "zero_stage=1", "zero_stage=2", "zero_stage=3")


def two_steps(config: TrainConfig, ranks: Ranks) -> Engine:
    words = config.model.text.context_length
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
    for _ in range(2):
        forward_backward(engine, batch, loss)
        engine.step()
    return engine


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


def stages(ranks: Ranks) -> dict[str, dict]:
    result = {}
    for name in ENGINES:
        given = ["run_dir=-", "out=-", "model=tiny", "precision=fp32", name, "global_batch=12"]
        config = compose_config(TrainConfig, given, "train")
        engine = two_steps(config, ranks)
        plan = count(config.model, config, resolve_batching(config, ranks.world_size), ranks.world_size)
        result[name] = {"held": held(engine), "planned": plan.memory}
        del engine
        gc.collect()
    return result


if __name__ == "__main__":
    started = start_ranks()
    outcome = stages(started)
    if started.is_main:
        print("RESULT", json.dumps(outcome), flush=True)
    dist.barrier()
    os._exit(0)
