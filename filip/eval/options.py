"""The options that the evaluation commands share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filip.cli.command import MISSING, option
from filip.common.device import best_device
from filip.common.errors import UserError
from filip.common.progress import say
from filip.eval.cards import KINDS, BenchmarkCard, match_classes
from filip.eval.datasets import EvalSet
from filip.eval.encoders import PRECISIONS, Encoder, forms, load_encoder, name_of
from filip.eval.families import FAMILIES
from filip.eval.fit import FITS
from filip.eval.formats import open_set
from filip.eval.own_data import cards_of


@dataclass
class ModelOptions:
    """The options of commands that load one model."""

    model: str = option(MISSING, forms())
    image_size: int | None = option(None, "evaluate at this resolution instead of the model's", at_least=1)
    device: str = option("auto", "torch device; auto = a GPU where there is one")
    precision: str = option(
        "auto",
        "fp32, bf16 or fp16, for the towers and the tokens that are kept; auto = 16 bits on a CUDA device",
        choices=("auto", *PRECISIONS),
    )
    tokens: bool = option(False, "score a pooled model token-wise: every patch and word through its own projections")
    fit: str = option(
        "crop",
        "pictures that are not square: crop (their centre, as in published numbers), pad (whole, with borders)",
        choices=FITS,
    )
    trust_remote_code: bool = option(False, "run code that lies in the model's folder (mv: models)")

    def encoder(self) -> Encoder:
        """Load the model. Raises UserError if there is none."""
        return load_encoder(
            self.model,
            self.image_size,
            self.own_device(),
            precision=self.precision,
            tokens=self.tokens,
            trust_remote_code=self.trust_remote_code,
            fit=self.fit,
        )

    def own_device(self) -> str:
        """Return the device that "auto" means here."""
        return str(best_device()) if self.device == "auto" else self.device

    def run_name(self, run: str = "") -> str:
        """Return the model's name: ``run``, or its file's name without the suffix, or the name it was asked for by."""
        return run or (Path(self.model).stem if Path(self.model).exists() else self.model)


@dataclass
class DataOptions:
    """The options of commands that read benchmarks or your own data."""

    data: list[str] = option(
        MISSING, "folders, tables (CSV, JSON lines, Parquet) or benchmark cards, e.g. [cifar10,mine/]; cifar10@LAYOUT"
    )
    root: str = option(".", "folder below which the data sets of cards lie")
    missing: str = option(
        "stop",
        "a data set that is not there: stop; or skip: go on with the others, and the result says why",
        choices=("stop", "skip"),
    )

    def cards(self, kinds: Collection[str] = KINDS) -> list[BenchmarkCard]:
        """Return the benchmarks in ``data`` of these kinds.

        Raises UserError for data without any, and for a name that occurs twice, since results are kept by name.
        """
        cards = []
        for data in self.data:
            chosen = cards_of(data)
            cards += (fitting := [card for card in chosen if card.kind in kinds])
            if not fitting:
                unfit = ", ".join(f"{card.name} ({card.kind})" for card in chosen)
                raise UserError(f"data={data}: the protocols are for {', '.join(sorted(kinds))}, not for {unfit}")
        names = [card.name for card in cards]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"data: two data sets are called {twice[0]!r}, and results are kept by name; rename one")
        return cards


def result_header(options: ModelOptions, encoder: Encoder, run: str = "") -> dict[str, Any]:
    """Return a result file's entries about the model; ``run`` is the name of its row, the model's if empty."""
    return {
        "run": options.run_name(run),
        "model": options.model,
        "scorer": "token-wise" if encoder.token_wise else "pooled",
        "own_similarity": FAMILIES[encoder.family].similarity,
        "image_size": encoder.image_size,
        "precision": name_of(encoder.dtype),
        **encoder.details,
    }


def check_sets(
    cards: Sequence[BenchmarkCard], root: str | Path, missing: str = "stop"
) -> tuple[dict[str, EvalSet], dict[str, str]]:
    """Open each data set and match its classes; return ({name: the set}, {name of another one: why not}).

    missing: "stop": UserError, one sentence for each data set that is not there or does not fit its card; "skip": a
    line on stderr for each, and the others are evaluated; "quiet": the same without a line.
    """
    good, skipped = {}, {}
    for card in cards:
        try:
            data = open_set(card, root)
            if data.classes is not None:
                match_classes(card, data.classes)
            good[card.name] = data
        except UserError as error:
            skipped[card.name] = str(error)
    if skipped and missing == "stop":
        if len(skipped) == 1:
            raise UserError(next(iter(skipped.values())))
        listed = "".join(f"\n  {name}: {why}" for name, why in skipped.items())
        raise UserError(f"{len(skipped)} of {len(cards)} data sets cannot be evaluated:{listed}")
    for name, why in skipped.items() if missing == "skip" else ():
        say(f"{name}: left out: {why}")
    return good, skipped
