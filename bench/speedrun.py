"""The speedrun: find half of the scenes within the least processor time. Rules and records: records/README.md.

    make speedrun                                       # after the data stages of `make demo`; the record, five seeds
    python -m bench.speedrun overrides=[max_steps=300]  # an attempt: any setting of filip.train
    python -m bench.speedrun out=records/my-attempt     # keep its log
    python -m bench.speedrun against=records/small-patches     # and train that record too, in turns: the ratio counts

A trainer in one process and one thread, from top to bottom. Data, towers, loss, optimiser and schedule are the
project's; in place of engine, checkpoints and monitors there is a loop that anything can look into (:func:`training`).
What is made once is kept and not timed: the maps of the frozen stem, and the list of the words.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from scipy.special import stdtr
from torch import Tensor

from filip import device, tokenizer
from filip.command import compose_config, option, run_command
from filip.data.loading.config import StreamConfig
from filip.data.loading.loader import PairLoader, build_loader
from filip.data.preprocessing import eval_transform
from filip.errors import UserError
from filip.eval.cards import load_card
from filip.eval.datasets import batches
from filip.eval.formats import open_set
from filip.eval.metrics import retrieval_hits
from filip.files import replacing, write_json
from filip.interaction import Similarity, pooled_similarity, score
from filip.interaction.backends import Backend
from filip.models import DualEncoder, Encoded, TextFeatures
from filip.progress import say
from filip.train.config import TrainConfig
from filip.train.engine import make_optimizer, to_device
from filip.train.feature_cache import cache_folder, fill
from filip.train.loop import initial_model
from filip.train.losses import Loss, resolve_weights
from filip.train.param_groups import set_lr
from filip.train.provenance import commit
from filip.train.schedule import make_schedule
from workflow.estimate import cpu_name

UNKNOWN = 0  # row of the word vectors for tokens that no training caption has


@dataclass
class Place:
    """The place of the demo's corpus."""

    shards: str = option("results/demo/data/demo/shards", "training pairs, with the captions of their list")
    root: str = option("results/demo/corpus/eval", "folder of the test sets")
    card: str = option("eval/demo_scenes_search.yaml", "retrieval card to find scenes of")
    maps: str = option("auto", "precision in which the stem's maps are made: fp32, bf16 or auto, as the demo's")


@dataclass
class Speedrun(Place):
    """The settings of an attempt."""

    experiment: str = option("demo_speedrun", "the settings of the training")
    overrides: list[str] = option([], "further settings, as for filip.train")
    seeds: list[int] = option([0, 1, 2, 3, 4], "seeds, one training each; a record needs five or more")
    goal: float = option(50.0, "R@1 in percent, mean of both directions")
    out: str | None = option(
        None, "folder for a log of each seed, e.g. records/NAME; seeds that it has are not trained again"
    )
    against: str | None = option(
        None, "folder of a record that is trained too, seed by seed in turn, so that both have one machine and day"
    )


def main(run: Speedrun) -> None:
    """Train once per seed, unless ``out`` has that training; say what was found, and whether the goal is reached."""
    record = None if run.against is None else settings_of_record(Path(run.against))
    found = []
    for seed in run.seeds:
        file = None if run.out is None else Path(run.out) / f"seed-{seed}.json"
        if file is not None and file.exists():
            found.append(json.loads(file.read_text(encoding="utf-8")))
            continue
        found.append(attempt(run, seed))
        if record is not None:
            other = attempt(replace(run, experiment=record[0], overrides=record[1:]), seed)
            found[-1]["against"] = {key: other[key] for key in ("settings", "steps", "seconds", "i2t", "t2i")}
        if file is not None:
            write_json(file, found[-1])
    say_verdict(run, found)


def settings_of_record(folder: Path) -> list[str]:
    """Return the experiment of a record and its overrides. Raise UserError if the folder has no log."""
    logs = sorted(folder.glob("seed-*.json"))
    if not logs:
        raise UserError(f"against={folder} is not a record: no seed-*.json is there. records/README.md lists them")
    settings: list[str] = json.loads(logs[0].read_text(encoding="utf-8"))["settings"]
    return settings


def say_verdict(run: Speedrun, found: list[dict[str, Any]]) -> None:
    """Say what each training found, their mean and p, and their time as a share of the other record's."""
    for one in found:
        say(f"seed {one['seed']}: {one['i2t']:.1f} / {one['t2i']:.1f} in {one['seconds']:.1f} CPU seconds")
    reached = [fmean((one["i2t"], one["t2i"])) for one in found]
    say(
        f"R@1 {fmean(reached):.1f} ({len(reached)} trainings, sd {stdev(reached) if found[1:] else math.nan:.1f}; p of "
        f"less than {run.goal:g}: {chance_that_below(reached, run.goal):.1g}), "
        f"{fmean(one['seconds'] for one in found):.1f} CPU seconds a training on {found[0]['cpu']}"
    )
    pairs = [(one, one["against"]) for one in found if "against" in one]
    if pairs:
        ratio = math.exp(fmean(math.log(own["seconds"] / other["seconds"]) for own, other in pairs))
        its = fmean(fmean((other["i2t"], other["t2i"])) for _, other in pairs)
        seconds = fmean(other["seconds"] for _, other in pairs)
        say(f"the record finds {its:.1f} here in {seconds:.1f} CPU seconds; this is {ratio:.2f} of its time")


def attempt(run: Speedrun, seed: int) -> dict[str, Any]:
    """Train once and return the log: what ran where, the loss by step, processor seconds and recall."""
    config = configure(run, run.experiment, [*run.overrides, f"seed={seed}"])
    corpus = prepare(config, run)
    losses = {}
    for state in training(config, corpus):
        if state.step % 50 == 0 or state.step == config.max_steps:
            losses[state.step] = round(state.loss, 3)
            say(f"  seed {seed} step {state.step}: loss {state.loss:.3f}, {state.seconds:.1f} CPU seconds")
    return {
        "seed": seed,
        "settings": [run.experiment, *run.overrides],
        "commit": commit(),
        "cpu": cpu_name(),
        "computes_as": os.environ.get("ATEN_CPU_CAPABILITY"),
        "steps": state.step,
        "seconds": round(state.seconds, 2),
        **evaluate(state.model, corpus),
        "losses": losses,
    }


def chance_that_below(values: list[float], goal: float) -> float:
    """Return p of a one-sided t-test: how likely means as high are if trainings reach ``goal`` and no more."""
    if len(values) < 2:
        return math.nan
    error = stdev(values) / math.sqrt(len(values))
    return float(stdtr(len(values) - 1, (goal - fmean(values)) / error)) if error else float(fmean(values) <= goal)


def configure(place: Place, experiment: str, overrides: list[str]) -> TrainConfig:
    """Return a training's configuration: ``experiment`` on the corpus, from whole images, with ``overrides``."""
    nowhere = ["run_dir=-", "out=-"]
    sources = f"data.sources=[{{shards: {place.shards}}}]"
    return compose_config(TrainConfig, [f"experiment={experiment}", *nowhere, sources, *overrides], "train")


@dataclass
class Corpus:
    """Hold what is made once: batches of feature maps, words, and a test set."""

    loader: PairLoader
    words: Tensor  # [49408] int64: the row of each token's vector, UNKNOWN for those that no caption has
    maps: Tensor  # [scenes, channels, rows, columns] float32, of the test set
    ids: Tensor  # [scenes, n] int64, tokens of its captions
    lengths: Tensor  # [scenes] int64


def prepare(config: TrainConfig, place: Place) -> Corpus:
    """Make or open the feature maps of both sets; size the word vectors of ``config`` to the words that occur."""
    torch.set_num_threads(1)
    device.keep_freed_memory()
    model = initial_model(config)
    maps = device.best_precision(torch.device("cpu")) if place.maps == "auto" else place.maps
    folder = cache_folder(config.data.feature_cache, model, maps)
    batch, length = config.global_batch or 0, config.model.text.context_length
    stream = StreamConfig(config.data, batch, model.image_size, length, config.seed, feature_maps=folder)
    loader = build_loader(stream)
    fill(loader.stream, model, maps, torch.device("cpu"), None)
    assert folder is not None
    scenes, captions = _scenes(model, place, folder / f"{Path(place.card).stem}.npz", maps)
    ids, lengths = tokenizer.tokenize(captions, length)
    words = _words(loader, folder / "words.npy")
    config.model.text.vocab_size = int(words.max()) + 1
    return Corpus(loader, words, scenes, ids, lengths)


def _scenes(model: DualEncoder, place: Place, file: Path, precision: str) -> tuple[Tensor, list[str]]:
    """Return the feature maps and captions of the test set, which are kept in ``file``."""
    if not file.exists():
        assert model.image.stem is not None
        stem, maps, captions = model.image.stem.folded(), [], []
        transform = eval_transform(model.image_size)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            for batch in batches(open_set(load_card(place.card), place.root), transform, 64):
                maps.append(stem(batch.pixels).to(torch.float16).numpy())
                captions += [own[0] for own in batch.captions]
        with replacing(file) as part, open(part, "wb") as opened:
            np.savez(opened, maps=np.concatenate(maps), captions=np.array(captions))
    kept = np.load(file)
    return torch.from_numpy(kept["maps"]).float(), kept["captions"].tolist()


def _words(loader: PairLoader, file: Path) -> Tensor:
    """Return the row of each token's vector, by the captions of all training pairs; kept in ``file``."""
    if not file.exists():
        seen = np.zeros(49408, bool)
        for batch in loader:
            seen[batch["ids"].unique().numpy()] = True
        rows = np.where(seen, np.cumsum(seen), UNKNOWN)
        with replacing(file) as part, open(part, "wb") as opened:
            np.save(opened, rows)
    return torch.from_numpy(np.load(file))


@dataclass
class State:
    """A training after some step."""

    step: int  # steps taken
    seconds: float  # processor time of the steps alone
    loss: float
    model: DualEncoder
    encoded: Encoded  # the step's batch, with gradients of its tokens


def training(config: TrainConfig, corpus: Corpus, before: Callable[[int], None] | None = None) -> Iterator[State]:
    """Train, and yield after every step; the clock stands still until the next one is asked for.

    before: called with the number of each step, from 0, before it is taken; it may change ``config``.
    """
    clock = time.process_time()
    model = initial_model(config)
    loss = Loss(resolve_weights(config.loss, config.model.interaction), config)
    optimizer, o = make_optimizer(model, config), config.optimizer
    steps = config.max_steps or 0
    schedule = make_schedule(o.base_lr, config.global_batch or 0, o.warmup_steps, steps)
    pairs = itertools.chain.from_iterable(itertools.repeat(corpus.loader))
    spent = time.process_time() - clock
    for step in range(steps):
        clock = time.process_time()
        if before is not None:
            before(step)
        batch = to_device(next(pairs), torch.device("cpu"), None)
        set_lr(optimizer.param_groups, schedule.at(step), step)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            encoded = model(batch["pixels"], corpus.words[batch["ids"]], batch["lengths"])
        for tokens in (encoded.image, getattr(encoded.text, "tokens", encoded.text)):
            tokens.retain_grad()
        output = loss(encoded, batch["group"], step)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        spent += time.process_time() - clock
        yield State(step + 1, spent, float(output.loss.detach()), model, encoded)


@torch.no_grad()
def evaluate(model: DualEncoder, corpus: Corpus, maximum: str | Backend = "auto") -> dict[str, float]:
    """Return R@1 both ways in percent: texts ranked by s^I, images by s^T, with ``maximum`` in both."""
    model.eval()
    images = torch.cat([model.encode_image(part) for part in corpus.maps.split(250)])
    texts = model.encode_text(corpus.words[corpus.ids], corpus.lengths)
    model.train()
    similarity = (
        score(images, *texts, backend=maximum) if isinstance(texts, TextFeatures) else pooled_similarity(images, texts)
    )
    return recall(similarity)


def recall(similarity: Similarity) -> dict[str, float]:
    """Return R@1 both ways in percent, caption i being that of image i."""
    own = torch.arange(len(similarity.i2t))
    ways = {"i2t": similarity.i2t, "t2i": similarity.t2i.T}
    return {way: 100 * float(retrieval_hits(one, own, own, [1]).mean()) for way, one in ways.items()}


if __name__ == "__main__":
    run_command(main, Speedrun)
