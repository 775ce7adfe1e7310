"""The banner before the first step, and the numbers of every interval."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import torch

from filip.common import device
from filip.common.progress import say
from filip.loading.crops import Crops, finish
from filip.models.temperature import at_clamp
from filip.train.config import TrainConfig
from filip.train.counts import count
from filip.train.hardware import peak_flops
from filip.train.monitors import RankReport, slowest, summed
from filip.train.run import Run
from filip.train.step import Interval
from filip.train.telemetry import text_line


def write_interval(run: Run, interval: Interval) -> dict[str, Any]:
    """Record an interval everywhere and start the next. All ranks call (memory is a maximum over them)."""
    memory = run.ranks.maximum(device.memory_mb(run.ranks.device))
    peak = run.ranks.maximum(device.peak_memory_mb(run.ranks.device))
    values = interval_values(run, interval) | {"memory/now_mb": memory, "memory/peak_mb": peak}
    counters, damage = dict(run.loader.counters), run.loader.damage()
    report = RankReport(interval.own_wait(), run.engine.encoding_seconds, counters, damage)
    reports = run.ranks.gather(report, within_step=True)
    waiting, encoding = slowest(reports, "data_wait"), slowest(reports, "encoding")
    values |= {f"data/{problem}": count for problem, count in summed([r.counters for r in reports]).items()}
    values |= {
        "fleet/data_wait_slowest_seconds": waiting.seconds,
        "fleet/data_wait_slowest_rank": waiting.rank,
        "fleet/encoding_slowest_seconds": encoding.seconds,
        "fleet/encoding_slowest_rank": encoding.rank,
        "fleet/encoding_median_seconds": encoding.median,
    }
    for damage in filter(None, (report.damage for report in reports)):
        run.telemetry.event(run.state.step, "watchdog", damage)
    for alert in run.watchdog.observe_fleet(run.state.step, values["speed/seconds_per_step"], waiting, encoding):
        run.telemetry.event(run.state.step, "watchdog", str(alert))
    if run.ranks.is_main:
        run.telemetry.record(run.state.step, values)
        recent = statistics.median(interval.all_seconds[-100:])
        left = (run.schedule.steps - run.state.step) * recent
        say(text_line(run.state.step, run.schedule.steps, values, left))
    interval.clear()
    return values


def interval_values(run: Run, interval: Interval) -> dict[str, Any]:
    """Return the numbers of an interval under their TensorBoard names."""
    engine, seconds, steps = run.engine, sum(interval.seconds), len(interval.seconds)
    data_wait = interval.data_wait()
    values: dict[str, Any] = {
        "epoch": round(run.state.step * run.batching.pairs_per_step / run.loader.pairs, 4),
        **run.elapsed,
        **interval.means(),
        "optimizer/lr": engine.lr,
        "optimizer/logit_scale": interval.steps[-1].logit_scale,
        "optimizer/loss_scale": engine.loss_scale(),
        "optimizer/skipped_steps": engine.skipped_steps,
        "monitor/skipped_share": statistics.fmean(interval.skipped),
        "monitor/at_clamp": float(at_clamp(interval.steps[-1].logit_scale, engine.model.config.max_logit_scale)),
        "speed/pairs_per_second": run.batching.pairs_per_step * steps / seconds,
        "speed/seconds_per_step": seconds / steps,
        "speed/data_wait_seconds": data_wait,
        "speed/compute_seconds": seconds / steps - data_wait,
        "speed/data_share": data_wait * steps / seconds,
    }
    for group in engine.optimizer.param_groups:
        values[f"optimizer/lr_{group.get('name', 'all')}"] = group["lr"]
    if run.loss.follows_schedule():
        weights = run.loss.weights_at(run.state.step - 1)
        values |= {f"loss_weight/{name}": weights.get(name, 0.0) for name in run.loss.weights}
    values |= norm_values(engine.norms(), engine.grad_norm())
    peak = peak_flops(device.name(run.ranks.device), run.config.precision)
    if peak is not None:
        values["speed/mfu"] = run.step_flops * steps / seconds / peak
    return values


def data_problems(run: Run) -> dict[str, int]:
    """Return the loader's counters, summed over ranks. All ranks call."""
    return summed(run.ranks.gather(dict(run.loader.counters)))


def norm_values(norms: dict[str, dict[str, float]], grad_norm: float | None) -> dict[str, float]:
    """Return norms of the whole model and the spread of the trust ratios."""
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
    """Return the numbers of the last interval under the names of the result file.

    These are ``loss``, ``i2t_loss``, ``i2t_accuracy`` and so on.
    """
    metrics = {}
    for tag, value in record.items():
        kind, _, name = tag.partition("/")
        if kind in ("loss", "accuracy"):
            metrics[kind if name == "total" else f"{name}_{kind}"] = value
    if "optimizer/logit_scale" in record:
        metrics["logit_scale"] = record["optimizer/logit_scale"]
    return metrics


def shown_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that distinguish runs in TensorBoard."""
    model, data, optimizer = config.model, config.data, config.optimizer
    return {
        "interaction": model.interaction,
        "model": model.name,
        "embed_dim": model.embed_dim,
        "global_batch": config.global_batch or config.batch_per_rank,
        "optimizer": optimizer.name,
        "base_lr": optimizer.base_lr,
        "weight_decay": optimizer.weight_decay,
        "precision": config.precision,
        "zero_stage": config.sharding,
        "token_keep_ratio": config.token_keep_ratio,
        "auto_augment": data.auto_augment,
        "back_translation": data.back_translation,
        "init_from": config.init_from,
        "seed": config.seed,
    }


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
        run.telemetry.images(0, "data/augmented", np.concatenate(rows, axis=0))
    captions, decode = [], run.engine.model.tokenizer.decode_token
    for ids, length in zip(batch["ids"][:count].tolist(), batch["lengths"][:count].tolist(), strict=True):
        captions.append(" ".join(name for name in map(decode, ids[:length]) if name not in ("[BOS]", "[EOS]")))
    run.telemetry.text(0, "data/captions", "\n\n".join(captions))
