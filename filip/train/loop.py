"""A training run from the first line of its log to its result file. Read :func:`train` for the order of things."""

from __future__ import annotations

import os
import random
import statistics
import sys
from contextlib import ExitStack
from dataclasses import asdict
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import torch

from filip.common import device
from filip.common.errors import UserError
from filip.common.files import disk_error, explained, replacing, write_json
from filip.data.shard_set import manifest_hash
from filip.loading.loader import PairLoader
from filip.loading.stem_maps import fill
from filip.models import DualEncoder, build_model, save_model
from filip.models.weights import TOKENIZER
from filip.runs.lock import holding
from filip.runs.record import copy_or_link, now, record_finish, record_start
from filip.runs.saved_files import LoopState
from filip.runs.source import FACTS, facts_of, merged
from filip.train.checkpoint import choose_checkpoint, continue_from, prepare_folder, saved_precision, training_hash
from filip.train.config import TrainConfig, parse_steps
from filip.train.costs import step_flops
from filip.train.engine import Batching, gather_to_main, make_engine, resolve_batching, settle_precision
from filip.train.launcher_env import EXIT_CODE_FILE, STOPPED_BY_SIGNAL, USERS_MISTAKE, MachineError
from filip.train.losses import TERMS, Loss, check_model, resolve_weights, resolved_settings
from filip.train.optimizers import Schedule, make_schedule
from filip.train.provenance import code_hash, learning_settings, resumable_settings
from filip.train.ranks import Ranks, StopSignal, barrier, raise_together, start_ranks
from filip.train.run import Run, data_problems, final_metrics, print_banner
from filip.train.step import UNTIMED_STEPS, StepProfiler, take_step
from filip.train.telemetry import Telemetry, say
from filip.train.training_data import fit_to_pairs, training_loader
from filip.train.warm_start import adapt, content_hash, load_initial
from filip.train.watchdog import Limits, Watchdog


def train(config: TrainConfig, paper: TrainConfig | None = None) -> None:
    """Train to the end, or until a signal; resumes by itself. Raises UserError, SystemExit(85) after a signal.

    paper: the settings that TensorBoard compares with; by default those that nobody chose.
    """
    config.check()
    ranks = start_ranks(config.world_size, config.timeout_minutes)
    with ExitStack() as held:
        with raise_together(ranks):
            if ranks.is_main and EXIT_CODE_FILE not in os.environ:
                held.enter_context(holding(Path(config.run_dir), say))
        train_alone(config, ranks, paper or TrainConfig())


def train_alone(config: TrainConfig, ranks: Ranks, paper: TrainConfig) -> None:
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
        known = [source for source in config.data.sources if source.manifest is not None]
        manifests = {source.shards: manifest_hash(str(source.manifest)) for source in known}
        model = initial_model(config)
        loss = Loss(resolve_weights(config.loss, model.config.interaction), config)
        if config.eval.every_steps:
            from filip.train.validation import check_evaluation  # reads half of filip.eval

            check_evaluation(config.eval)
        loader = training_loader(config, model, batching, ranks)
        schedule = run_schedule(config, batching, loader)
        stop = StopSignal()  # before this a signal ends the process at once: there is nothing to save
        fill(loader.stream, model, config.precision, ranks.device, lambda: stop.received is not None)
    if ranks.maximum(stop.received is not None):
        say("stopped by a signal before the first step; feature maps that are finished are kept")
        sys.exit(STOPPED_BY_SIGNAL)
    run = open_run(config, ranks, batching, model, loss, loader, schedule, manifests, stop)
    run.telemetry.settings(run.state.step, learning_settings(config), asdict(config), learning_settings(paper))
    print_banner(run)
    try:
        batches = chain.from_iterable(repeat(run.loader))
        stop.promise = "saving at the next step boundary"
        profiler = StepProfiler(parse_steps(config.profile_steps), run.folder / "profile", ranks.rank)
        while not run.is_over:
            with profiler.step(run.state.step + 1):
                take_step(run, batches)
            if run.steps_here == UNTIMED_STEPS:
                ranks.limit(config.timeout_minutes)
        finish(run)
    except MachineError:
        raise
    except Exception as error:  # settings were checked before
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise MachineError(
                f"out of memory with {batching.chunk} pairs in a forward pass. Give gradient_cache=N, "
                f"a divisor of the {batching.per_rank} pairs of a rank: N at a time need less, and the loss stays the "
                f"same; model.gradient_checkpointing=true and a smaller batch help, too ({str(error).splitlines()[0]})",
                USERS_MISTAKE,  # another start would need as much
            ) from error
        disk = disk_error(error)
        if isinstance(error, UserError) or disk is not None:
            raise MachineError(str(error if disk is None else explained(disk, ()) or disk)) from error
        raise


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
    if not any("vectors" in TERMS[name].features for name in weights):
        for pool in (model.image_pool, model.text_pool):  # DDP would wait for gradients that never come
            if pool is not None:
                pool.requires_grad_(False)
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
            for file in (config.out, config.result):  # the result last
                copy_or_link(resumption.kept / Path(file).name, Path(file))
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
    limits = Limits(min_loss_scale=max(Limits.min_loss_scale, engine.lowest_loss_scale()))
    return Run(
        config,
        ranks,
        batching,
        engine,
        loss,
        loader,
        schedule,
        state,
        telemetry,
        Watchdog(config.precision == "fp16", limits),
        stop,
        step_flops(model.config, config, batching),
        start.get("commit"),
    )


def finish(run: Run) -> None:
    """Write the weights, then the result, then the mark that the run has finished."""
    config, state = run.config, run.state
    weights = merged(gather_to_main(run.engine, run.ranks))
    peak = run.ranks.maximum(device.peak_memory_mb(run.ranks.device))
    maps = run.loader.stream.config.feature_maps
    problems = data_problems(run)
    median = statistics.median(state.step_seconds) if state.step_seconds else None
    if run.ranks.is_main:
        final = final_metrics(run.last_record)
        result = {
            "run": config.run,
            "config": asdict(config),
            "commit": run.commit,
            "manifest_hashes": state.manifests,
            "precision": config.precision,
            "zero_stage": run.engine.zero_stage,
            "global_batch": run.batching.pairs_per_step,
            "steps": state.step,
            "epochs": state.step * run.batching.pairs_per_step / run.loader.pairs,
            "pairs": run.loader.pairs,
            "world_size": run.ranks.world_size,
            "seconds_per_iteration": median,
            "samples_per_second": run.batching.pairs_per_step / median if median else None,
            "training_seconds": state.seconds,
            "processor_seconds": state.processor_seconds,
            "peak_memory_mb": peak,
            "skipped_steps": run.engine.skipped_steps,
            "parameters": sum(t.numel() for t in weights.values()),
            "final": final,
            "evaluated": run.evaluated,
            "data_problems": problems,
            "feature_maps": maps and maps.name,  # which network at which size and precision made them
            "cpu": device.cpu(),
            "started": run.started,
            "finished": now(),
        }
        extra = {name: result[name] for name in ("run", "steps", "commit", "final")}
        extra[FACTS] = facts_of(config.out, result)
        save_model(config.out, run.engine.model, extra, state=weights)
        write_json(config.result, result)
        run.telemetry.final(state.step, {**final, **run.evaluated})
        results = (config.out, config.result)
        record_finish(run.folder, state.step, run.commit, training_hash(state), results, code_hash(config))
        run.telemetry.event(state.step, "done", f"wrote {config.out} and {config.result}")
    run.telemetry.close()
    barrier(run.ranks)
