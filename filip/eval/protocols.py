"""The protocols as functions of a loaded model and one card: what a single command runs over many data sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from filip.eval import linear_probe, retrieval, scene_pointing, segmentation, selection, zero_shot
from filip.eval.cards import BenchmarkCard
from filip.eval.encoders import Encoder
from filip.eval.features import FeatureStore
from filip.eval.formats import open_set
from filip.eval.outcomes import Record
from filip.eval.prompts import card_ensemble
from filip.eval.scorer import Scorer, scorer_for


@dataclass(frozen=True)
class Settings:
    """What the protocols are told. prompts, ensemble: as for ``filip eval zero_shot``."""

    root: str = "."
    prompts: str = "eval/prompts.yaml"
    ensemble: str = "score"
    batch_size: int = 64
    workers: int = 0
    store: FeatureStore | None = None  # of the image features

    def scorer(self, encoder: Encoder) -> Scorer:
        scorer = scorer_for(encoder)
        scorer.store = self.store
        return scorer


@dataclass(frozen=True)
class Protocol:
    """kind: of the cards that it is for. key: where its result file has the benchmarks."""

    kind: str
    key: str
    run: Callable[[Encoder, BenchmarkCard, Settings, Record], dict[str, Any]]


def _zero_shot(encoder: Encoder, card: BenchmarkCard, settings: Settings, record: Record) -> dict[str, Any]:
    return zero_shot.zero_shot_task(
        settings.scorer(encoder),
        card,
        settings.root,
        card_ensemble(settings.prompts, card.prompts),
        settings.ensemble,
        settings.batch_size,
        settings.workers,
        record,
    )


def _linear_probe(
    encoder: Encoder, card: BenchmarkCard, settings: Settings, record: Record
) -> dict[str, Any]:
    config = linear_probe.LinearProbe(
        root=settings.root,
        batch_size=settings.batch_size,
        workers=settings.workers,
        model="",
        cards=[],
        out="",
    )
    return linear_probe.probe(encoder, card, config, record, settings.store)


def _retrieval(encoder: Encoder, card: BenchmarkCard, settings: Settings, record: Record) -> dict[str, Any]:
    config = retrieval.Retrieval(
        root=settings.root,
        batch_size=settings.batch_size,
        workers=settings.workers,
        model="",
        cards=[],
        out="",
    )
    # A prompt with {c} is for classes; captions are ranked as their card says.
    if "{c}" not in settings.prompts:
        config.prompts = settings.prompts
    prompts = retrieval.card_prompts(card, config)
    return retrieval.retrieval_benchmark(
        settings.scorer(encoder), card, settings.root, prompts, config, record
    )


def _selection(encoder: Encoder, card: BenchmarkCard, settings: Settings, record: Record) -> dict[str, Any]:
    return selection.select(
        settings.scorer(encoder), card, settings.root, settings.batch_size, settings.workers, record
    )


def _scene_pointing(
    encoder: Encoder, card: BenchmarkCard, settings: Settings, record: Record
) -> dict[str, Any]:
    return scene_pointing.measure(encoder, card, open_set(card, settings.root), record)


def _segmentation(
    encoder: Encoder, card: BenchmarkCard, settings: Settings, record: Record
) -> dict[str, Any]:
    ensemble = card_ensemble(settings.prompts, card.prompts)
    return segmentation.segment(encoder, card, settings.root, ensemble, record)


PROTOCOLS = {
    "zero_shot": Protocol("classification", "tasks", _zero_shot),
    "linear_probe": Protocol("classification", "tasks", _linear_probe),
    "retrieval": Protocol("retrieval", "benchmarks", _retrieval),
    "selection": Protocol("selection", "benchmarks", _selection),
    "scene_pointing": Protocol("pointing", "benchmarks", _scene_pointing),
    "segmentation": Protocol("segmentation", "benchmarks", _segmentation),
}
UNASKED = tuple(name for name in PROTOCOLS if name != "linear_probe")  # a probe trains: only on request
IN_PARTS = ("zero_shot", "linear_probe", "retrieval", "selection")  # whose images several jobs can share
