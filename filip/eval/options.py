"""The options that the evaluation commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filip.command import MISSING, option
from filip.errors import UserError
from filip.eval.cards import BenchmarkCard, load_cards
from filip.eval.encoders import FORMS, Encoder, load_encoder
from filip.eval.features import FeatureStore, model_key, read_shard
from filip.eval.opening import MISSING_SETS, check_sets
from filip.eval.precision import PRECISIONS, name_of
from filip.eval.scorer import Scorer, scorer_for
from filip.eval.sharing import device_of, launched

FEATURES = "folder that keeps image features, so that no image is encoded twice by a model; empty: none"
FEATURES_GB = 50.0


@dataclass
class ModelOptions:
    """Commands that load one model."""

    model: str = option(MISSING, FORMS)
    image_size: int | None = option(None, "evaluate at this resolution instead of the model's", at_least=1)
    device: str = option("auto", "torch device; auto = a GPU where there is one")
    precision: str = option(
        "auto",
        "fp32, bf16 or fp16, for the towers and the tokens that are kept; auto = 16 bits on a CUDA device",
        choices=("auto", *PRECISIONS),
    )
    tokens: bool = option(
        False, "score a pooled model token-wise: every patch and word through its own projections"
    )
    trust_remote_code: bool = option(False, "run code that lies in the model's folder (mv: models)")

    def encoder(self) -> Encoder:
        """The model. Raises UserError if there is none."""
        return load_encoder(
            self.model,
            self.image_size,
            device_of(launched()) if self.device == "auto" else self.device,
            precision=self.precision,
            tokens=self.tokens,
            trust_remote_code=self.trust_remote_code,
        )

    def scorer(self) -> Scorer:
        """The scorer of the model, shared by the processes that torchrun started. UserError if there is no model."""
        scorer = scorer_for(self.encoder())
        scorer.share = launched()
        return scorer


@dataclass
class CardOptions(ModelOptions):
    """Commands that read benchmarks and write a result file."""

    root: str = option(MISSING, "folder below which the data sets lie")
    cards: list[str] = option(MISSING, "benchmark cards, e.g. [cifar10,flickr30k] or [my/card.yaml]")
    out: str = option(MISSING, "result file (JSON)", writes="file")
    run: str = option("", "name of the run in the result; the model file's name if empty")
    loader: str | None = option(None, "layout of the cards to use instead of their default")
    missing: str = option(
        "stop",
        "a data set that is not there: stop; or skip: evaluate the others, and the result says why",
        choices=MISSING_SETS,
    )

    def load_cards(self, kind: str | None = None) -> tuple[list[BenchmarkCard], dict[str, str]]:
        """The cards, and why some of them were left out; see :func:`filip.eval.opening.check_sets`.

        kind: that they must all be of. Raises UserError before a model is loaded.
        """
        return check_sets(load_cards(self.cards, self.loader, kind), self.root, self.missing)

    def result_header(self, encoder: Encoder) -> dict[str, Any]:
        """What every result file says of the model."""
        return result_header(self, encoder, self.run)


def result_header(options: ModelOptions, encoder: Encoder, run: str = "") -> dict[str, Any]:
    """What a result file says of the model; ``run`` is the name of its row, the model's if empty."""
    own = Path(options.model).exists()
    return {
        "run": run or (Path(options.model).stem if own else options.model),
        "model": options.model,
        "scorer": "token-wise" if encoder.token_wise else "pooled",
        "image_size": encoder.image_size,
        "precision": name_of(encoder.dtype),
        **encoder.details,
    }


def store_of(
    options: ModelOptions, encoder: Encoder, folder: str, gigabytes: float, shard: str = ""
) -> FeatureStore | None:
    """The store of a model in ``folder``; None if that is empty. UserError for a part (``shard=3/8``) without one."""
    part = read_shard(shard)
    if not folder:
        if part is not None:
            raise UserError(f"shard={shard} needs features=FOLDER, where all parts are put together")
        return None
    return FeatureStore(Path(folder), model_key(options.model, encoder), int(gigabytes * 1e9), part)


def skipped_entry(skipped: dict[str, str]) -> dict[str, Any]:
    """What a result file says of the benchmarks that were left out (``missing=skip``): why, by name."""
    return {"skipped": skipped} if skipped else {}


@dataclass
class EvalOptions(CardOptions):
    """Commands that go through whole test sets in batches."""

    batch_size: int = option(64, "images at a time", at_least=1)
    workers: int = option(0, "processes that decode images", at_least=0)
    features: str = option("", FEATURES, writes="folder")
    features_gb: float = option(
        FEATURES_GB, "what that folder may hold; the sets used longest ago are removed", at_least=0
    )

    def store(self, encoder: Encoder) -> FeatureStore | None:
        """Where image features of the model are kept, if anywhere."""
        return store_of(self, encoder, self.features, self.features_gb)

    def scorer(self) -> Scorer:
        scorer = super().scorer()
        scorer.store = self.store(scorer.encoder)
        return scorer
