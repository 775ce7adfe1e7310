"""Opens the data sets of cards before anything is encoded, so that one that is missing is known at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from filip.errors import UserError
from filip.eval.cards import BenchmarkCard, match_classes
from filip.eval.formats import open_set
from filip.progress import say

MISSING_SETS = ("stop", "skip")


def check_sets(
    cards: Sequence[BenchmarkCard], root: str | Path, missing: str = "stop"
) -> tuple[list[BenchmarkCard], dict[str, str]]:
    """Open each data set and match its classes; return (cards that can be evaluated, {name of another one: why not}).

    missing: "stop": UserError, one sentence for each data set that is not there or does not fit its card; "skip": a
    line on stderr for each, and the others are evaluated.
    """
    good, skipped = [], {}
    for card in cards:
        try:
            data = open_set(card, root)
            if data.classes is not None:
                match_classes(card, data.classes)
            good.append(card)
        except UserError as error:
            skipped[card.name] = str(error)
    if skipped and missing == "stop":
        if len(skipped) == 1:
            raise UserError(next(iter(skipped.values())))
        listed = "".join(f"\n  {name}: {why}" for name, why in skipped.items())
        raise UserError(f"{len(skipped)} of {len(cards)} data sets cannot be evaluated:{listed}")
    for name, why in skipped.items():
        say(f"{name}: left out: {why}")
    return good, skipped
