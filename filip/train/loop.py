"""A training run from the first line of its log to its result file. Read :func:`train` for the order of things."""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import torch

from filip.common import device
from filip.common.errors import UserError
from filip.common.files import disk_error, explained, replacing
from filip.loading.batches import Batch
from filip.loading.loader import PairLoader
from filip.models import DualEncoder, build_model
from filip.models.weights import TOKENIZER
from filip.runs.saved_files import LoopState, newest_intact, read_state
from filip.runs.source import merged
from filip.train import monitors, progress
from filip.train.adapters import adapt
from filip.train.checkpoint import (
    choose_checkpoint,
    continue_from,
    load_checkpoint,
    prepare_folder,
    save_checkpoint,
    saved_precision,
    set_aside_damaged,
    training_hash,
)
from filip.train.config import TrainConfig
from filip.train.engine import Batching, resolve_batching, to_device
from filip.train.engines import make_engine
from filip.train.feature_cache import fill
from filip.train.job import holding
from filip.train.launcher_env import STOPPED_BY_SIGNAL, MachineError
from filip.train.losses import Loss, check_model, resolve_weights, resolved_settings
from filip.train.precision import settle_precision
from filip.train.provenance import code_hash, put_in_place, record_finish, record_start, resumable_settings
from filip.train.ranks import Ranks, StopSignal, barrier, from_main, raise_together, start_ranks
from filip.train.result import gather_to_main, write_result
from filip.train.run import Run
from filip.train.schedule import Schedule, make_schedule
from filip.train.step import Interval, StepMetrics, StepOutput, backward, over_ranks
from filip.train.telemetry import Telemetry, say
from filip.train.training_data import fit_to_pairs, read_manifests, training_loader
from filip.train.validation import check_evaluation, evaluate
from filip.train.warm_start import content_hash, load_initial
from filip.train.watchdog import Limits, StepStatus, Watchdog

UNTIMED_STEPS = 5  # the first of every start: memory is allocated and kernels are chosen in them
MAX_ROLLBACKS = 3  # a run with watchdog.non_finite=rollback stops after so many
TIMED_STEPS = 1000  # the result's median is over the seconds of that many recent steps


def train(config: TrainConfig) -> None:
    """Train to the end, or until a signal; resumes by itself. Raises UserError, SystemExit(85) after a signal."""
    config.check()
    ranks = start_ranks(config.world_size, config.timeout_minutes)
    with ExitStack() as held:
        with raise_together(ranks):
            if ranks.is_main:
                held.enter_context(holding(Path(config.run_dir), say))
        train_alone(config, ranks)


def train_alone(config: TrainConfig, ranks: Ranks) -> None:
    """Train in a folder that nobody else trains in."""
    config.data.workers = ranks.loader_processes(config.data.workers)
    with raise_together(ranks):
        if (chosen := settle_precision(config, ranks, saved_precision(config, ranks))) and ranks.is_main:
            say(chosen)
        device.choose_attention(ranks.device, config.precision)
        if ranks.device.type == "cpu":
            device.keep_freed_memory()
        if (fitted := fit_to_pairs(config, ranks)) and ranks.is_main:
            say(fitted)
        batching = resolve_batching(config, ranks.world_size)
        manifests = read_manifests(config)
        model = initial_model(config)
        loss = Loss(resolve_weights(config.loss, model.config.interaction), config)
        check_evaluation(config.eval)
        loader = training_loader(config, model, batching, ranks)
        schedule = run_schedule(config, batching, loader)
        stop = StopSignal()  # before this a signal ends the process at once: there is nothing to save
        fill(loader.stream, model, config.precision, ranks.device, stop)
    if ranks.maximum(stop.received is not None):
        say("stopped by a signal before the first step; feature maps that are finished are kept")
        sys.exit(STOPPED_BY_SIGNAL)
    run = open_run(config, ranks, batching, model, loss, loader, schedule, manifests, stop)
    progress.print_banner(run)
    # DeepSpeed's Muon compiles its update, which takes minutes and a C++ compiler on a CPU
    eager = ranks.device.type == "cpu" and not config.compile
    try:
        with torch.compiler.set_stance("force_eager" if eager else "default"):
            take_steps(run)
        finish(run)
    except NotFiniteError:
        raise
    except Exception as error:  # settings were checked before
        disk = disk_error(error)
        if isinstance(error, UserError) or disk is not None:
            raise MachineError(str(error if disk is None else explained(disk, ()) or disk)) from error
        raise


class NotFiniteError(UserError):
    """The numbers of a training are no longer finite: a person has to decide how to continue."""


def initial_model(config: TrainConfig) -> DualEncoder:
    """Return a fresh model, the same on every rank, or the one to fine-tune, at the resolution asked for.

    Writes the decisions back into ``config``: the model's own configuration and the weights of the loss.
    """
    random.seed(config.seed)
    np.random.seed(config.seed % 2**32)
    torch.manual_seed(config.seed)
    if config.init_from is not None:
        model = load_initial(config.init_from, config.model).train()
        model.set_interaction(config.warm_start.interaction or model.config.interaction)
        model.config.gradient_checkpointing = config.model.gradient_checkpointing
        model.set_gradient_checkpointing(config.model.gradient_checkpointing)
    else:
        model = build_model(config.model)
    if config.image_size is not None and config.image_size != model.image_size:
        model.resize_images(config.image_size)
    adapt(model, config.warm_start)
    weights = resolve_weights(config.loss, model.config.interaction)
    check_model(weights, model)
    config.model = model.config
    config.loss = resolved_settings(config, weights)
    return model


def run_schedule(config: TrainConfig, batching: Batching, loader: PairLoader) -> Schedule:
    """Return the steps of the run and the learning rate over them."""
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
    return make_schedule(o.base_lr, batching.pairs_per_step, o.warmup_steps, steps)


def open_run(
    config: TrainConfig,
    ranks: Ranks,
    batching: Batching,
    model: DualEncoder,
    loss: Loss,
    loader: PairLoader,
    schedule: Schedule,
    manifests: dict[str, str],
    stop: StopSignal,
) -> Run:
    """Set up engine, run folder and telemetry; continue from a checkpoint if there is one that fits."""
    run_dir = Path(config.run_dir)
    state = LoopState(
        world_size=ranks.world_size,
        engine=config.engine,
        zero_stage=config.sharding,
        precision=config.precision,
        pairs_per_step=batching.pairs_per_step,
        model=asdict(model.config),
        optimizer=config.optimizer.name,
        manifests=manifests,
        settings=resumable_settings(config),
        init_from=content_hash(config.init_from) if config.init_from and ranks.is_main else None,
    )
    resumption = choose_checkpoint(config, state, ranks)
    if resumption.kept is not None:
        if ranks.is_main:
            put_in_place(resumption.kept, (config.out, config.result))
            say(resumption.notes[-1])
        barrier(ranks)
        sys.exit(0)
    if resumption.saved is not None:
        with raise_together(ranks):
            loader.load_state_dict(resumption.saved.loader)
        if not ranks.is_main:
            loader.counters.clear()  # a checkpoint has the sums over ranks, which the first one carries on
    prepare_folder(run_dir / "checkpoints", ranks, resumption.start_again)
    engine = make_engine(model, config, batching, ranks.device, loss)
    notes = continue_from(resumption, engine, state, run_dir / "checkpoints", ranks)
    start = record_start(run_dir, config, state.step, ranks.world_size, schedule.steps) if ranks.is_main else {}
    if ranks.is_main and model.json_tokenizer is not None:
        with replacing(run_dir / TOKENIZER) as part:
            part.write_text(model.json_tokenizer.json, encoding="utf-8")
    telemetry = Telemetry(run_dir, ranks.is_main, state.step)
    for note in notes:
        telemetry.event(state.step, "resume", note)
    lowest = max(Limits.min_loss_scale, engine.lowest_loss_scale())
    limits = Limits(min_loss_scale=lowest)
    watchdog = Watchdog(batching.global_batch, model.config.max_logit_scale, config.precision == "fp16", limits)
    commit = start.get("commit")
    return Run(config, ranks, batching, engine, loss, loader, schedule, state, telemetry, watchdog, stop, commit)


def take_steps(run: Run) -> None:
    """Take optimiser steps until the schedule ends or a signal comes."""
    interval, batches = Interval(), chain.from_iterable(repeat(run.loader))
    run.stop.promise = "saving at the next step boundary"
    while not run.is_over:
        take_step(run, batches, interval)


def take_step(run: Run, batches: Iterator[Batch], interval: Interval) -> None:
    """Take one optimiser step, then whatever is due: a line of the log, an evaluation, a checkpoint."""
    config = run.config
    started, processor = time.perf_counter(), time.process_time()
    due = (run.state.step + 1) % config.log_every == 0 or run.state.step + 1 == run.schedule.steps
    skipped = run.engine.skipped_steps  # by fp16's loss scaler: the schedule waits for a step that is taken
    run.engine.set_lr(run.schedule.at(run.state.step - skipped), run.state.step)
    run.engine.time_encoding(due)
    metrics = one_step(run, batches, inspect=due)
    seconds = time.perf_counter() - started
    run.state.seconds += seconds
    run.state.processor_seconds += time.process_time() - processor
    discarded = run.engine.skipped_steps > skipped
    interval.add(metrics, seconds, discarded)
    status = step_status(run, metrics, discarded, due, seconds)
    if len(interval.all_seconds) > min(UNTIMED_STEPS, run.schedule.steps // 2):
        run.state.step_seconds = [*run.state.step_seconds[1 - TIMED_STEPS :], round(seconds, 6)]
    if due:
        run.last_record = progress.write_interval(run, interval)
    for alert in run.watchdog.observe(status):
        run.telemetry.event(run.state.step, "watchdog", str(alert))
        if alert.kind == "non-finite":
            recover(run, str(alert))
    every = config.eval.every_steps
    if every and (run.state.step % every == 0 or run.is_over) and not metrics.stop:
        evaluate(run)
    save_if_due(run, metrics)


def one_step(run: Run, batches: Iterator[Batch], inspect: bool) -> StepMetrics:
    """Run all contrastive batches of one optimiser step; ``run.state.step`` counts it."""
    outputs: list[StepOutput] = []
    data_wait = 0.0
    for number in range(run.batching.accumulation):
        waiting_since = time.perf_counter()
        batch = next(batches)
        data_wait += time.perf_counter() - waiting_since
        if run.state.step == 0 and not outputs:
            progress.preview(run, batch)
        outputs.append(one_batch(run, batch, number, inspect))
    run.state.step += 1
    stop, minutes = run.stop.received is not None, run.config.checkpoint.every_minutes
    # the first rank's clock decides for all
    save = run.ranks.is_main and minutes > 0 and time.monotonic() - run.last_saved > 60 * minutes
    return over_ranks(outputs, run.ranks.world_size, data_wait, stop, save)


def one_batch(run: Run, batch: Batch, number: int, inspect: bool) -> StepOutput:
    """Run forward and backward of a step's contrastive batch ``number``, and the optimiser step when it is due."""
    key = f"{run.config.seed} {run.state.step} {number} {run.ranks.rank}"
    batch = run.loss.with_further_captions(batch, key)
    dtype = torch.float16 if run.engine.is_fp16 else None
    tensors = to_device(batch, run.ranks.device, dtype)
    loss = partial(run.loss, step=run.state.step, captions=(tensors["ids"], tensors["lengths"]))
    return backward(run.engine, tensors, loss, monitors.inspect if inspect else None)


def step_status(run: Run, metrics: StepMetrics, skipped: bool, due: bool, seconds: float) -> StepStatus:
    """Return the watchdog's view of a step. Gradient norms wait for the device, so only when due."""
    grad_norm = run.engine.grad_norm() if due else None
    spread = None if grad_norm is None else monitors.spread_over_ranks(grad_norm, run.ranks.device)
    return StepStatus(
        step=run.state.step,
        loss=metrics.loss,
        grad_norm=grad_norm,
        logit_scale=metrics.logit_scale,
        loss_scale=run.engine.loss_scale(),
        skipped=skipped,
        finite=math.isfinite(metrics.loss),
        chance_loss=run.loss.chance(run.batching.global_batch, run.state.step - 1),
        grad_norm_spread=spread,
        data_share=metrics.data_wait / seconds,
        lr=run.engine.lr,
        metrics=metrics.values,
    )


def save_if_due(run: Run, metrics: StepMetrics) -> None:
    """Save by cadence; after a signal save and exit with the code for it."""
    c, state = run.config.checkpoint, run.state
    by_step = c.every_steps > 0 and state.step % c.every_steps == 0
    if run.is_over or not (metrics.stop or metrics.save or by_step):
        return  # after the last step the result is written at once
    good = run.watchdog.healthy and run.engine.is_finite()
    if good:
        state.loader = run.loader.state_dict()
        state.loader["counters"] = progress.data_problems(run)
        started = time.perf_counter()
        path = save_checkpoint(run.engine, state, run.checkpoints, c, run.ranks)
        run.telemetry.event(state.step, "checkpoint", f"saved {path} in {time.perf_counter() - started:.1f} s")
    elif not metrics.stop:
        run.telemetry.event(state.step, "checkpoint", "not saved, because its numbers are not finite")
    run.last_saved = time.monotonic()
    if metrics.stop:
        outcome = "saved" if good else "not saved, because its numbers are not finite"
        run.telemetry.event(state.step, "signal", f"stopped by a signal after step {state.step}, {outcome}")
        run.telemetry.close()
        sys.exit(STOPPED_BY_SIGNAL)


def recover(run: Run, why: str) -> None:
    """Stop after non-finite numbers and name the last good checkpoint, or return to it and skip the data since."""
    for note in set_aside_damaged(run.checkpoints, run.ranks):
        run.telemetry.event(run.state.step, "checkpoint", note)
    good = from_main(run.ranks, newest_intact(run.checkpoints)[0])
    named = f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"
    settings = run.config.watchdog
    if settings.non_finite == "stop" or good is None or run.state.rollbacks >= MAX_ROLLBACKS:
        run.telemetry.close()
        raise NotFiniteError(
            f"{why}. Stopped; {named}. Start again if a device was at fault; else resume=PATH with a larger "
            "optimizer.weight_decay, a lower optimizer.base_lr, or watchdog.non_finite=rollback to skip the data since"
        )
    saved = read_state(good)
    load_checkpoint(run.engine, good, run.ranks)
    bad, run.state.step = run.state.step, saved.step
    run.state.rollbacks += 1
    run.watchdog.reset()
    run.telemetry.event(
        bad, "rollback", f"{why}: back to the weights of step {saved.step}; continues with the data after step {bad}"
    )


def finish(run: Run) -> None:
    """Write the weights, then the result, then the mark that the run has finished."""
    weights = merged(gather_to_main(run.engine, run.ranks))
    peak = run.ranks.maximum(device.peak_memory_mb(run.ranks.device))
    maps = run.loader.stream.config.feature_maps if isinstance(run.loader, PairLoader) else None
    problems = progress.data_problems(run)
    median = statistics.median(run.state.step_seconds) if run.state.step_seconds else None
    if run.ranks.is_main:
        measured = {
            "steps": run.state.step,
            "epochs": run.state.step * run.batching.pairs_per_step / run.loader.pairs,
            "pairs": run.loader.pairs,
            "world_size": run.ranks.world_size,
            "seconds_per_iteration": median,
            "samples_per_second": run.batching.pairs_per_step / median if median else None,
            "training_seconds": run.state.seconds,
            "processor_seconds": run.state.processor_seconds,
            "peak_memory_mb": peak,
            "skipped_steps": run.engine.skipped_steps,
            "parameters": sum(t.numel() for t in weights.values()),
            "final": progress.final_metrics(run.last_record),
            "evaluated": run.evaluated,
            "data_problems": problems,
            "feature_maps": maps and maps.name,  # which network at which size and precision made them
            "cpu": device.cpu(),
            "started": run.started,
        }
        write_result(run.config, run.engine, weights, measured, run.state.manifests, run.commit)
        final = {**progress.final_metrics(run.last_record), **run.evaluated}
        run.telemetry.hparams(run.state.step, progress.shown_settings(run.config), final)
        results = (run.config.out, run.config.result)
        code = code_hash(run.config)
        record_finish(run.folder, run.state.step, run.commit, training_hash(run.state), results, code)
        run.telemetry.event(run.state.step, "done", f"wrote {run.config.out} and {run.config.result}")
    run.telemetry.close()
    barrier(run.ranks)
