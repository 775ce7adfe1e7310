"""Caption selection.

Each image comes with a few captions of which one is true and the others differ from it in a detail: a name, or the
relation of two things. A model is right where it gives the true one the highest similarity. Which similarity that
is makes a difference to a token-wise model, so all three are reported: s^I (image), s^T (text) and their mean.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from filip.common.errors import UserError
from filip.eval.cards import BenchmarkCard
from filip.eval.encode_set import Context, CutTexts, encoded_batches, size_note
from filip.eval.encoders import Encoder
from filip.eval.formats import open_set
from filip.eval.metrics import mean_interval
from filip.eval.outcomes import Outcomes, Record
from filip.eval.protocols import Column, NoSettings, Numbers, Protocol, ReportTable
from filip.eval.scorer import RANKING_TITLES, RANKINGS, Scorer, ranking

WINOGROUND = ("text", "image", "group", "match")


def run(encoder: Encoder, card: BenchmarkCard, settings: NoSettings, context: Context, record: Record) -> Numbers:
    return select(context.scorer(encoder), card, context, record)


def select(
    scorer: Scorer, card: BenchmarkCard, context: Context | None = None, record: Record | None = None
) -> dict[str, Any]:
    """Measure one benchmark (fractions, not percentages), by each ranking.

    The outcome of each image is put into ``record`` under the card's name. In Winoground's layout it is the outcome of
    each example: ``text``, ``image_`` and ``group_`` before the ranking's name. Raises UserError if the data set is
    missing or an image has no false caption.
    """
    context = context or Context()
    data = open_set(card, context.root)
    parts: dict[str, list[list[float]]] = {by: [] for by in RANKINGS}
    keys: list[str] = []
    clusters: list[str] = []
    categories: list[str] = []
    truths: list[int] = []
    cut = CutTexts(scorer)
    for images, batch in encoded_batches(context.source(data, card.name), scorer):
        sizes = [len(captions) for captions in batch.captions]
        for key, count, true in zip(batch.keys, sizes, batch.truths, strict=True):
            if count <= true:
                raise UserError(f"{card.name}: image {key} has {count} captions; there is nothing to select")
        captions = [caption for own_captions in batch.captions for caption in own_captions]
        cut.count(captions)
        texts = scorer.encode_texts(captions)
        similarity = scorer.similarity(images, texts)
        for by in RANKINGS:
            scores = ranking(similarity, by)  # [images, captions of all images one after the other]
            parts[by] += [
                row[end - n : end].tolist() for row, n, end in zip(scores, sizes, np.cumsum(sizes), strict=True)
            ]
        keys += batch.keys
        clusters += batch.clusters
        categories += batch.categories
        truths += batch.truths
    common: dict[str, Any] = {"split": card.split, **cut.result()}
    if card.loader == "winoground":
        return common | _winoground(card, parts, clusters, record)
    common["note"] = size_note(card, len(keys))
    hits = {by: np.array([chosen(s, t) for s, t in zip(values, truths, strict=True)]) for by, values in parts.items()}
    if record is not None:
        record[card.name] = Outcomes.of(keys, hits, clusters)
    rates = {by: _rate(right, clusters) for by, right in hits.items()}
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


def _rate(right: np.ndarray, clusters: Sequence[str]) -> dict[str, Any]:
    return {"value": float(right.mean()), "ci95": list(mean_interval(right, clusters=np.asarray(clusters)))}


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


def _winoground(
    card: BenchmarkCard, parts: dict[str, list[list[float]]], examples: list[str], record: Record | None
) -> dict[str, Any]:
    """Score as Thrush et al. 2022: ``text`` (each image prefers its caption), ``image`` (each caption its image),
    ``group``; and as Zhu et al. 2025 (arXiv 2510.07632): ``match`` (the right pairing of both has the highest sum).

    An example of which an image could not be read is left out.
    """
    pairs = [n for n in range(len(examples) - 1) if examples[n] == examples[n + 1]]
    if not pairs:
        raise UserError(f"{card.name}: no example has both of its images")
    chance = dict(zip(WINOGROUND, (1 / 4, 1 / 4, 1 / 6, 1 / 2), strict=True))
    outcomes: dict[str, list[float]] = {}
    result: dict[str, Any] = {"n": len(pairs), "chance": chance["group"], "note": size_note(card, len(pairs))}
    for by, scores in parts.items():
        right = np.array([winoground_outcome(scores[n], scores[n + 1]) for n in pairs])
        columns = dict(zip(chance, right.T, strict=True))
        outcomes |= {f"{measure}_{by}": list(values) for measure, values in columns.items()}
        names = [examples[n] for n in pairs]
        result[by] = {m: _rate(values, names) | {"chance": chance[m]} for m, values in columns.items()}
    if record is not None:
        record[card.name] = Outcomes.of([examples[n] for n in pairs], outcomes)
    return result


def winoground_outcome(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float, float]:
    """Return (text, image, group, match) of an example from each image's scores of its caption and of the other one.

    Ties count by their expected value over the orders of equal scores.
    """
    scores = [s if math.isfinite(s) else -math.inf for s in (*first, *second)]  # c0 i0, c1 i0, c1 i1, c0 i1
    outcomes = []
    for order in itertools.permutations(range(4)):  # from best to worst
        if any(scores[a] < scores[b] for a, b in itertools.pairwise(order)):
            continue
        rank = {number: place for place, number in enumerate(order)}
        text = rank[0] < rank[1] and rank[2] < rank[3]
        image = rank[0] < rank[3] and rank[2] < rank[1]
        outcomes.append((text, image, text and image))
    text, image, group = np.mean(outcomes, axis=0).tolist()
    right, wrong = scores[0] + scores[2], scores[1] + scores[3]
    return text, image, group, 0.5 if right == wrong else float(right > wrong)


def _columns(
    title: str, key: str, value: str, only: Callable[[BenchmarkCard], bool], outcome: str = ""
) -> Iterator[Column]:
    """Yield a column for each similarity. value: where the number is below it; "": it is a mean over categories."""
    for by, name in RANKING_TITLES.items():
        place = f"{by}{value}" if value else f"by_category.mean.{by}"
        chance = "chance" if value == ".value" else place.replace("value", "chance") if value else ""
        interval = place.replace("value", "ci95") if value else ""
        first = by == "mean" and title in ("", "mean of categories", "group")
        said = f"{title} {name}".strip()
        yield Column(
            said, key.format(by=by), place, chance, interval,
            outcome=outcome.format(by=by), only=only, headline=first, similarity=by,
        )  # fmt: skip


PROTOCOL = Protocol(
    "selection",
    ("selection",),
    run,
    NoSettings,
    ReportTable(
        "Caption selection (accuracy, %)",
        (
            *_columns("", "{by}", ".value", only=lambda card: card.loader != "winoground", outcome="/{by}"),
            *_columns("mean of categories", "macro_{by}", "", only=lambda card: "category" in card.layout.options),
            *(
                column
                for measure in WINOGROUND
                for column in _columns(
                    measure,
                    f"{measure}_{{by}}",
                    f".{measure}.value",
                    only=lambda card: card.loader == "winoground",
                    outcome=f"/{measure}_{{by}}",
                )
            ),
        ),
        ("A pooled model has one similarity only.",),
        card_notes=True,
    ),
    note="The true caption has the highest similarity to its image.",
    in_parts=True,
)
