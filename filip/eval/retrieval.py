"""Image-text retrieval: ``python -m filip.eval.retrieval model=M.safetensors root=DIR cards=[…] out=F.json``.

R@1, R@5 and R@10 in both directions over all captions. Image to text is a hit if any of the image's own
captions is among the first k. Which similarity ranks which direction is open in the paper; the default is
s^I for image to text and s^T for text to image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from filip.command import option, run_command
from filip.errors import UserError
from filip.eval.cards import BenchmarkCard
from filip.eval.datasets import Batch
from filip.eval.encode_set import CutTexts, Source, collect, size_note
from filip.eval.formats import open_set
from filip.eval.metrics import mean_interval, retrieval_chance, retrieval_hits
from filip.eval.options import EvalOptions, skipped_entry
from filip.eval.outcomes import Outcomes, Record, write_outcomes
from filip.eval.prompts import Prompt, load_retrieval_prompts
from filip.eval.scorer import RANKINGS, Scorer, Texts, ranking
from filip.eval.sharing import launched, shared_main
from filip.eval.shortlist import rerank
from filip.files import write_json
from filip.progress import say

KS = (1, 5, 10)
WAYS = ("i2t", "t2i")


@dataclass
class Retrieval(EvalOptions):
    prompts: str = option("eval/prompts.yaml", "prompt file; its `retrieval` entry has the paper's prompts")
    fine_tuned_on: str = option(
        "",
        "source the model was fine-tuned on: benchmarks of that source rank bare captions, without prompts",
    )
    rank_texts_by: str = option(
        "image", "image to text ranks by: image (s^I), text (s^T) or mean of both", choices=RANKINGS
    )
    rank_images_by: str = option(
        "text", "text to image ranks by: image (s^I), text (s^T) or mean of both", choices=RANKINGS
    )
    shortlist: int = option(
        0, "two-stage: exact scores for this many candidates only; 0 = all, exact", at_least=0
    )
    compare: bool = option(True, "with a shortlist: also rank exactly, and report the recall that it loses")


def main(config: Retrieval) -> None:
    """Recall of a model on several retrieval benchmarks, written as JSON."""

    def write(result: dict[str, Any], record: Record) -> None:
        write_outcomes(config.out, record)
        write_json(config.out, result)

    shared_main(config, evaluate, write)


def evaluate(config: Retrieval, scorer: Scorer | None = None) -> tuple[dict[str, Any], Record]:
    """What the result file says, and the outcomes of images and captions. ``scorer``: of the model, if it is loaded."""
    cards, skipped = config.load_cards("retrieval")
    prompts = {card.name: card_prompts(card, config) for card in cards}
    scorer = scorer or config.scorer()
    benchmarks = {}
    record: Record = {}
    for card in cards:
        found = retrieval_benchmark(scorer, card, config.root, prompts[card.name], config, record)
        benchmarks[card.name] = found
        say(
            f"{card.name}: {found['images']:,} images, {found['captions']:,} captions; "
            + "; ".join(
                f"{way} R@1/5/10 {' / '.join(f'{100 * found[way][r]:.1f}' for r in ('r1', 'r5', 'r10'))} %"
                for way in WAYS
            )
        )
        if "cut_note" in found:
            say(f"{card.name}: {found['cut_note']}")
    result = {
        **config.result_header(scorer.encoder),
        "ranking": {"i2t": config.rank_texts_by, "t2i": config.rank_images_by},
        "benchmarks": benchmarks,
        **skipped_entry(skipped),
    }
    return result, record


def card_prompts(card: BenchmarkCard, config: Retrieval) -> tuple[Prompt, Prompt]:
    """What is put around captions (image to text, text to image).

    The prompts of the paper are for zero-shot retrieval. A model that was fine-tuned on the captions of the benchmark
    has only seen them bare, and ranks them so.
    """
    tuned = config.fine_tuned_on in card.fine_tuned_on
    return load_retrieval_prompts(config.prompts, None if tuned else card.prompts)


@dataclass
class _Collected:
    images: Tensor  # features of all images
    captions: list[str]
    owner: Tensor  # [captions] int64: the image that a caption belongs to
    keys: list[str]  # of all images


def retrieval_benchmark(
    scorer: Scorer,
    card: BenchmarkCard,
    root: str | Path,
    prompts: tuple[Prompt, Prompt],
    config: Retrieval,
    record: Record | None = None,
) -> dict[str, Any]:
    """The numbers of one benchmark (fractions, not percentages).

    prompts: put around captions when ranking texts, and when ranking images. The outcome of each image and caption is
    put into ``record``. Raises UserError if the data set is missing or an image has no caption.
    """
    found = _collect(scorer, card, root, config)
    texts = []
    cut = CutTexts(scorer)
    for prompt in dict.fromkeys(prompts):
        filled = [prompt.fill(caption) for caption in found.captions]
        cut.count(filled)
        texts.append(scorer.encode_texts(filled))
    for_texts, for_images = texts[0], texts[-1]
    result: dict[str, Any] = {
        "images": len(found.images),
        "captions": len(found.captions),
        "prompts": [prompt.fill("{c}") for prompt in prompts],
        "split": card.split,
        "layout": card.loader,
        "note": size_note(card, len(found.images)),
        **cut.result(),
    }
    exact = None
    if not config.shortlist or config.compare:
        exact = recalls(*_exact(scorer, found.images, for_texts, for_images, config), found.owner)
    if not config.shortlist:
        assert exact is not None
        _record(record, card.name, found, exact)
        return result | exact.table
    scores = rerank(
        scorer,
        found.images,
        for_texts,
        for_images,
        config.shortlist,
        config.rank_texts_by,
        config.rank_images_by,
    )
    short = recalls(*scores, found.owner)
    _record(record, card.name, found, short)
    lost = None
    if exact is not None:
        lost = {way: {r: exact.table[way][r] - short.table[way][r] for r in exact.table[way]} for way in WAYS}
    stage = {"shortlist": config.shortlist, "by": "pooled", "lost": lost}
    return result | short.table | {"two_stage": stage, "exact": exact.table if exact else None}


def _record(record: Record | None, name: str, found: _Collected, recalls: Recalls) -> None:
    if record is None:
        return
    images = [found.keys[i] for i in found.owner.tolist()]  # of each caption
    captions = [f"{image}#{number}" for number, image in enumerate(images)]
    for way, keys, clusters in (("i2t", found.keys, found.keys), ("t2i", captions, images)):
        values = {f"r{k}": recalls.hits[way][:, i] for i, k in enumerate(KS)}
        record[f"{name}.{way}"] = Outcomes.of(keys, values, clusters)


def _collect(scorer: Scorer, card: BenchmarkCard, root: str | Path, config: Retrieval) -> _Collected:
    data = open_set(card, root)
    captions: list[str] = []
    owner: list[int] = []
    keys: list[str] = []

    def keep(images: Tensor, batch: Batch) -> tuple[Tensor, list[str], list[list[str]]]:
        return scorer.movable(images), batch.keys, batch.captions

    parts = collect(scorer, Source(data, card.name, config.batch_size, config.workers, card, root), keep)
    for _, of_batch, theirs in parts:
        for key, own in zip(of_batch, theirs, strict=True):
            if not own:
                raise UserError(f"{card.name}: image {key} has no caption")
            captions += own
            owner += [len(keys)] * len(own)
            keys.append(key)
    features = scorer.moved_back(torch.cat([images for images, *_ in parts]))
    return _Collected(features, captions, torch.tensor(owner, dtype=torch.int64), keys)


def _exact(
    scorer: Scorer, images: Tensor, for_texts: Texts, for_images: Texts, config: Retrieval
) -> tuple[Tensor, Tensor]:
    """What ranks texts and what ranks images, both [images, texts]; one pass if the prompts are the same."""
    similarity = scorer.large_similarity(images, for_texts)
    by_image = ranking(similarity, config.rank_texts_by)
    if for_images is not for_texts:
        similarity = scorer.large_similarity(images, for_images)
    return by_image, ranking(similarity, config.rank_images_by)


@dataclass
class Recalls:
    """table: what the result file says. hits: for "i2t" [images, len(KS)], for "t2i" [texts, len(KS)]."""

    table: dict[str, Any]
    hits: dict[str, Tensor]


def recalls(rank_texts: Tensor, rank_images: Tensor, owner: Tensor) -> Recalls:
    """R@1, R@5, R@10 both ways, with chance and 95 % intervals over images.

    rank_texts, rank_images: [images, texts], the scores that rank texts for an image, and images for a text.
    owner: [texts] int64, the image that a text belongs to.
    """
    images = torch.arange(len(rank_texts))
    ways = {
        "i2t": (retrieval_hits(rank_texts, images, owner, KS), retrieval_chance(images, owner, KS), images),
        "t2i": (retrieval_hits(rank_images.T, owner, images, KS), retrieval_chance(owner, images, KS), owner),
    }
    names = [f"r{k}" for k in KS]
    table: dict[str, Any] = {"chance": {}, "ci95": {}}
    for way, (hits, chance, cluster) in ways.items():
        table[way] = {name: float(hits[:, i].mean()) for i, name in enumerate(names)}
        table["chance"][way] = dict(zip(names, chance, strict=True))
        table["ci95"][way] = {
            name: list(mean_interval(hits[:, i], clusters=cluster)) for i, name in enumerate(names)
        }
    return Recalls(table, {way: hits for way, (hits, _, _) in ways.items()})


if __name__ == "__main__":
    run_command(main, Retrieval, quiet=launched().rank > 0)
