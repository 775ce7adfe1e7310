"""Caption selection: ``python -m filip.eval.selection model=M.safetensors root=DIR cards=[…] out=F.json``.

Each image comes with a few captions of which one is true and the others differ from it in a detail: a name, or the
relation of two things. A model is right where it gives the true one the highest similarity. Which similarity that
is makes a difference to a token-wise model, so all three are reported: s^I (image), s^T (text) and their mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from filip.command import run_command
from filip.errors import UserError
from filip.eval.cards import BenchmarkCard, load_cards
from filip.eval.encode_set import encoded_batches, size_note
from filip.eval.formats import open_set
from filip.eval.metrics import label_hits, mean_interval
from filip.eval.options import EvalOptions
from filip.eval.outcomes import Outcomes, Record, write_outcomes
from filip.eval.scorer import RANKINGS, Scorer, ranking
from filip.files import write_json
from filip.progress import say


@dataclass
class Selection(EvalOptions):
    pass


def main(config: Selection) -> None:
    """How often a model picks the true caption of an image, on several benchmarks, written as JSON."""
    cards = load_cards(config.cards, config.loader, "selection")
    scorer = config.scorer()
    benchmarks = {}
    record: Record = {}
    for card in cards:
        found = select(scorer, card, config.root, config.batch_size, config.workers, record)
        benchmarks[card.name] = found
        rates = " / ".join(f"{100 * found[by]['value']:.1f}" for by in RANKINGS)
        chance = 100 * found["chance"]
        say(
            f"{card.name}: {found['n']:,} images; by image / text / mean {rates} % right (chance {chance:.1f} %)"
        )
    write_outcomes(config.out, record)
    write_json(config.out, {**config.result_header(scorer.encoder), "benchmarks": benchmarks})


def select(
    scorer: Scorer,
    card: BenchmarkCard,
    root: str | Path,
    batch_size: int = 64,
    workers: int = 0,
    record: Record | None = None,
) -> dict[str, Any]:
    """Accuracy of one benchmark (fractions, with a 95 % interval) by each ranking, and chance.

    The outcome of each image is put into ``record`` under the card's name. Raises UserError if the data set is missing
    or an image has fewer than two captions.
    """
    data = open_set(card, root)
    parts: dict[str, list[Tensor]] = {by: [] for by in RANKINGS}
    keys: list[str] = []
    counts: list[int] = []
    for images, batch in encoded_batches(scorer, data, card.name, batch_size, workers):
        own = [len(captions) for captions in batch.captions]
        for key, count in zip(batch.keys, own, strict=True):
            if count < 2:
                raise UserError(f"{card.name}: image {key} has {count} captions; there is nothing to select")
        texts = scorer.encode_texts([caption for captions in batch.captions for caption in captions])
        similarity = scorer.similarity(images, texts)
        for by in RANKINGS:
            parts[by].append(_hits(ranking(similarity, by), own))
        keys += batch.keys
        counts += own
    hits = {by: torch.cat(found) for by, found in parts.items()}
    if record is not None:
        record[card.name] = Outcomes.of(keys, hits)
    rates = {
        by: {"value": float(right.mean()), "ci95": list(mean_interval(right))} for by, right in hits.items()
    }
    chance = sum(1 / count for count in counts) / len(counts)
    note = size_note(card, len(counts))
    return {"n": len(counts), "chance": chance, "split": card.split, "note": note, **rates}


def _hits(scores: Tensor, counts: list[int]) -> Tensor:
    """[images] float64: whether the first of an image's own captions scores highest (ties: in expectation).

    scores: [images, captions of all images one after the other]; counts: captions of each image.
    """
    right, start = [], 0
    for row, count in zip(scores, counts, strict=True):
        own = row[start : start + count].unsqueeze(0)
        right.append(label_hits(own, torch.zeros(1, dtype=torch.int64), (1,))[0, 0])
        start += count
    return torch.stack(right)


if __name__ == "__main__":
    run_command(main, Selection)
