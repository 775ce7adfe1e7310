"""Time and memory of training steps, all rows of a study's efficiency ablation in one process group.

    deepspeed --num_gpus 2 --module filip.study.efficiency study=results/demo/study.json \\
        out=results/demo/efficiency gathered=1024

Steps of the rows are interleaved in an order that is drawn anew each round, so that whatever else the machine does
falls on them all, and the median comes with its quartiles. Pixels and captions are random: a step costs the same
whatever they show.

With ``gathered``, a rank does the work of one of many: its own pairs are scored against so many texts, most of them
copies of its captions that take part as tokens gathered from other ranks do, gradients included. The loss is then a
part of the step that can be seen, as it is on hundreds of GPUs; without, only the texts of the ranks that there are.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from filip.cli.command import MISSING, option, run_command
from filip.common import device
from filip.common.errors import UserError
from filip.common.files import write_json
from filip.common.progress import Progress, say
from filip.models import Encoded, TextFeatures, build_model
from filip.runs.record import commit
from filip.study import load_study
from filip.train.config import TrainConfig
from filip.train.engine import Engine, make_engine, resolve_batching, settle_precision, to_device
from filip.train.losses import Loss, resolve_weights
from filip.train.losses.similarity import transport_dtype
from filip.train.ranks import Ranks, raise_together, start_ranks
from filip.train.warm_start import adapt
from late_interaction import late_interaction
from late_interaction.token_selection import select_tokens

MB = 2**20
CAPTION_TOKENS = (6, 16)  # shortest and longest caption, [BOS] and [EOS] included


@dataclass
class Efficiency:
    study: str = option(MISSING, "study config with the rows, e.g. results/demo/study.json")
    out: str = option(MISSING, "folder of the results, one ROW.json each", writes="folder")
    gathered: int | None = option(
        None, "texts that a rank's pairs are scored against; null = those of all ranks", at_least=1
    )
    steps: int = option(7, "timed steps of each row", at_least=2)
    warmup: int = option(1, "steps of each row before, which are not timed", at_least=0)
    seed: int = option(0, "seed of the weights, the data and the order of the rows", at_least=0)


def main(config: Efficiency) -> None:
    """Measure every row of a study's efficiency ablation."""
    study = load_study(config.study)
    if not study.efficiency:
        raise UserError(f"the study {study.name} has no rows under `efficiency`")
    rows = {name: study.resolved(name).check() for name in study.efficiency}
    ranks = start_ranks()
    with raise_together(ranks):
        notes = {settle_precision(row, ranks) for row in rows.values()} - {""}
    if ranks.is_main:
        for note in sorted(notes):
            say(note)
    for precision in {row.precision for row in rows.values()}:
        device.choose_attention(ranks.device, precision)
    steps = {name: Step(row, config, ranks) for name, row in rows.items()}
    order = random.Random(config.seed)  # the same on every rank
    rounds = config.warmup + config.steps
    with Progress("efficiency rows", "steps", rounds * len(steps), shown=ranks.is_main) as progress:
        for number in range(rounds):
            for name in order.sample(list(steps), len(steps)):
                steps[name].take(timed=number >= config.warmup)
                progress.add()
    for name, step in steps.items():
        result = step.result(name)
        if ranks.is_main:
            write_json(Path(config.out) / f"{name}.json", result)
            print(
                f"{name}: {1000 * result['seconds_per_iteration']:.0f} ms "
                f"[{', '.join(f'{1000 * s:.0f}' for s in result['seconds_quartiles'])}], "
                f"{result['peak_memory_mb']:.0f} MB",
                file=sys.stderr,
                flush=True,
            )
    dist.barrier()


class Step:
    """The training steps of one row on this rank."""

    def __init__(self, row: TrainConfig, config: Efficiency, ranks: Ranks):
        self.row, self.ranks = row, ranks
        self.batching = resolve_batching(row, ranks.world_size)
        self.gathered = config.gathered or self.batching.global_batch
        if config.gathered and config.gathered <= self.batching.global_batch:
            raise UserError(
                f"gathered={config.gathered}: a row's pairs are scored against the {self.batching.global_batch} texts "
                "of its ranks anyway; give more, or leave it out"
            )
        torch.manual_seed(config.seed)
        model = build_model(row.model)
        adapt(model, row.warm_start)
        self.loss = Loss(resolve_weights(row.loss, row.model.interaction), row)
        self.engine: Engine = make_engine(model, row, self.batching, ranks.device, self.loss)
        size, stem = row.image_size or model.image_size, model.image.stem
        shape = (3, size, size)
        if row.data.feature_cache is not None and stem is not None:
            shape = (stem.num_features, *model.image.grid)
        batch = random_batch(row, shape, self.batching.per_rank, config.seed + ranks.rank)
        if self.loss.captions is not None:  # as long as the true ones: their words cost nothing
            batch |= {"further_ids": batch["ids"], "further_lengths": batch["lengths"]}
        self.batch = to_device(batch, ranks.device, torch.float16 if self.engine.is_fp16 else None)
        self.score: Callable[[Encoded], Tensor] = lambda encoded: self.loss(encoded, self.batch["group"]).loss
        if config.gathered:
            self.score = self._many_texts
        self.seconds: list[float] = []
        self.memory: list[float] = []

    def take(self, timed: bool) -> None:
        """Run forward, loss, backward and update; all ranks start together."""
        dist.barrier()
        device.reset_peak_memory(self.ranks.device)  # first: it also gives back memory that other rows have freed
        held = device.memory_mb(self.ranks.device)
        started = time.perf_counter()
        encoded = self.engine.encode(self.batch)
        self.engine.backward(self.score(encoded))
        self.engine.step()
        device.synchronize(self.ranks.device)
        seconds = time.perf_counter() - started
        if timed:
            self.seconds.append(seconds)
            self.memory.append(device.peak_memory_mb(self.ranks.device) - held)

    def _many_texts(self, encoded: Encoded) -> Tensor:
        """Compute the part of one rank among many: own images against all texts, in the row's own interaction."""
        targets = torch.arange(self.batching.per_rank, device=self.ranks.device)
        dtype = transport_dtype(self.row)
        if isinstance(encoded.text, Tensor):
            similarity = encoded.image.float() @ gathered_rows(encoded.text.float(), self.gathered).T
            return F.cross_entropy(similarity * encoded.logit_scale.float(), targets)
        image, text = kept_tokens(self.row, encoded.image, encoded.text)
        if dtype is not None:
            image, text = image.to(dtype), TextFeatures(text.tokens.to(dtype), text.lengths)
        tokens, lengths = gathered_texts(text, self.gathered)
        scores = late_interaction(image, tokens, lengths, backend=self.row.backend)
        scale = encoded.logit_scale.float()
        # s^T of this rank's images and all texts goes to the texts' owners: here it counts with such gradients
        return (
            F.cross_entropy(scores.i2t.float() * scale, targets) + F.cross_entropy(scores.t2i.float() * scale, targets)
        ) / 2

    def result(self, name: str) -> dict[str, Any]:
        """Return the report's numbers: medians over the steps, and the largest over ranks."""
        quartiles = [self.ranks.maximum(value) for value in statistics.quantiles(self.seconds, n=4, method="inclusive")]
        pairs = self.batching.global_batch
        return {
            "run": name,
            "config": asdict(self.row),
            "commit": commit(),
            "precision": self.row.precision,
            "world_size": self.ranks.world_size,
            "global_batch": pairs,
            "pairs_per_rank": self.batching.per_rank,
            "gathered_texts": self.gathered,
            "steps": len(self.seconds),
            "seconds_per_iteration": quartiles[1],
            "seconds_quartiles": [quartiles[0], quartiles[2]],
            "samples_per_second": pairs / quartiles[1],
            "peak_memory_mb": self.ranks.maximum(statistics.median(self.memory)),
        }


def random_batch(row: TrainConfig, shape: tuple[int, int, int], pairs: int, seed: int) -> dict[str, Tensor]:
    """Return images or feature maps of noise and captions of random tokens, as the loader would give them."""
    generator = torch.Generator().manual_seed(seed)
    low, high = CAPTION_TOKENS
    lengths = torch.randint(low, min(high, row.model.text.context_length) + 1, (pairs,), generator=generator)
    ids = torch.randint(1000, 40_000, (pairs, int(lengths.max())), generator=generator)
    return {
        "pixels": torch.randn(pairs, *shape, generator=generator),
        "ids": ids,
        "lengths": lengths,
        "group": torch.arange(pairs) + pairs * seed,
    }


def kept_tokens(row: TrainConfig, image: Tensor, text: TextFeatures) -> tuple[Tensor, TextFeatures]:
    """Return the tokens that the row's selection leaves; all of them with token_keep_ratio=1."""
    if row.token_keep_ratio >= 1:
        return image, text
    image, *rest = select_tokens(
        image, *text, row.token_keep_ratio, score=row.token_score, minimum=row.token_keep_minimum
    )
    return image, TextFeatures(*rest)


def gathered_texts(text: TextFeatures, count: int) -> tuple[Tensor, Tensor]:
    """Return this rank's texts and as many copies as make ``count``; packed tokens [T, d] and lengths [count]."""
    copies, rest = divmod(count, len(text.lengths))
    some = int(text.lengths[:rest].sum())
    other = torch.cat([*[text.tokens.detach()] * (copies - 1), text.tokens.detach()[:some]])
    other.requires_grad_()  # their gradient is computed here and then sent to their owner
    lengths = torch.cat([*[text.lengths] * copies, text.lengths[:rest]])
    return torch.cat([text.tokens, other]), lengths


def gathered_rows(vectors: Tensor, count: int) -> Tensor:
    """Return this rank's vectors, repeated to [count, d]."""
    other = vectors.detach().repeat(-(-count // len(vectors)), 1)[len(vectors) : count]
    return torch.cat([vectors, other.requires_grad_()])


if __name__ == "__main__":
    run_command(main, Efficiency)
