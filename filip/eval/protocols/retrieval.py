"""Image-text retrieval.

R@1, R@5 and R@10 in both directions over all captions. Image to text is a hit if any of the image's own
captions is among the first k. Which similarity ranks which direction is open in the paper; the default is
s^I for image to text and s^T for text to image. The choice is worth tens of points to a token-wise model, so the
recalls by the other similarity, and by the mean of both, are among the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from filip.cli.command import option
from filip.common.errors import UserError
from filip.eval.cards import BenchmarkCard
from filip.eval.encode_set import Context, CutTexts, size_note
from filip.eval.encoders import Encoder, joined
from filip.eval.formats import open_set
from filip.eval.metrics import mean_interval, retrieval_chance, retrieval_hits
from filip.eval.outcomes import Outcomes, Record
from filip.eval.prompts import load_retrieval_prompts
from filip.eval.protocols import Column, Numbers, Protocol, ReportTable
from filip.eval.scorer import RANKING_TITLES, RANKINGS, Scorer, Texts, ranking
from filip.eval.word_patch import Prompt

KS = (1, 5, 10)
WAYS = {"i2t": "image → text", "t2i": "text → image"}


@dataclass
class RetrievalSettings:
    fine_tuned_on: str = option(
        "", "source the model was fine-tuned on: benchmarks of that source rank bare captions, without prompts"
    )
    rank_texts_by: str = option(
        "image", "image to text ranks by: image (s^I), text (s^T) or mean of both", choices=RANKINGS
    )
    rank_images_by: str = option(
        "text", "text to image ranks by: image (s^I), text (s^T) or mean of both", choices=RANKINGS
    )
    ties: str = option(
        "expected",
        "equal scores, as captions of several images have: expected = the mean over their orders; first = those that "
        "torch.topk finds first, as in CLIP_benchmark",
        choices=("expected", "first"),
    )


def run(
    encoder: Encoder, card: BenchmarkCard, settings: RetrievalSettings, context: Context, record: Record
) -> Numbers:
    """Measure one benchmark (fractions, not percentages).

    The outcome of each image and caption is put into ``record``. Raises UserError if the data set is missing or an
    image has no caption.
    """
    scorer, prompts = context.scorer(encoder), card_prompts(card, settings, context)
    found = _collect(scorer, card, context)
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
        "note": "; ".join(filter(None, (size_note(card, len(found.images)), _shared(found, settings)))) or None,
        **cut.result(),
    }
    if scorer.token_wise:
        result |= patch_cosine(found.images)
    chosen, by = _exact(scorer, found, for_texts, for_images, settings)
    result |= by
    _record(record, card.name, found, chosen)
    return result | chosen.table


def card_prompts(card: BenchmarkCard, settings: RetrievalSettings, context: Context) -> tuple[Prompt, Prompt]:
    """Return the prompts around captions (image to text, text to image).

    The prompts of the paper are for zero-shot retrieval. A model that was fine-tuned on the captions of the benchmark
    has only seen them bare, and ranks them so.
    """
    tuned = settings.fine_tuned_on in card.fine_tuned_on
    return load_retrieval_prompts(context.prompt_file, None if tuned else card.prompts)


@dataclass
class _Collected:
    images: Tensor  # the features of all images
    captions: list[str]
    owner: Tensor  # [captions] int64: the image that a caption belongs to
    keys: list[str]  # the keys of all images


def patch_cosine(images: Tensor) -> dict[str, float]:
    """Return the mean cosine of two patches of an image, of images [b, n, d] in unit vectors; {} where all have one.

    Near 1 the patches have collapsed: all are the same vector.
    """
    counts = images.any(dim=-1).sum(dim=1)  # without the padding
    products = images.sum(dim=1, dtype=torch.float32).square().sum(dim=-1) - counts  # of all ordered pairs
    means = (products / (counts * (counts - 1)))[counts > 1]
    return {"patch_cosine": round(float(means.mean()), 3)} if len(means) else {}


def _shared(found: _Collected, settings: RetrievalSettings) -> str:
    """Return a note on captions that several images have; "" if none, or if equal scores are not ordered by chance."""
    owners: dict[str, set[int]] = {}
    for caption, owner in zip(found.captions, found.owner.tolist(), strict=True):
        owners.setdefault(caption, set()).add(owner)
    shared = sum(len(owners[caption]) > 1 for caption in found.captions)
    if not shared:
        return ""
    how = "count by their expected value (retrieval.ties)" if settings.ties == "expected" else "are taken as found"
    return f"{shared:,} of {len(found.captions):,} captions are those of other images, too; equal scores {how}"


def _record(record: Record, name: str, found: _Collected, recalls: Recalls) -> None:
    images = [found.keys[i] for i in found.owner.tolist()]  # the image of each caption
    captions = [f"{image}#{number}" for number, image in enumerate(images)]
    for way, keys, clusters in (("i2t", found.keys, found.keys), ("t2i", captions, images)):
        values = {f"r{k}": recalls.hits[way][:, i] for i, k in enumerate(KS)}
        record[f"{name}.{way}"] = Outcomes.of(keys, values, clusters)


def _collect(scorer: Scorer, card: BenchmarkCard, context: Context) -> _Collected:
    data = open_set(card, context.root)
    captions: list[str] = []
    owner: list[int] = []
    keys: list[str] = []

    encoded: list[Tensor] = []
    for images, batch in context.encoded(data, card.name, scorer):
        encoded.append(images)
        for key, own in zip(batch.keys, batch.captions, strict=True):
            if not own:
                raise UserError(f"{card.name}: image {key} has no caption")
            captions += own
            owner += [len(keys)] * len(own)
            keys.append(key)
    return _Collected(joined(encoded), captions, torch.tensor(owner, dtype=torch.int64), keys)


def _exact(
    scorer: Scorer, found: _Collected, for_texts: Texts, for_images: Texts, settings: RetrievalSettings
) -> tuple[Recalls, dict[str, Any]]:
    """Return the recalls, and for a token-wise model {"by": {ranking: recalls by it in both directions}}.

    The similarity is computed once if the prompts around captions are the same in both directions.
    """
    rank_texts = rank_images = scorer.similarity(found.images, for_texts, progress=True)
    if for_images is not for_texts:
        rank_images = scorer.similarity(found.images, for_images, progress=True)

    def by(texts_by: str, images_by: str) -> Recalls:
        return recalls(ranking(rank_texts, texts_by), ranking(rank_images, images_by), found.owner, settings.ties)

    chosen = by(settings.rank_texts_by, settings.rank_images_by)
    if not scorer.token_wise:
        return chosen, {}
    tables = {name: by(name, name).table for name in RANKINGS}
    for table in tables.values():
        del table["chance"]  # it is the same
    return chosen, {"by": tables}


@dataclass
class Recalls:
    """Recalls both ways. table: for the result file. hits: for "i2t" [images, len(KS)], for "t2i" [texts, len(KS)]."""

    table: dict[str, Any]
    hits: dict[str, Tensor]


def recalls(rank_texts: Tensor, rank_images: Tensor, owner: Tensor, ties: str = "expected") -> Recalls:
    """Return R@1, R@5, R@10 both ways, with chance and 95 % intervals over images.

    rank_texts, rank_images: [images, texts], the scores that rank texts for an image, and images for a text.
    owner: [texts] int64, the image that a text belongs to. ties: see :class:`RetrievalSettings`.
    """
    images = torch.arange(len(rank_texts))
    names, hits = [f"r{k}" for k in KS], {}
    table: dict[str, Any] = {"chance": {}, "ci95": {}}
    for way, scores, asked, found in (("i2t", rank_texts, images, owner), ("t2i", rank_images.T, owner, images)):
        hits[way] = retrieval_hits(scores, asked, found, KS, ties=ties)
        columns = dict(zip(names, hits[way].unbind(1), strict=True))
        table[way] = {name: float(column.mean()) for name, column in columns.items()}
        table["chance"][way] = dict(zip(names, retrieval_chance(asked, found, KS), strict=True))
        table["ci95"][way] = {name: list(mean_interval(column, clusters=asked)) for name, column in columns.items()}
    return Recalls(table, hits)


PROTOCOL = Protocol(
    "retrieval",
    ("retrieval",),
    run,
    RetrievalSettings,
    ReportTable(
        "Image-text retrieval (recall, %)",
        tuple(
            Column(
                f"R@{k}",
                f"{way}_r{k}",
                f"{way}.r{k}",
                f"chance.{way}.r{k}",
                f"ci95.{way}.r{k}",
                group=direction,
                outcome=f".{way}/r{k}",
                headline=k == 1,
            )
            for way, direction in WAYS.items()
            for k in KS
        ),
        published={
            "zero_shot_retrieval": "zero-shot",
            "zero_shot_retrieval_chinese": "zero-shot",
            "fine_tuned_retrieval": "fine-tuned",
        },
        by_tuning=True,
    ),
    note="A hit is any own caption among the first k, and the own image among the first k.",
    more={
        "rankings": ReportTable(
            "Retrieval by each similarity (R@1, %)",
            tuple(
                Column(
                    f"R@1 {title}",
                    f"{way}_{by}",
                    f"by.{by}.{way}.r1",
                    f"chance.{way}.r1",
                    f"by.{by}.ci95.{way}.r1",
                    group=direction,
                    similarity=by,
                )
                for way, direction in WAYS.items()
                for by, title in RANKING_TITLES.items()
            ),
            (
                "s^I is the mean over patches of the best word, s^T the mean over words of the best patch; the paper "
                "leaves open which of them ranks. The table of retrieval ranks texts by s^I and images by s^T.",
                "A pooled model has one similarity.",
            ),
        )
    },
    prepare=card_prompts,
    size="images",
    while_training=True,
    reads_prompts=True,
)
