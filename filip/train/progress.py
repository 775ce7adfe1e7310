"""What is said before the first step, and after every interval."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from filip.data.loading.transforms import denormalize
from filip.tokenizer import decode_token
from filip.train.checkpoint import LoopState
from filip.train.plan import memory_plan
from filip.train.telemetry import memory_mb, peak_memory_mb, say, text_line

if TYPE_CHECKING:
    from filip.train.loop import Run


@dataclass
class Interval:
    """Metrics and times of the steps since the last line."""

    metrics: list[dict[str, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    all_seconds: list[float] = field(default_factory=list)

    def add(self, metrics: dict[str, float], seconds: float) -> None:
        self.metrics.append(metrics)
        self.seconds.append(seconds)
        self.all_seconds.append(seconds)

    def mean(self, name: str) -> float:
        return statistics.fmean(m[name] for m in self.metrics)

    def clear(self) -> None:
        self.metrics.clear()
        self.seconds.clear()


def write_interval(run: Run, interval: Interval) -> dict[str, Any]:
    """Record an interval everywhere and start the next. All ranks call (memory is a maximum over them)."""
    memory = run.ranks.maximum(memory_mb(run.ranks.device))
    peak = run.ranks.maximum(peak_memory_mb(run.ranks.device))
    values = interval_values(run, interval) | {"memory/now_mb": memory, "memory/peak_mb": peak}
    if run.ranks.is_main:
        run.telemetry.record(run.state.step, values)
        recent = statistics.median(interval.all_seconds[-100:])
        left = (run.schedule.steps - run.state.step) * recent
        say(text_line(run.state.step, run.schedule.steps, values, left))
    interval.clear()
    return values


def interval_values(run: Run, interval: Interval) -> dict[str, Any]:
    """Numbers of an interval under their TensorBoard names."""
    engine, last, seconds = run.engine, interval.metrics[-1], sum(interval.seconds)
    values: dict[str, Any] = {
        "epoch": round(run.state.step * run.batching.pairs_per_step / run.loader.pairs, 4),
        "loss/total": interval.mean("loss"),
        "loss/i2t": interval.mean("i2t_loss"),
        "loss/t2i": interval.mean("t2i_loss"),
        "accuracy/i2t": interval.mean("i2t_accuracy"),
        "accuracy/t2i": interval.mean("t2i_accuracy"),
        "optimizer/lr": run.schedule.at(run.state.step - 1),
        "optimizer/logit_scale": last["logit_scale"],
        "optimizer/loss_scale": engine.loss_scale(),
        "optimizer/skipped_steps": engine.skipped_steps,
        "speed/pairs_per_second": run.batching.pairs_per_step * len(interval.seconds) / seconds,
        "speed/seconds_per_step": seconds / len(interval.seconds),
        "speed/data_wait_seconds": interval.mean("waited"),
        "speed/compute_seconds": seconds / len(interval.seconds) - interval.mean("waited"),
        "speed/data_share": interval.mean("waited") * len(interval.seconds) / seconds,
    }
    for group in engine.deepspeed.optimizer.param_groups:
        values[f"optimizer/lr_{group.get('name', 'all')}"] = group["lr"]
    weight = run.config.pooled_weight
    if weight:
        token = (values["loss/i2t"] + values["loss/t2i"]) / 2
        values["loss/pooled"] = (values["loss/total"] - token) / weight
    if math.isfinite(last["special_share"]):
        values["tokens/bos_eos_share"] = last["special_share"]
    values |= norm_values(engine.norms(), engine.grad_norm())
    for problem, count in run.loader.counters.items():
        values[f"data/{problem}"] = count
    return values


def norm_values(norms: dict[str, dict[str, float]], grad_norm: float | None) -> dict[str, float]:
    """Norms of the whole model and the spread of the trust ratios."""
    values = {} if grad_norm is None else {"optimizer/grad_norm": grad_norm}
    if not norms:
        return values
    ratios = [n["trust_ratio"] for n in norms.values()]
    return values | {
        "optimizer/weight_norm": math.sqrt(sum(n["weight"] ** 2 for n in norms.values())),
        "trust_ratio/min": min(ratios),
        "trust_ratio/median": statistics.median(ratios),
        "trust_ratio/max": max(ratios),
    }


def final_metrics(record: dict[str, Any]) -> dict[str, float]:
    """Of the last interval, under the names of the result file."""
    names = {
        "loss": "loss/total",
        "i2t_loss": "loss/i2t",
        "t2i_loss": "loss/t2i",
        "pooled_loss": "loss/pooled",
        "i2t_accuracy": "accuracy/i2t",
        "t2i_accuracy": "accuracy/t2i",
        "logit_scale": "optimizer/logit_scale",
    }
    return {name: record[tag] for name, tag in names.items() if tag in record}


def print_plan(run: Run) -> None:
    """Before the first step: batch, schedule, model, memory and loader, each with its reason."""
    if not run.ranks.is_main:
        return
    b, c, loader = run.batching, run.config, run.loader
    optimizer = run.config.optimizer
    threads = _threads()
    say(f"run         {c.run} in {c.run_dir}, on {run.ranks.world_size} x {run.ranks.device.type}, {threads}")
    cached = f", encoded {b.chunk} at a time (gradient caching)" if b.chunks > 1 else ""
    accumulated = f", {b.accumulation} batches per optimiser step" if b.accumulation > 1 else ""
    say(
        f"batch       {b.global_batch} pairs = {b.per_rank} x {run.ranks.world_size} ranks{accumulated}{cached}"
    )
    say(f"schedule    {run.schedule.reason(optimizer.base_lr, b.pairs_per_step)}")
    per_epoch = len(loader) / b.accumulation
    epochs = run.schedule.steps / per_epoch
    say(
        f"steps       {run.schedule.steps} = {epochs:.2f} epochs of {per_epoch:g} steps ({loader.pairs} pairs)"
    )
    say(
        f"optimiser   {optimizer.name}, weight decay {optimizer.weight_decay:g} on matrices, "
        f"gradient clipping {optimizer.clip_grad_norm or 'off'}"
    )
    if c.pooled_weight:
        say(f"loss        token-wise + {c.pooled_weight:g} x global ([CLS] and [EOS])")
    for line in memory_plan(run.engine.model.config, c, b, run.ranks.world_size).lines():
        say(line)
    stream = loader.stream
    shards = sum(len(index.tars) for index in stream.indices)
    say(
        f"loader      {len(stream.indices)} sources, {shards} shards, {c.data.workers} workers per rank, "
        f"auto_augment={c.data.auto_augment}, back_translation={c.data.back_translation}, seed {c.seed}"
    )
    if loader.counters:
        say(
            f"            left out: {', '.join(f'{n} {count}' for n, count in sorted(loader.counters.items()))}"
        )


def preview(run: Run, batch: dict[str, Any], count: int = 16) -> None:
    """The first images as the model sees them, augmented, and their captions, into TensorBoard."""
    if not run.ranks.is_main:
        return
    pixels = denormalize(batch["pixels"][:count])
    rows = [
        np.concatenate(list(pixels[i : i + 4]), axis=1) for i in range(0, len(pixels) - len(pixels) % 4, 4)
    ]
    if rows:
        run.telemetry.images(0, "data/augmented", np.concatenate(rows, axis=0))
    captions = []
    for ids, length in zip(batch["ids"][:count].tolist(), batch["lengths"][:count].tolist(), strict=True):
        captions.append(" ".join(decode_token(token) for token in ids[1 : length - 1]))
    run.telemetry.text(0, "data/captions", "\n\n".join(captions))


def changes(saved: LoopState, now: LoopState) -> str:
    """What is different from the checkpoint although the run goes on, as the end of a sentence."""
    notes = []
    if saved.world_size != now.world_size:
        notes.append(f"{saved.world_size} ranks then, {now.world_size} now")
    if saved.zero_stage != now.zero_stage:
        notes.append(f"ZeRO-{saved.zero_stage} then, ZeRO-{now.zero_stage} now")
    for place in sorted(saved.manifests.keys() | now.manifests.keys()):
        before, after = saved.manifests.get(place), now.manifests.get(place)
        if before != after:
            notes.append(f"WARNING: the data manifest of {place} was {before}, is {after}")
    return "".join(f"; {note}" for note in notes)


def _threads() -> str:
    import torch

    return f"{torch.get_num_threads()} threads per rank"
