"""A training of the demo in this process and its recall on scenes, for the studies in this folder.

One process and one thread, so that two trainings share a machine of two cores without waiting for each other; the
"local batch" of the token selection is then the whole batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from filip import device
from filip.command import compose_config, option
from filip.data.loading.config import StreamConfig
from filip.data.loading.loader import build_loader
from filip.eval.cards import load_card
from filip.eval.context import Context
from filip.eval.encoders import FilipEncoder
from filip.eval.prompts import Prompt
from filip.eval.protocols.retrieval import retrieval_benchmark
from filip.eval.scorer import Scorer, Texts, TokenScorer, scorer_for
from filip.interaction import Similarity, TokenChoice, select_tokens
from filip.models import save_model
from filip.progress import say
from filip.train.config import TrainConfig
from filip.train.engine import make_optimizer, to_device
from filip.train.feature_cache import cache_folder, fill
from filip.train.loop import initial_model
from filip.train.losses import Loss, resolve_weights, token_wise
from filip.train.param_groups import set_lr
from filip.train.schedule import make_schedule

Choose = Callable[..., TokenChoice]
STEM_MAPS = Path(".cache/stem_maps")  # where the demo keeps those of the test sets' images


@dataclass
class DemoTraining:
    """The place of the demo's corpus, and the length of each training."""

    sources: str = option(
        "[{shards: results/demo/data/demo/shards, captions: results/demo/data/demo/captions}]",
        "training data as for filip.train",
    )
    root: str = option("results/demo/corpus/eval", "folder of the test sets")
    card: str = option("eval/demo_scenes_search.yaml", "retrieval card that the table reports")
    batch: int = option(128, "pairs per step")
    experiment: str = option("demo", "what every row trains: demo from scratch, demo_stem as the demo does")
    steps: int = option(400, "steps of each training")
    warmup_steps: int | None = option(None, "steps of warm-up; null = a tenth, at most 60")
    overrides: list[str] = option([], "further settings of every row, as for filip.train")
    only: list[str] = option([], "labels of the rows to run; empty = all")


@dataclass
class Outcome:
    """One row: processor seconds of the training, in-batch accuracy at its end, recall in percent, metrics by step."""

    seconds: float
    accuracy: float  # NaN if no term of the loss compares pairs, as with sparc alone
    recall: dict[str, float]  # all tokens at inference, as in the paper
    selected: dict[str, float] | None  # the training's selection at inference too
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)


def run(study: DemoTraining, overrides: list[str], choose: Choose | None = None, save: Path | None = None) -> Outcome:
    """Train with ``overrides`` of the study's experiment; ``choose`` replaces the selection of tokens, ``save`` is
    where the model goes."""
    warmup = min(60, study.steps // 10) if study.warmup_steps is None else study.warmup_steps
    config = compose_config(
        TrainConfig,
        [f"experiment={study.experiment}", "run_dir=-", "out=-", f"data.sources={study.sources}",
         f"global_batch={study.batch}", f"max_steps={study.steps}",
         f"optimizer.warmup_steps={warmup}", *study.overrides, *overrides],
        "train",
    )  # fmt: skip
    if config.precision == "auto":
        config.precision = device.best_precision(torch.device("cpu"))
    torch.set_num_threads(1)
    device.choose_attention(torch.device("cpu"), config.precision)
    device.keep_freed_memory()
    model = initial_model(config)
    started = time.process_time()  # time of one thread; the machine may have other work
    with selection_by(choose):
        metrics = train(model, config)
    seconds = time.process_time() - started
    if save is not None:
        save_model(save, model)
    if model.image.stem is not None:
        model.image.stem.keep_maps(STEM_MAPS)
    encoder = FilipEncoder(model.eval(), config.model.name)
    recall = recall_of(scorer_for(encoder), study)
    # A study's own `choose` may know the pairs, and would read them off the test set.
    selects = config.token_keep_ratio < 1 and choose is None
    selected = recall_of(SelectingScorer(encoder, config), study) if selects else None
    return Outcome(seconds, 100 * metrics[study.steps].get("accuracy/i2t", math.nan), recall, selected, metrics)


def recall_of(scorer: Scorer, study: DemoTraining) -> dict[str, float]:
    """Return R@1 and R@10 both ways, in percent, of bare captions."""
    bare = (Prompt("", ""), Prompt("", ""))
    found = retrieval_benchmark(scorer, load_card(study.card), bare, context=Context(study.root))
    return {f"{way} {r}": 100 * found[way][r] for way in ("i2t", "t2i") for r in ("r1", "r10")}


class SelectingScorer(TokenScorer):
    """A scorer that keeps tokens at inference as the training did, with the whole test set as the scoring batch."""

    def __init__(self, encoder: FilipEncoder, config: TrainConfig) -> None:
        super().__init__(encoder)
        self.config = config
        self.scorers = token_wise.token_scorers(config, encoder.model.loss_parameters())

    def similarity(self, images: Tensor, texts: Texts, progress: bool = False) -> Similarity:
        assert texts.lengths is not None
        c = self.config
        patches, words, lengths = select_tokens(
            images,
            texts.values,
            texts.lengths,
            c.token_keep_ratio,
            score=c.token_score,
            minimum=c.token_keep_minimum,
            scorers=self.scorers,
        )
        return super().similarity(patches, Texts(words, lengths), progress)


def train(model: Any, config: TrainConfig) -> dict[int, dict[str, float]]:
    """Run all steps of ``config``; return the metrics of steps 1, 50 and every hundredth."""
    steps, batch = config.max_steps or 0, config.global_batch or 0
    loss = Loss(resolve_weights(config.loss, config.model.interaction), config)
    both = loss.reads_both(model.config.interaction)
    model.set_loss_parameters(loss.parameters(model))
    optimizer = make_optimizer(model, config)
    o = config.optimizer
    schedule = make_schedule(o.base_lr, batch, o.warmup_steps, steps)
    stream = StreamConfig(
        config.data,
        batch,
        model.image_size,
        model.config.text.context_length,
        config.seed,
        feature_maps=cache_folder(config.data.feature_cache, model, config.precision),
    )
    loader = build_loader(stream)
    fill(loader.stream, model, config.precision, torch.device("cpu"), None)
    batches = endless(loader)
    logged = {}
    for step in range(steps):
        loaded = loss.with_further_captions(next(batches), f"{config.seed} {step}")
        pairs = to_device(loaded, torch.device("cpu"), None)
        set_lr(optimizer.param_groups, schedule.at(step), step)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            encoded = model(
                pairs["pixels"],
                pairs["ids"],
                pairs["lengths"],
                both,
                pairs.get("further_ids"),
                pairs.get("further_lengths"),
            )
        output = loss(encoded, pairs["group"], step, (pairs["ids"], pairs["lengths"]))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        if step + 1 in (1, 50, steps) or (step + 1) % 100 == 0:
            metrics = output.metrics | {"optimizer/logit_scale": encoded.logit_scale}
            logged[step + 1] = {name: float(value.detach()) for name, value in metrics.items()}
            say(f"  step {step + 1}: loss {logged[step + 1]['loss/total']:.3f}")
    return logged


def endless(loader: Any) -> Iterator[dict[str, Any]]:
    """Yield the batches of one epoch after another."""
    while True:
        yield from loader


@contextmanager
def selection_by(choose: Choose | None) -> Iterator[None]:
    """Let the token-wise loss choose its tokens with ``choose`` inside the block, not with the library's function."""
    original = token_wise.choose_tokens
    if choose is not None:
        token_wise.choose_tokens = choose  # type: ignore[attr-defined]
    try:
        yield
    finally:
        token_wise.choose_tokens = original  # type: ignore[attr-defined]


def row(label: str, outcome: Outcome) -> str:
    """Return a line of the Markdown table whose head is :data:`HEAD`."""
    seen = [
        f"{r[f'{way} r1']:.1f} / {r[f'{way} r10']:.1f}" if r else "–"
        for r in (outcome.recall, outcome.selected)
        for way in ("i2t", "t2i")
    ]
    return f"| {label} | {outcome.accuracy:.0f} | {' | '.join(seen)} | {outcome.seconds:.0f} |"


HEAD = (
    "| run | in-batch accuracy | i2t R@1 / R@10 | t2i R@1 / R@10 | i2t, selecting | t2i, selecting | seconds |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)
