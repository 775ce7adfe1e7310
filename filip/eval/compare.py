"""Compare models on details of captions: ``filip eval compare models=[filip.safetensors,hf:OWNER/NAME] root=DIR``.

Evaluates each model as ``filip eval`` does, and keeps its results there. A line is a model by one similarity: s^I, s^T
or the model's own, which is marked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import filter as matching
from statistics import fmean
from typing import Any, NamedTuple

from filip import resources
from filip.command import MISSING, option, run_command
from filip.errors import UserError
from filip.eval.__main__ import Evaluation, model_name, results_of
from filip.eval.cards import BenchmarkCard, load_card
from filip.eval.options import check_sets
from filip.eval.protocols import shown, value_at
from filip.eval.scorer import RANKINGS
from filip.eval.table import FORMS
from filip.progress import say
from filip.table_writer import Grid, Head, Line, Shown, render

PROTOCOLS = ("selection", "scene_pointing")
NAMES = {"image": "s^I", "text": "s^T", "mean": "mean of both"}
COLUMNS = (  # title, cards, and where a number is: below each similarity, or of all
    ("SugarCrepe", "sugar_crepe_[!p]*", "{by}.value"),
    ("SugarCrepe++", "sugar_crepe_pp_*", "{by}.value"),
    ("ARO relations", "aro_relation", "by_category.mean.{by}"),
    ("ARO attributes", "aro_attribution", "by_category.mean.{by}"),
    ("ARO order", "aro_*_order", "{by}.value"),
    *((f"Winoground {measure}", "winoground", f"{{by}}.{measure}.value") for measure in ("text", "image", "group")),
    ("pointing", "*pointing*", "value"),
)
NOTES = (
    "*: the model's own similarity: the cosine of a pooled model, of a late-interaction retriever s^T (the mean over a "
    "query's tokens), of a FILIP the mean of s^I and s^T.",
    "Half-truths, balanced: the mean of two accuracies, where the shorter caption is true and where the longer one is.",
)


@dataclass
class CompareOptions:
    models: list[str] = option(MISSING, "models as `filip eval model=` takes them")
    data: list[str] = option([], "benchmark cards of captions and pointing; empty: all of ours that are below root")
    root: str = option(".", "folder below which the data sets of cards lie")
    out: str = option("results/eval", "folder for the results, of each model in a folder of its name", writes="folder")
    form: str = option("text", "text, markdown or csv", choices=FORMS)
    device: str = option("auto", "torch device; auto = a GPU where there is one")
    trust_remote_code: bool = option(False, "run code that lies in a model's folder (mv: models)")


class Compared(NamedTuple):
    """A column: the mean over its cards of the number at ``path``, keys joined by dots."""

    title: str
    cards: tuple[str, ...]
    path: str


def main(config: CompareOptions) -> None:
    """Compare models on half-truths, SugarCrepe, ARO, Winoground and pointing, by each similarity, in one table."""
    columns = list(compared(_cards(config)))
    data = list(dict.fromkeys(card for column in columns for card in column.cards))
    lines: list[Line] = []
    records: list[dict[str, Any]] = []
    chances: list[dict[str, None]] = [{} for _ in columns]  # of pointing they differ by a model's patches
    notes = [f"{c.title}: {', '.join(c.cards)}" for c in columns if len(c.cards) > 1]
    for model in config.models:
        one = Evaluation(model=model, data=data, root=config.root, protocols=list(PROTOCOLS))
        one.device, one.trust_remote_code = config.device, config.trust_remote_code
        one.out = f"{config.out}/{model_name(one)}"
        results = results_of(one)
        numbers = {name: found for result in results for name, found in result["benchmarks"].items()}
        own = "mean" if results[0]["scorer"] == "pooled" else results[0]["own_similarity"]
        for by in (
            ["mean"] if results[0]["scorer"] == "pooled" else [by for by in RANKINGS if by in ("image", "text", own)]
        ):
            paths = [column.path.format(by=by) if by == own or "{by}" in column.path else "" for column in columns]
            values = [_mean(numbers, column, path) for column, path in zip(columns, paths, strict=True)]
            name = "" if results[0]["scorer"] == "pooled" else f", {NAMES[by]}"
            cells = [Shown("–" if value is None else shown(value, "%")) for value in values]
            lines.append(Line(f"{one.run_name()}{name}{' *' if by == own else ''}", cells))
            for number, (column, path, value) in enumerate(zip(columns, paths, values, strict=True)):
                place = f"{path.rpartition('.')[0]}.chance"  # Winoground's measures differ in it
                chance = _mean(numbers, column, place) or _mean(numbers, column, "chance")
                chances[number] |= {} if chance is None else {shown(chance, "%"): None}
                about = {"model": model, "by": by, "own": by == own, **column._asdict()}
                records.append(about | {"value": value, "chance": chance})
    heads = [Head(column.title) for column in columns]
    lines.append(Line("chance", [Shown(" / ".join(of_column) or "–") for of_column in chances], kind="common"))
    print(
        render(
            Grid(heads, lines, notes=[*NOTES, *notes], corner="accuracy, %", whole=True, records=records), config.form
        )
    )


def compared(cards: Sequence[BenchmarkCard]) -> Iterator[Compared]:
    """Yield the columns that some cards fill. Half-truths are balanced by the card of whole truths, if it is there."""
    names = {card.name: card for card in cards}
    for name, card in names.items():
        if "half_" in name:
            control = name.replace("half_", "whole_")
            members, how = ((name, control), "balanced") if control in names else ((name,), "not balanced")
            yield Compared(f"{card.title}, {how}", members, "{by}.value")
    for title, pattern, path in COLUMNS:
        if found := matching(names, pattern):
            yield Compared(title, tuple(found), path)


def _cards(config: CompareOptions) -> list[BenchmarkCard]:
    """Return the cards to compare on. Raises UserError if none of ours is there, or one that was named is not."""
    cards = [load_card(name) for name in config.data or resources.names("benchmark")]
    names = {name for column in compared(cards) for name in column.cards}
    fitting = [card for card in cards if card.kind in ("selection", "pointing") and card.name in names]
    if config.data and (others := [card.name for card in cards if card not in fitting]):
        raise UserError(f"data={','.join(others)}: the table has no column for that; `filip eval data=` evaluates it")
    there, missing = check_sets(fitting, config.root, "stop" if config.data else "quiet")
    if not there:
        some = ", ".join(list(missing)[:4])
        raise UserError(f"root={config.root} has no set of captions ({some}, …): `filip eval fetch` gets some of them")
    if missing:
        say(f"left out: {', '.join(missing)} (data=[{next(iter(missing))}] tells why)")
    return there


def _mean(numbers: dict[str, Any], column: Compared, path: str) -> float | None:
    """Return the mean of the numbers at a path over a column's cards; None if one of them has none."""
    values = [value_at(numbers.get(card, {}), path) for card in column.cards]
    return None if None in values else fmean(values)


if __name__ == "__main__":
    run_command(main, CompareOptions, words=())
