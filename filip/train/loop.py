"""A training run from the first line of its log to its result file. Read :func:`train` for the order of things."""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from filip.data.loading.config import StreamConfig
from filip.data.loading.loader import Batch, PairLoader, build_loader
from filip.errors import UserError
from filip.files import write_json
from filip.models import DualEncoder, build_model, load_model
from filip.train import progress
from filip.train.checkpoint import (
    LoopState,
    check_compatible,
    complete_checkpoints,
    find_checkpoint,
    load_checkpoint,
    needs_conversion,
    prepare_folder,
    read_state,
    save_checkpoint,
    set_aside_newer,
    to_universal,
)
from filip.train.config import TrainConfig
from filip.train.engine import Batching, Engine, make_engine, require_precision, resolve_batching, to_device
from filip.train.evaluation import check_evaluation, evaluate
from filip.train.ranks import STOPPED_BY_SIGNAL, Ranks, StopSignal, all_or_none, start_ranks
from filip.train.result import (
    full_weights,
    now,
    read_manifests,
    refuse_changed_data,
    timings,
    write_result,
)
from filip.train.schedule import Schedule, make_schedule
from filip.train.step import StepOutput, backward, make_loss, special_token_share
from filip.train.telemetry import Telemetry, peak_memory_mb
from filip.train.watchdog import StepFacts, Watchdog

KEPT_TIMES = 1000  # seconds of that many recent steps make the median of the result


@dataclass
class Run:
    """Everything a step touches."""

    config: TrainConfig
    ranks: Ranks
    batching: Batching
    engine: Engine
    loader: PairLoader
    schedule: Schedule
    state: LoopState
    telemetry: Telemetry
    watchdog: Watchdog
    stop: StopSignal
    folder: Path  # of checkpoints
    started: str = field(default_factory=now)
    last_saved: float = field(default_factory=time.monotonic)
    last_record: dict[str, Any] = field(default_factory=dict)


def train(config: TrainConfig) -> None:
    """Train to the end, or until a signal; resumes by itself. Raises UserError, SystemExit(85) after a signal."""
    config.check()
    ranks = start_ranks(config.threads)
    stop = StopSignal()
    with all_or_none(ranks):
        require_precision(config)
        batching = resolve_batching(config, ranks.world_size)
        manifests = read_manifests(config)
        model = initial_model(config)
        check_evaluation(config.eval)
        loader = training_loader(config, model, batching, ranks)
        schedule = run_schedule(config, batching, loader)
    run = open_run(config, ranks, batching, model, loader, schedule, manifests, stop)
    progress.print_plan(run)
    take_steps(run)
    finish(run, manifests)


def initial_model(config: TrainConfig) -> DualEncoder:
    """A fresh model, the same on every rank, or the one to fine-tune; at the resolution asked for."""
    random.seed(config.seed)
    np.random.seed(config.seed % 2**32)
    torch.manual_seed(config.seed)
    if config.init_from is not None:
        model = load_model(config.init_from, image_size=config.image_size).train()
        model.config.gradient_checkpointing = config.model.gradient_checkpointing
        model.set_gradient_checkpointing(config.model.gradient_checkpointing)
    else:
        model = build_model(config.model)
        if config.image_size is not None:
            model.resize_images(config.image_size)
    if config.pooled_weight:
        model.check_pooled()
    config.model = model.config  # what is written down is what is trained
    return model


def training_loader(config: TrainConfig, model: DualEncoder, batching: Batching, ranks: Ranks) -> PairLoader:
    """This rank's stream of contrastive batches."""
    stream = StreamConfig(
        config.data,
        batch_size=batching.per_rank,
        image_size=model.image_size,
        context_length=model.config.text.context_length,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    return build_loader(stream, pin_memory=ranks.device.type == "cuda")


def run_schedule(config: TrainConfig, batching: Batching, loader: PairLoader) -> Schedule:
    """Steps of the run and the learning rate over them."""
    limits = []
    if config.epochs is not None:
        limits.append(int(config.epochs * len(loader) / batching.accumulation))
    if config.max_steps is not None:
        limits.append(config.max_steps)
    steps = min(limits)
    if steps < 1:
        raise UserError(
            f"epochs={config.epochs} of {loader.pairs} pairs are less than one step of {batching.pairs_per_step}; "
            "train longer, or lower the batch size"
        )
    o = config.optimizer
    return make_schedule(o.base_lr, batching.pairs_per_step, o.warmup_steps, steps, o.final_lr)


def open_run(
    config: TrainConfig,
    ranks: Ranks,
    batching: Batching,
    model: DualEncoder,
    loader: PairLoader,
    schedule: Schedule,
    manifests: dict[str, str],
    stop: StopSignal,
) -> Run:
    """Engine, run folder and telemetry; goes on from a checkpoint if there is one to go on from."""
    run_dir = Path(config.run_dir)
    folder = run_dir / "checkpoints"
    state = LoopState(
        world_size=ranks.world_size,
        zero_stage=config.zero_stage,
        precision=config.precision,
        pairs_per_step=batching.pairs_per_step,
        model=asdict(model.config),
        optimizer=config.optimizer.name,
        manifests=manifests,
    )
    notes = []
    with all_or_none(ranks):
        checkpoint = find_checkpoint(folder, config.resume)
        saved, convert = None, False
        if checkpoint is not None:
            saved = read_state(checkpoint)
            check_compatible(saved, state)
            convert = needs_conversion(saved, ranks.world_size, config.zero_stage)
            if ranks.is_main:
                refuse_changed_data(config)
            loader.load_state_dict(saved.loader)
    prepare_folder(folder, ranks, fresh=config.resume == "never")
    engine = make_engine(model, config, batching, ranks.world_size)
    if checkpoint is not None and saved is not None:
        universal = to_universal(checkpoint, ranks) if convert else None
        load_checkpoint(engine, checkpoint, ranks, universal)
        state.step, state.loader, state.seconds = saved.step, saved.loader, saved.seconds
        state.rollbacks, state.step_seconds = saved.rollbacks, saved.step_seconds
        notes.append(f"resumed from {checkpoint} at step {saved.step}" + progress.changes(saved, state))
        notes += set_aside_newer(folder, saved.step, ranks)
    if ranks.is_main:
        write_json(run_dir / "config.json", asdict(config))
    telemetry = Telemetry(run_dir, ranks.is_main, state.step)
    for note in notes:
        telemetry.event(state.step, "resume", note)
    lowest = max(config.watchdog.min_loss_scale, engine.lowest_loss_scale())
    watchdog = Watchdog(
        replace(config.watchdog, min_loss_scale=lowest),
        batching.global_batch,
        model.config.max_logit_scale,
        config.precision == "fp16",
        loss_weights=1 + config.pooled_weight,
    )
    return Run(config, ranks, batching, engine, loader, schedule, state, telemetry, watchdog, stop, folder)


def take_steps(run: Run) -> None:
    """Optimiser steps until the schedule ends or a signal comes."""
    config, interval = run.config, progress.Interval()
    loss, batches = make_loss(config), endless(run.loader)
    while run.state.step < run.schedule.steps:
        began = time.perf_counter()
        due = (run.state.step + 1) % config.log_every == 0 or run.state.step + 1 == run.schedule.steps
        run.engine.set_lr(run.schedule.at(run.state.step))
        skipped = run.engine.skipped_steps
        outputs: list[StepOutput] = []
        waited = 0.0
        for _ in range(run.batching.accumulation):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            if run.state.step == 0 and not outputs:
                progress.preview(run, batch)
            outputs.append(one_batch(run, batch, loss, inspect=due))
        run.state.step += 1
        metrics = mean_over_ranks(run, outputs, waited)
        seconds = time.perf_counter() - began
        run.state.seconds += seconds
        interval.add(metrics, seconds)
        facts = step_facts(run, metrics, run.engine.skipped_steps > skipped, due)
        if len(interval.all_seconds) > config.warmup_timing:
            run.state.step_seconds = [*run.state.step_seconds[1 - KEPT_TIMES :], round(seconds, 6)]
        if due:
            run.last_record = progress.write_interval(run, interval)
        for finding in run.watchdog.observe(facts):
            run.telemetry.event(run.state.step, "watchdog", str(finding))
            if finding.kind == "non-finite":
                recover(run, str(finding))
        every, last = config.eval.every_steps, run.state.step == run.schedule.steps
        if every and (run.state.step % every == 0 or last) and not metrics["stop"]:
            evaluate(run)
        save_if_due(run, metrics)


def endless(loader: PairLoader) -> Iterator[Batch]:
    """Epoch after epoch; the loader itself knows where it stands."""
    while True:
        yield from loader


def one_batch(run: Run, batch: Batch, loss: Any, inspect: bool) -> StepOutput:
    """Forward and backward of one contrastive batch, and the optimiser step when it is due."""
    dtype = torch.float16 if run.engine.is_fp16 else None
    tensors = to_device(batch, run.ranks.device, dtype)
    return backward(run.engine, tensors, loss, special_token_share if inspect else None)


METRICS = ("loss", "i2t_loss", "t2i_loss", "i2t_accuracy", "t2i_accuracy")


def mean_over_ranks(run: Run, outputs: list[StepOutput], waited: float) -> dict[str, float]:
    """One all-reduce per step: metrics, whether anyone got a signal, whether all are finite."""
    values = [torch.stack([getattr(o.contrastive, name).float() for o in outputs]).mean() for name in METRICS]
    special = torch.stack([o.special_share for o in outputs]).mean()
    device = values[0].device
    flags = torch.tensor(
        [float(run.stop.received is not None), waited, float(wants_to_save(run))], device=device
    )
    vector = torch.cat([torch.stack([*values, special.to(device)]), flags])
    dist.all_reduce(vector)
    numbers = vector.tolist()
    world = run.ranks.world_size
    metrics = {name: value / world for name, value in zip(METRICS, numbers, strict=False)}
    metrics |= {"special_share": numbers[5] / world, "stop": numbers[6], "waited": numbers[7] / world}
    metrics["save"] = numbers[8]
    metrics["logit_scale"] = float(outputs[-1].logit_scale)
    return metrics


def step_facts(run: Run, metrics: dict[str, float], skipped: bool, due: bool) -> StepFacts:
    """What the watchdog needs to know of a step. Gradient norms wait for the device, so only when due."""
    return StepFacts(
        step=run.state.step,
        loss=metrics["loss"],
        grad_norm=run.engine.grad_norm() if due else None,
        logit_scale=metrics["logit_scale"],
        loss_scale=run.engine.loss_scale(),
        skipped=skipped,
        finite=math.isfinite(metrics["loss"]),
    )


def wants_to_save(run: Run) -> bool:
    """The first rank's clock decides for all."""
    minutes = run.config.checkpoint.every_minutes
    return run.ranks.is_main and minutes > 0 and time.monotonic() - run.last_saved > 60 * minutes


def save_if_due(run: Run, metrics: dict[str, float]) -> None:
    """Save by cadence; after a signal save and leave with the exit code that means it."""
    c, state, stopping = run.config.checkpoint, run.state, metrics["stop"] > 0
    by_step = c.every_steps > 0 and state.step % c.every_steps == 0
    if state.step >= run.schedule.steps or not (stopping or metrics["save"] or by_step):
        return  # after the last step the result is written at once
    good = run.watchdog.healthy and run.engine.is_finite()
    if good:
        state.loader = run.loader.state_dict()
        began = time.perf_counter()
        path = save_checkpoint(run.engine, state, run.folder, c, run.ranks)
        run.telemetry.event(state.step, "checkpoint", f"saved {path} in {time.perf_counter() - began:.1f} s")
    run.last_saved = time.monotonic()
    if stopping:
        kept = "saved" if good else "not saved, because its numbers are not finite"
        run.telemetry.event(state.step, "signal", f"stopped by a signal after step {state.step}, {kept}")
        run.telemetry.close()
        sys.exit(STOPPED_BY_SIGNAL)


def recover(run: Run, why: str) -> None:
    """Numbers are no longer finite: stop, naming the last good checkpoint, or go back to it and skip the data since."""
    good = complete_checkpoints(run.folder)
    named = f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"
    settings = run.config.watchdog
    if settings.non_finite == "stop" or not good or run.state.rollbacks >= settings.max_rollbacks:
        run.telemetry.close()
        raise UserError(
            f"{why}. Stopped; {named}. Resume with a larger optimizer.weight_decay or a lower optimizer.base_lr, "
            "or with watchdog.non_finite=rollback to skip the data since then"
        )
    saved = read_state(good[-1])
    convert = needs_conversion(saved, run.ranks.world_size, run.config.zero_stage)
    universal = to_universal(good[-1], run.ranks) if convert else None
    load_checkpoint(run.engine, good[-1], run.ranks, universal)
    bad, run.state.step = run.state.step, saved.step
    run.state.rollbacks += 1
    run.watchdog.reset()
    run.telemetry.event(
        bad, "rollback", f"{why}: back to the weights of step {saved.step}, on with the data after step {bad}"
    )


def finish(run: Run, manifests: dict[str, str]) -> None:
    """Weights and result, last of all; then nothing of the run is left to do."""
    weights = full_weights(run.engine, keep=run.ranks.is_main)
    peak = run.ranks.maximum(peak_memory_mb(run.ranks.device))
    if run.ranks.is_main:
        measured = {
            "steps": run.state.step,
            "epochs": run.state.step * run.batching.pairs_per_step / run.loader.pairs,
            "pairs": run.loader.pairs,
            "world_size": run.ranks.world_size,
            **timings(run.state.step_seconds, run.batching.pairs_per_step),
            "training_seconds": run.state.seconds,
            "peak_memory_mb": peak,
            "skipped_steps": run.engine.skipped_steps,
            "parameters": sum(t.numel() for t in weights.values()),
            "final": progress.final_metrics(run.last_record),
            "data_problems": dict(run.loader.counters),
            "started": run.started,
        }
        write_result(run.config, run.engine, weights, measured, manifests)
        run.telemetry.event(run.state.step, "done", f"wrote {run.config.out} and {run.config.result}")
    run.telemetry.close()
    dist.barrier()
