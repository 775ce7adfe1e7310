"""A run: everything that a step touches, the banner before the first one, and the numbers of every interval."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from filip.common import device
from filip.common.progress import say
from filip.loading.augment_on_device import Crops, finish
from filip.loading.loader import PairLoader
from filip.models.temperature import at_clamp
from filip.runs.record import now
from filip.runs.saved_files import LoopState
from filip.train.config import TrainConfig
from filip.train.costs import count, interaction_flops, peak_flops
from filip.train.engine import Batching, Engine
from filip.train.losses import Loss
from filip.train.losses.term import WeightSchedule
from filip.train.optimizers import Schedule
from filip.train.ranks import Ranks, StopSignal
from filip.train.telemetry import Telemetry, text_line
from filip.train.watchdog import StepStatus, Watchdog


@dataclass
class Run:
    """Everything that a step touches."""

    config: TrainConfig
    ranks: Ranks
    batching: Batching
    engine: Engine
    loss: Loss
    loader: PairLoader
    schedule: Schedule
    state: LoopState
    telemetry: Telemetry
    watchdog: Watchdog
    stop: StopSignal
    step_flops: float  # of both towers in a step of this rank, as ``filip train plan`` counts them
    commit: str | None  # the code's, when this start began
    started: str = field(default_factory=now)
    last_saved: float = field(default_factory=time.monotonic)
    last_record: dict[str, Any] = field(default_factory=dict)
    evaluated: dict[str, float] = field(default_factory=dict)  # in the last evaluation while training
    steps_here: int = 0  # of this start
    # steps that have been taken, with numbers still on the device: one for each name, the scale, 1 if it was left out
    unread: list[tuple[StepStatus, list[str], Tensor]] = field(default_factory=list)
    unread_seconds: float = 0.0  # of these steps
    interval: list[StepStatus] = field(default_factory=list)  # the steps since the last line of the log

    @property
    def elapsed(self) -> dict[str, float]:
        """Return the time of all steps so far, without evaluations and checkpoints, under its TensorBoard names."""
        return {"time/seconds": self.state.seconds, "time/processor_seconds": self.state.processor_seconds}

    @property
    def folder(self) -> Path:
        return Path(self.config.run_dir)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def is_over(self) -> bool:
        return self.state.step >= self.schedule.steps


def write_interval(run: Run) -> dict[str, Any]:
    """Record an interval everywhere and start the next. All ranks call (memory is a maximum over them)."""
    engine, steps = run.engine, run.interval
    last, count = steps[-1], len(steps)
    seconds, data_wait = sum(step.seconds for step in steps), statistics.fmean(step.data_wait for step in steps)
    names = dict.fromkeys(name for step in steps for name in step.metrics)
    values: dict[str, Any] = {
        "epoch": round(run.state.step * run.batching.pairs_per_step / run.loader.pairs, 4),
        **run.elapsed,
        **{name: statistics.fmean(s.metrics[name] for s in steps if name in s.metrics) for name in names},
        "optimizer/lr": engine.lr,
        "optimizer/logit_scale": last.logit_scale,
        "optimizer/loss_scale": last.loss_scale,
        "optimizer/skipped_steps": engine.skipped_steps,
        "monitor/skipped_share": statistics.fmean(step.skipped for step in steps),
        "monitor/at_clamp": float(at_clamp(last.logit_scale, engine.model.config.max_logit_scale)),
        "speed/pairs_per_second": run.batching.pairs_per_step * count / seconds,
        "speed/seconds_per_step": seconds / count,
        "speed/data_wait_seconds": data_wait,
        "speed/compute_seconds": seconds / count - data_wait,
        "speed/data_share": data_wait * count / seconds,
    }
    for group in engine.optimizer.param_groups:
        values[f"optimizer/lr_{group.get('name', 'all')}"] = group["lr"]
    if any(isinstance(weight, WeightSchedule) for weight in run.loss.weights.values()):
        weights = run.loss.weights_at(run.state.step - 1)
        values |= {f"loss_weight/{name}": weights.get(name, 0.0) for name in run.loss.weights}
    if last.grad_norm is not None:
        values["optimizer/grad_norm"] = last.grad_norm
    if norms := engine.norms():
        ratios = [n["trust_ratio"] for n in norms.values()]
        values |= {
            "optimizer/weight_norm": math.sqrt(sum(n["weight"] ** 2 for n in norms.values())),
            "trust_ratio/min": min(ratios),
            "trust_ratio/median": statistics.median(ratios),
            "trust_ratio/max": max(ratios),
        }
    peak = peak_flops(device.name(run.ranks.device), run.config.precision)
    if peak is not None:
        kept = values.get("tokens/keep_ratio", run.config.token_keep_ratio)
        flops = run.step_flops + interaction_flops(engine.model, run.config, run.batching, kept)
        values["speed/mfu"] = flops * count / seconds / peak
    values |= {
        "memory/now_mb": run.ranks.maximum(device.memory_mb(run.ranks.device)),
        "memory/peak_mb": run.ranks.maximum(device.peak_memory_mb(run.ranks.device)),
    }
    own_wait = statistics.fmean(step.own_wait for step in steps)
    own = (own_wait, dict(run.loader.counters), run.loader.damage())
    waits, counters, damages = zip(*run.ranks.gather(own, within_step=True), strict=True)
    # Collectives make every rank's step as long as the slowest rank's, so a step's duration names nobody. Waiting for
    # its data does, which a rank does without the others.
    values |= {f"data/{problem}": count for problem, count in _summed(counters).items()} | {
        "fleet/data_wait_slowest_seconds": max(waits),
        "fleet/data_wait_slowest_rank": waits.index(max(waits)),
    }
    for damage in filter(None, damages):  # a sentence about images that were replaced
        run.telemetry.event(run.state.step, "watchdog", damage)
    if run.ranks.is_main:
        run.telemetry.record(run.state.step, values)
        recent = statistics.median(run.state.step_seconds[-100:] or [seconds / count])
        left = (run.schedule.steps - run.state.step) * recent
        say(text_line(run.state.step, run.schedule.steps, values, left))
    run.interval.clear()
    return values


def data_problems(run: Run) -> dict[str, int]:
    """Return the loader's counters, summed over ranks. All ranks call."""
    return _summed(run.ranks.gather(dict(run.loader.counters)))


def _summed(counters: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for counts in counters:
        total.update(counts)
    return dict(total)


def final_metrics(record: dict[str, Any]) -> dict[str, float]:
    """Return the last interval's numbers under the result file's names: ``loss``, ``i2t_loss``, ``i2t_accuracy`` …"""
    metrics = {}
    for tag, value in record.items():
        kind, _, name = tag.partition("/")
        if kind in ("loss", "accuracy"):
            metrics[kind if name == "total" else f"{name}_{kind}"] = value
    if "optimizer/logit_scale" in record:
        metrics["logit_scale"] = record["optimizer/logit_scale"]
    return metrics


def print_banner(run: Run) -> None:
    """Print batch, schedule, model, memory and loader before the first step, each with its reason."""
    if not run.ranks.is_main:
        return
    b, c, loader = run.batching, run.config, run.loader
    optimizer = run.config.optimizer
    kind, threads = device.name(run.ranks.device), torch.get_num_threads()
    say(f"run         {c.run} in {c.run_dir}, on {run.ranks.world_size} x {kind}, {threads} threads per rank")
    cached = f", encoded {b.chunk} at a time (gradient caching)" if b.chunks > 1 else ""
    accumulated = f", {b.accumulation} batches per optimiser step" if b.accumulation > 1 else ""
    say(f"batch       {b.global_batch} pairs = {b.per_rank} x {run.ranks.world_size} ranks{accumulated}{cached}")
    say(f"schedule    {run.schedule.reason(optimizer.base_lr, b.pairs_per_step)}")
    per_epoch = len(loader) / b.accumulation
    epochs = run.schedule.steps / per_epoch
    say(f"steps       {run.schedule.steps} = {epochs:.2f} epochs of {per_epoch:g} steps ({loader.pairs} pairs)")
    say(
        f"optimiser   {optimizer.name}, weight decay {optimizer.weight_decay:g} on matrices, "
        f"gradient clipping {run.engine.gradient_clipping or 'off'}"
    )
    engine = f"DeepSpeed, ZeRO-{c.zero_stage}" if c.engine == "deepspeed" else "DDP"
    say(f"engine      {engine}, {c.precision}")
    say(f"encoders    {run.step_flops / 1e12:.3g} TFLOP a step and rank, forward and backward")
    share = f"{c.token_keep_ratio:.0%} of the tokens by {c.token_score}" if c.token_keep_ratio < 1 else "all tokens"
    say(f"loss        {run.loss.describe()}, {c.token_keep_schedule or share}")
    for line in count(run.engine.model.config, c, b, run.ranks.world_size).lines():
        say(line)
    say(
        f"loader      {loader.describe()}, {c.data.workers} workers per rank, "
        f"auto_augment={c.data.auto_augment}, back_translation={c.data.back_translation}, seed {c.seed}"
    )
    if loader.counters:
        say(f"            left out: {', '.join(f'{n} {count}' for n, count in sorted(loader.counters.items()))}")


def preview(run: Run, batch: dict[str, Any], count: int = 16) -> None:
    """Show the first images as the model sees them, augmented, and their captions in TensorBoard."""
    if not run.ranks.is_main:
        return
    images = batch["pixels"]
    if isinstance(images, Crops):
        images = finish(images, run.ranks.device).cpu()
    images = images[:count] if run.config.data.feature_cache is None else images[:0, None]
    pixels = images.movedim(1, -1).numpy()
    rows = [np.concatenate(list(pixels[i : i + 4]), axis=1) for i in range(0, len(pixels) - len(pixels) % 4, 4)]
    if rows:
        run.telemetry.writer.add_image("data/augmented", np.concatenate(rows, axis=0), 0, dataformats="HWC")
    captions, decode = [], run.engine.model.tokenizer.decode_token
    for ids, length in zip(batch["ids"][:count].tolist(), batch["lengths"][:count].tolist(), strict=True):
        captions.append(" ".join(name for name in map(decode, ids[:length]) if name not in ("[BOS]", "[EOS]")))
    run.telemetry.writer.add_text("data/captions", "\n\n".join(captions), 0)
