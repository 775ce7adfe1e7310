"""Caption selection.

Each image comes with a few captions of which one is true and the others differ from it in a detail: a name, or the
relation of two things. A model is right where it gives the true one the highest similarity. Which similarity that
is makes a difference to a token-wise model, so all three are reported: s^I (image), s^T (text) and their mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from filip.common.errors import UserError
from filip.eval.cards import BenchmarkCard
from filip.eval.encode_set import Context, CutTexts, size_note
from filip.eval.encoders import Encoder
from filip.eval.formats import open_set
from filip.eval.metrics import mean_interval
from filip.eval.outcomes import Outcomes, Record
from filip.eval.protocols import Column, NoSettings, Numbers, Protocol, ReportTable
from filip.eval.scorer import RANKING_TITLES, RANKINGS, ranking


def run(encoder: Encoder, card: BenchmarkCard, settings: NoSettings, context: Context, record: Record) -> Numbers:
    """Measure one benchmark (fractions, not percentages), by each ranking.

    The outcome of each image is put into ``record`` under the card's name. Raises UserError if the data set is missing
    or an image has no false caption.
    """
    scorer = context.scorer(encoder)
    data = open_set(card, context.root)
    parts: dict[str, list[list[float]]] = {by: [] for by in RANKINGS}
    keys: list[str] = []
    clusters: list[str] = []
    categories: list[str] = []
    truths: list[int] = []
    cut = CutTexts(scorer)
    for images, batch in context.encoded(data, card.name, scorer):
        sizes = [len(captions) for captions in batch.captions]
        for key, count, true in zip(batch.keys, sizes, batch.truths, strict=True):
            if count <= true:
                raise UserError(f"{card.name}: image {key} has {count} captions; there is nothing to select")
        captions = [caption for own_captions in batch.captions for caption in own_captions]
        cut.count(captions)
        texts = scorer.encode_texts(captions)
        similarity, ends = scorer.similarity(images, texts), np.cumsum(sizes)
        for by in RANKINGS:
            scores = ranking(similarity, by)  # [images, captions of all images one after the other]
            parts[by] += [row[end - n : end].tolist() for row, n, end in zip(scores, sizes, ends, strict=True)]
        keys += batch.keys
        clusters += batch.clusters
        categories += batch.categories
        truths += batch.truths
    common: dict[str, Any] = {"split": card.split, **cut.result(), "note": size_note(card, len(keys))}
    hits = {by: np.array([chosen(s, t) for s, t in zip(values, truths, strict=True)]) for by, values in parts.items()}
    record[card.name] = Outcomes.of(keys, hits, clusters)
    rates = {
        by: {"value": float(right.mean()), "ci95": list(mean_interval(right, clusters=np.asarray(clusters)))}
        for by, right in hits.items()
    }
    counts = [len(scores) for scores in parts[RANKINGS[0]]]
    chance = float(np.mean([1 / math.comb(n, t) for n, t in zip(counts, truths, strict=True)]))
    result = {"n": len(keys), "chance": chance, **common, **rates}
    return result | ({"by_category": _by_category(hits, categories, card)} if any(categories) else {})


def chosen(scores: Sequence[float], truths: int = 1) -> float:
    """Return whether all of the first ``truths`` scores are above all others; ties count by their expected value.

    Scores that are not finite rank last. Of t true and f false ones that share the decisive score, all orders are
    equally likely, and one in C(t + f, t) is right.
    """
    finite = [score if math.isfinite(score) else -math.inf for score in scores]
    worst, best = min(finite[:truths]), max(finite[truths:])
    if worst != best:
        return float(worst > best)
    tied_true, tied_false = finite[:truths].count(worst), finite[truths:].count(best)
    return 1 / math.comb(tied_true + tied_false, tied_true)


def _by_category(hits: dict[str, np.ndarray], categories: list[str], card: BenchmarkCard) -> dict[str, Any]:
    """Return each category's accuracy and, by each ranking, the mean over categories: what ARO's authors print.

    A category counts in that mean if it has the card's ``category_least`` rows and is not in ``category_without``.
    """
    names = np.asarray(categories)
    table = {
        name: {"n": int((names == name).sum())} | {by: float(right[names == name].mean()) for by, right in hits.items()}
        for name in sorted(set(categories))
    }
    options = card.layout.options
    least, without = int(options.get("category_least", 1)), set(options.get("category_without", ()))
    counted = [row for name, row in table.items() if row["n"] >= least and name not in without]
    means: dict[str, Any] = {"reason": "no category has enough rows"}
    if counted:
        means = {by: float(np.mean([row[by] for row in counted])) for by in hits}
    return {"mean": means, "categories": len(counted), "of": table}


def _columns(
    title: str,
    key: str,
    place: str,
    chance: str = "",
    interval: str = "",
    outcome: str = "",
    only: Callable[[BenchmarkCard], bool] | None = None,
) -> Iterator[Column]:
    """Yield a column for each similarity. place, chance, interval: where the numbers are, with ``{by}``."""
    for by, name in RANKING_TITLES.items():
        yield Column(
            f"{title} {name}".strip(), key.format(by=by), place.format(by=by), chance.format(by=by),
            interval.format(by=by), outcome=outcome.format(by=by), only=only, headline=by == "mean", similarity=by,
        )  # fmt: skip


PROTOCOL = Protocol(
    "selection",
    ("selection",),
    run,
    NoSettings,
    ReportTable(
        "Caption selection (accuracy, %)",
        (
            *_columns("", "{by}", "{by}.value", "chance", "{by}.ci95", "/{by}"),
            *_columns(
                "mean of categories",
                "macro_{by}",
                "by_category.mean.{by}",
                only=lambda card: "category" in card.layout.options,
            ),
        ),
        ("A pooled model has one similarity only.",),
        card_notes=True,
    ),
    note="The true caption has the highest similarity to its image.",
    while_training=True,
)
