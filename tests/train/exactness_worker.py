"""Run in each rank by test_exactness.py: 20 steps by each engine and by a plain PyTorch loop over whole batches.

The plain loop shares the model's forward pass with the trainer, and the names by which weights decay.
"""

import functools
import gc
import json
import math
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from filip.cli.command import compose_config
from filip.common.errors import UserError
from filip.models import DualEncoder, Encoded, build_model
from filip.train import lamb
from filip.train.config import TrainConfig
from filip.train.engine import gather_to_main, make_engine, resolve_batching
from filip.train.losses import Loss, resolve_weights
from filip.train.optimizers import make_schedule
from filip.train.ranks import Ranks, start_ranks
from filip.train.step import forward_backward
from tests.train.planned_ranks import ENGINES

STEPS, WARMUP, PAIRS, DECAY, KEEP = 20, 5, 12, 3e-2, 0.25
RATES = {"lamb": 6e-3, "adamw": 5e-3}
# Settings and engines of each case. The plain loop knows the optimiser, the interaction, accumulation and selection.
# With a higher rate rounding may choose another of two nearly equal tokens, which moves the weights by 3e-4.
CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "lamb, one vector": (("model.interaction=pooled",), ENGINES),
    "adamw, one vector": (("model.interaction=pooled", "optimizer.name=adamw"), ENGINES),
    "lamb, ring, a quarter of the tokens": ((f"token_keep_ratio={KEEP}", "exchange=ring"), ENGINES[:2]),
    "lamb, accumulated and cached": (("gradient_accumulation=2", "gradient_cache=2"), (ENGINES[0], ENGINES[2])),
    "adamw, accumulated": (("optimizer.name=adamw", "gradient_accumulation=2"), (ENGINES[0], ENGINES[3])),
}


def config_of(*overrides: str) -> TrainConfig:
    name = next((o.partition("=")[2] for o in overrides if o.startswith("optimizer.name=")), "lamb")
    fixed = [
        "run_dir=-", "out=-", "model=tiny", "precision=fp32", "transport_dtype=fp32",
        "backend=tiled",
        f"global_batch={PAIRS}", f"optimizer.base_lr={RATES[name]}", f"optimizer.weight_decay={DECAY}",
    ]  # fmt: skip
    config = compose_config(TrainConfig, [*fixed, *overrides], "train").check()
    config.model.text.vocab_size = 400
    return config


def fresh_model(config: TrainConfig) -> DualEncoder:
    torch.manual_seed(0)
    model = build_model(config.model)
    with torch.no_grad():  # no zeros: a bias that starts at 0 shows no mistake of its decay
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def batch(number: int, rows: slice = slice(None)) -> dict[str, Tensor]:
    """Return those rows of a contrastive batch of all ranks."""
    g = torch.Generator().manual_seed(number)
    whole = {
        "pixels": torch.randn(PAIRS, 3, 32, 32, generator=g),
        "ids": torch.randint(1, 400, (PAIRS, 12), generator=g),
        "lengths": torch.randint(3, 13, (PAIRS,), generator=g),
        "group": torch.arange(PAIRS),
    }
    return {name: value[rows] for name, value in whole.items()}


def by_engine(config: TrainConfig, ranks: Ranks) -> dict[str, Tensor]:
    """Return the weights after all steps, on the first rank."""
    batching = resolve_batching(config, ranks.world_size)
    loss = Loss(resolve_weights(config.loss, config.model.interaction), config)
    engine = make_engine(fresh_model(config), config, batching, ranks.device, loss)
    schedule = make_schedule(config.optimizer.base_lr, batching.pairs_per_step, WARMUP, STEPS)
    own = slice(ranks.rank * batching.per_rank, (ranks.rank + 1) * batching.per_rank)
    for step in range(STEPS):
        engine.set_lr(schedule.at(step))
        for number in range(batching.accumulation):
            own_batch = batch(step * batching.accumulation + number, own)
            forward_backward(engine, own_batch, functools.partial(loss, step=step))
        engine.step()
    return {name: value.clone() for name, value in gather_to_main(engine, ranks).items()}


def by_plain_loop(config: TrainConfig, world_size: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights before and after all steps."""
    model = fresh_model(config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    update = {"lamb": plain_lamb, "adamw": plain_adamw}[config.optimizer.name]
    states: dict[str, dict[str, Tensor]] = {name: {} for name in before}
    times = config.gradient_accumulation
    peak = config.optimizer.base_lr * math.sqrt(PAIRS * times / 512)
    for step in range(STEPS):
        after = (step - WARMUP) / (STEPS - WARMUP)
        rate = peak * ((step + 1) / WARMUP if step < WARMUP else 0.5 * (1 + math.cos(math.pi * after)))
        model.zero_grad()
        for number in range(times):
            b = batch(step * times + number)
            (plain_loss(model(b["pixels"], b["ids"], b["lengths"]), config, world_size) / times).backward()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                is_matrix = name.endswith("weight") and "norm" not in name and "embedding" not in name
                update(weight, states[name], rate, DECAY if is_matrix else 0.0, step + 1)
            model.logit_scale.clamp_(max=math.log(100))
    return before, {name: p.detach() for name, p in model.named_parameters()}


def plain_loss(encoded: Encoded, config: TrainConfig, world_size: int) -> Tensor:
    images, texts = encoded.image, encoded.text
    if isinstance(texts, Tensor):
        s_image = images @ texts.T
        s_text = s_image.T
    else:
        patches, captions = list(images), list(texts.tokens.split(texts.lengths.tolist()))
        if config.token_keep_ratio < 1:
            patches, captions = selected(patches, captions, PAIRS // world_size)
        pairs = [torch.stack(patches) @ caption.T for caption in captions]  # [images, patches, words] each
        s_image = torch.stack([s.amax(2).mean(1) for s in pairs], dim=1)
        s_text = torch.stack([s.amax(1).mean(1) for s in pairs])
    target = torch.arange(PAIRS)
    halves = [F.cross_entropy(encoded.logit_scale * s, target) for s in (s_image, s_text)]
    return (halves[0] + halves[1]) / 2


def selected(patches: list[Tensor], captions: list[Tensor], per_rank: int) -> tuple[list[Tensor], list[Tensor]]:
    """Keep each item's tokens that are most similar to any token of the other side on their rank."""

    def best(items: list[Tensor], others: list[Tensor]) -> list[Tensor]:
        rows = [(item @ torch.cat(others).T).amax(1).topk(math.ceil(KEEP * len(item))).indices for item in items]
        return [item[row.sort().values] for item, row in zip(items, rows, strict=True)]

    kept: tuple[list[Tensor], list[Tensor]] = ([], [])
    for start in range(0, PAIRS, per_rank):
        rank = slice(start, start + per_rank)
        kept[0].extend(best(patches[rank], captions[rank]))
        kept[1].extend(best(captions[rank], patches[rank]))
    return kept


def plain_lamb(w: Tensor, state: dict[str, Tensor], rate: float, decay: float, step: int) -> None:
    m, v = moments(w, state, 0.9, 0.999)
    update = m / (v.sqrt() + 1e-4) + decay * w
    norm, length = w.norm().clamp(max=10), update.norm()
    w -= rate * (norm / length if norm > 0 and length > 0 else 1) * update


def plain_adamw(w: Tensor, state: dict[str, Tensor], rate: float, decay: float, step: int) -> None:
    m, v = moments(w, state, 0.9, 0.999)
    w *= 1 - rate * decay
    w -= rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)


def moments(w: Tensor, state: dict[str, Tensor], beta1: float, beta2: float) -> tuple[Tensor, Tensor]:
    m, v = (state.setdefault(name, torch.zeros_like(w)) for name in ("m", "v"))
    assert w.grad is not None
    m += (1 - beta1) * (w.grad - m)
    v += (1 - beta2) * (w.grad**2 - v)
    return m, v


def distance(weights: dict[str, Tensor], plain: dict[str, Tensor], before: dict[str, Tensor]) -> float:
    """Return how far ``weights`` are from ``plain``, relative to the way that these went from ``before``.

    Without the biases of keys: every softmax ignores them, so that their gradient is rounding, which AdamW scales up.
    """

    def all_but_keys(values: dict[str, Tensor]) -> Tensor:
        parts = [value.chunk(3)[::2] if name.endswith("qkv.bias") else [value] for name, value in values.items()]
        return torch.cat([part.double().flatten() for share in parts for part in share])

    start, end = all_but_keys(before), all_but_keys(plain)
    return float((all_but_keys({name: weights[name] for name in plain}) - end).norm() / (end - start).norm())


def refuses_a_lost_stretch(engine: str, ranks: Ranks) -> bool:
    """Return True if every rank refuses LAMB where the last rank does not find the first stretch of its tensors."""
    whole = lamb._layout

    def incomplete(flat: Tensor, parameters: Any, names: Any, stretches: list[Any], group: Any) -> Any:
        return whole(flat, parameters, names, stretches[ranks.rank == ranks.world_size - 1 :], group)

    lamb._layout = incomplete
    try:
        by_engine(config_of(engine), ranks)
    except UserError as error:
        return "elements of" in str(error)
    finally:
        lamb._layout = whole
    return False


def main() -> None:
    ranks = start_ranks()
    result: dict[str, float] = {}
    for case, (overrides, engines) in CASES.items():
        before, plain = by_plain_loop(config_of(*overrides), ranks.world_size) if ranks.is_main else ({}, {})
        for engine in engines:
            weights = by_engine(config_of(*overrides, engine), ranks)
            if ranks.is_main:
                result[f"{case}, {engine}"] = distance(weights, plain, before)
            gc.collect()
    refusals = [refuses_a_lost_stretch(engine, ranks) for engine in ENGINES[1::2]]
    result["refused"] = float(all(refusals))
    if ranks.is_main:
        print("RESULT", json.dumps(result), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
