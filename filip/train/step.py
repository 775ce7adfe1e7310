"""One optimiser step, from the loader's batches to what is due after it: read :func:`take_step`.

The weights move in ``Engine.step`` (engine.py), which leaves out a step whose gradients are not finite.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from filip.common.progress import say
from filip.loading.loader import Batch
from filip.models import Encoded, PooledFeatures, TextFeatures
from filip.runs.saved_files import newest_intact
from filip.train import watchdog
from filip.train.checkpoint import save_checkpoint, set_aside_damaged
from filip.train.engine import Engine, to_device
from filip.train.launcher_env import NOT_FINITE, STOPPED_BY_SIGNAL, MachineError
from filip.train.losses.term import TermOutput
from filip.train.ranks import from_main
from filip.train.run import Run, data_problems, preview, write_interval
from filip.train.watchdog import Alert, StepStatus
from late_interaction.grad_cache import cached_backward

UNTIMED_STEPS = 5  # the first of every start: memory is allocated and kernels are chosen in them
TIMED_STEPS = 1000  # the result's median is over the seconds of that many recent steps


def take_step(run: Run, batches: Iterator[Batch]) -> None:
    """Take one optimiser step, then do what is due: a line of the log, an evaluation, a checkpoint."""
    config, engine, state, ranks = run.config, run.engine, run.state, run.ranks
    started, processor = time.perf_counter(), time.process_time()
    due = (state.step + 1) % config.log_every == 0 or state.step + 1 == run.schedule.steps
    # The schedule waits for steps that fp16's loss scaler discards: at the start they are its search for a scale.
    discarded = engine.skipped_steps if engine.is_fp16 else 0
    engine.set_lr(run.schedule.at(state.step - discarded))
    outputs: list[dict[str, Tensor]] = []
    waited = 0.0
    for number in range(run.batching.accumulation):
        waiting_since = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - waiting_since
        if state.step == 0 and not outputs:
            preview(run, batch)
        batch = run.loss.with_further_captions(batch, f"{config.seed} {state.step} {number} {ranks.rank}")
        # Host to device, from pinned memory: nobody waits.
        tensors = to_device(batch, ranks.device, torch.float16 if engine.is_fp16 else None)
        loss = partial(run.loss, step=state.step, captions=(tensors["ids"], tensors["lengths"]))
        outputs.append(forward_backward(engine, tensors, loss, inspect=due))
    if note := run.loss.auto.note:  # of each rank alone
        said, run.loss.auto.note = f"rank {ranks.rank}: {note}", ""
        run.telemetry.event(state.step, "backend", said) if ranks.is_main else say(said)
    # Here the weights move, unless a gradient is not finite: then this step is left out, on all ranks alike. With DDP
    # the device decides and the host does not ask; DeepSpeed asks.
    skipped = engine.step()
    state.step += 1
    run.steps_here += 1
    scale = [output.pop("logit_scale") for output in outputs][-1]
    names = list(outputs[0])
    sums = torch.stack([torch.stack([output[name].float() for output in outputs]).mean() for name in names])
    dist.all_reduce(sums)
    numbers = torch.cat([sums, scale.float(), torch.as_tensor(skipped, device=sums.device).view(1)])
    # The hosts meet, through a group of their own, while the devices work: whoever was asked to stop tells the others,
    # and the first rank's clock decides for all when to save.
    minutes, save_every = config.checkpoint.every_minutes, config.checkpoint.every_steps
    late = ranks.is_main and minutes > 0 and time.monotonic() - run.last_saved > 60 * minutes
    all_waited, stops, saves = ranks.sums([waited, run.stop.received is not None, late])
    mean_wait = all_waited / ranks.world_size
    taken = StepStatus(state.step, engine.lr, engine.loss_scale(), data_wait=mean_wait, own_wait=waited)
    run.unread.append((taken, names, numbers))
    saves = saves or stops or (save_every > 0 and state.step % save_every == 0)
    every = config.eval.every_steps
    evaluates = every > 0 and (state.step % every == 0 or run.is_over) and not stops
    # Device to host: the one place where a step waits for the device, and only if somebody reads its numbers now.
    reads = bool(due or saves or evaluates)
    read = torch.cat([numbers for _, _, numbers in run.unread]).tolist() if reads else []
    seconds = time.perf_counter() - started
    state.seconds += seconds
    state.processor_seconds += time.process_time() - processor
    run.unread_seconds += seconds
    if reads:
        report(run, read, due)
    if evaluates:
        from filip.train.validation import evaluate  # reads half of filip.eval, which few trainings need

        evaluate(run)
    if saves and not run.is_over:  # after the last step the result is written at once
        save(run, stops > 0)


def forward_backward(
    engine: Engine, batch: dict[str, Tensor], loss: Callable[[Encoded, Tensor], TermOutput], inspect: bool = False
) -> dict[str, Tensor]:
    """Run the passes of one contrastive batch, whole or with the activations of one chunk at a time (gradient caching).

    batch: this rank's pixels, ids, lengths and group. inspect: look at the embeddings as well. Returns named scalars.
    """
    times = engine.batching.accumulation
    metrics: dict[str, Tensor] = {}

    def whole_loss(encoded: Encoded) -> TermOutput:
        output = loss(encoded, batch["group"])
        metrics.update(output.metrics | (watchdog.inspect(encoded) if inspect else {}))
        metrics["logit_scale"] = encoded.logit_scale.detach()
        return output

    if engine.batching.chunks == 1:
        engine.backward(whole_loss(engine.encode(batch)).loss / times)
        return metrics
    names: list[str] = []

    def encode(chunk: dict[str, Tensor]) -> tuple[Tensor, ...]:
        tensors = by_name(engine.encode(chunk))
        names[:] = tensors
        return tuple(tensors.values())

    parts = {name: value.chunk(engine.batching.chunks) for name, value in batch.items()}
    cached_backward(
        [{name: part[i] for name, part in parts.items()} for i in range(engine.batching.chunks)],
        encode,
        lambda *tensors: whole_loss(from_names(dict(zip(names, tensors, strict=True)))),
        lambda scalar: engine.backward(scalar / times),
        loss_scale=engine.loss_scale(),
    )
    return metrics


def by_name(encoded: Encoded) -> dict[str, Tensor]:
    """Return every tensor of ``encoded``, each growing along its first dimension with the number of chunks."""
    tensors = {"image": encoded.image, "logit_scale": encoded.logit_scale}
    if isinstance(encoded.text, TextFeatures):
        tensors |= {"text": encoded.text.tokens, "lengths": encoded.text.lengths}
    else:
        tensors["text"] = encoded.text
    if encoded.pooled is not None:
        tensors |= {"pooled.image": encoded.pooled.image, "pooled.text": encoded.pooled.text}
    if encoded.further is not None:
        tensors |= {"further": encoded.further.tokens, "further_lengths": encoded.further.lengths}
    return tensors


def from_names(tensors: dict[str, Tensor]) -> Encoded:
    """Invert :func:`by_name` for chunks in a row. Each chunk holds the values of the model, and they are equal."""
    text, lengths = tensors["text"], tensors.get("lengths")
    pooled = PooledFeatures(tensors["pooled.image"], tensors["pooled.text"]) if "pooled.image" in tensors else None
    scale = tensors["logit_scale"].mean(dim=0, keepdim=True)
    further = TextFeatures(tensors["further"], tensors["further_lengths"]) if "further" in tensors else None
    return Encoded(tensors["image"], text if lengths is None else TextFeatures(text, lengths), scale, pooled, further)


def report(run: Run, read: list[float], due: bool) -> None:
    """Tell the watchdog about the steps since the last report, whose numbers are ``read``; if due, write a line."""
    seconds = run.unread_seconds / len(run.unread)  # a host that does not wait runs ahead: only their mean is known
    timed = min(len(run.unread), max(0, run.steps_here - min(UNTIMED_STEPS, run.schedule.steps // 2)))
    run.state.step_seconds = [*run.state.step_seconds, *[round(seconds, 6)] * timed][-TIMED_STEPS:]
    steps = []
    for taken, names, _ in run.unread:
        *sums, scale, skipped = read[: len(names) + 2]
        read = read[len(names) + 2 :]
        metrics = {name: value / run.ranks.world_size for name, value in zip(names, sums, strict=True)}
        status = replace(taken, loss=metrics["loss/total"], logit_scale=scale, skipped=skipped > 0)
        steps.append(replace(status, seconds=seconds, metrics=metrics))
    run.unread.clear()
    run.unread_seconds = 0.0
    if due and (norm := run.engine.grad_norm()) is not None:
        spread = watchdog.spread_over_ranks(norm, run.ranks.device)
        steps[-1] = replace(steps[-1], grad_norm=norm, grad_norm_spread=spread)
    run.interval += steps
    if due:
        run.last_record = write_interval(run)
    alerts = [(status.step, alert) for status in steps for alert in run.watchdog.observe(status)]
    for step, alert in alerts:
        run.telemetry.event(step, "watchdog", str(alert))
    stop_on_nan(run, [alert for _, alert in alerts])


def stop_on_nan(run: Run, alerts: list[Alert]) -> None:
    """End the run with exit code 70 and the name of the last good checkpoint if its numbers stay NaN or infinite."""
    bad = next((alert for alert in alerts if alert.kind == "non-finite"), None)
    if bad is None:
        return
    for note in set_aside_damaged(run.checkpoints, run.ranks):
        run.telemetry.event(run.state.step, "checkpoint", note)
    good = from_main(run.ranks, newest_intact(run.checkpoints)[0])
    named = f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"
    run.telemetry.close()
    raise MachineError(
        f"{bad}. Stopped; {named}. Start again if a device was at fault; else resume=PATH with a larger "
        "optimizer.weight_decay or a lower optimizer.base_lr",
        NOT_FINITE,
    )


def save(run: Run, stop: bool) -> None:
    """Write a checkpoint; after a signal exit with the code for it."""
    state = run.state
    good = run.watchdog.healthy and run.engine.is_finite()
    if good:
        state.loader = run.loader.state_dict()
        state.loader["counters"] = data_problems(run)
        started = time.perf_counter()
        path = save_checkpoint(run.engine, state, run.checkpoints, run.config.checkpoint, run.ranks)
        run.telemetry.event(state.step, "checkpoint", f"saved {path} in {time.perf_counter() - started:.1f} s")
    elif not stop:
        run.telemetry.event(state.step, "checkpoint", "not saved, because its numbers are not finite")
    run.last_saved = time.monotonic()
    if stop:
        outcome = "saved" if good else "not saved, because its numbers are not finite"
        run.telemetry.event(state.step, "signal", f"stopped by a signal after step {state.step}, {outcome}")
        run.telemetry.close()
        sys.exit(STOPPED_BY_SIGNAL)


class StepProfiler:
    """Records ``steps`` of a rank into ``folder``: ``trace_rankN.json`` (ui.perfetto.dev, or chrome://tracing).

    On CUDA also ``memory_rankN.pickle`` (docs.pytorch.org/memory_viz): every allocation of these steps, with its stack.
    """

    def __init__(self, steps: range, folder: Path, rank: int) -> None:
        self.steps, self.folder, self.rank = steps, folder, rank
        self.running: Any = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Take the step of this number inside."""
        cuda = torch.cuda.is_available()
        if number in self.steps and self.running is None:  # also where a resumed run starts between
            self.running = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])])
            self.running.start()
            if cuda:
                torch.cuda.memory._record_memory_history()
        yield
        if self.running is not None and number >= self.steps[-1]:
            self.running.stop()
            self.folder.mkdir(parents=True, exist_ok=True)
            self.running.export_chrome_trace(str(self.folder / f"trace_rank{self.rank}.json"))
            if cuda:
                torch.cuda.memory._dump_snapshot(str(self.folder / f"memory_rank{self.rank}.pickle"))
                torch.cuda.memory._record_memory_history(enabled=None)
            self.steps, self.running = range(0), None
