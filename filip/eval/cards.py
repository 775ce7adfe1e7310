"""Benchmark cards: one YAML file describes a benchmark.

    name: oxford_pets
    title: Oxford-IIIT Pets
    kind: classification            # or retrieval, selection, pointing, segmentation
    metric: mean_per_class          # in the tables: top1, mean_per_class; recall; miou; else accuracy
    loader: webdataset              # the layout used unless the command line names another
    layouts:
      webdataset: {path: wds_vtab-pets, split: test, size: 3669}
    prompts: oxford_pets            # key in the prompt file; without one "a photo of a {c}."
    published: oxford_pets          # what eval/paper_tables.yaml calls it; without it no published row is shown for it
    classes: {american_bulldog: American Bulldog, ...}   # raw class -> name in prompts; or: from the data set

To add a benchmark is to add a card.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from filip import resources
from filip.cli.option import read_settings
from filip.common.errors import UserError
from filip.eval.benchmark import HAVE_CAPTIONS, KINDS, BenchmarkCard
from filip.eval.formats import FORMATS

METRIC_TITLES = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}  # in print; others as they are
FROM_DATA = "from the data set"


def load_cards(paths: list[str]) -> list[BenchmarkCard]:
    """Load several cards. UserError for a name that occurs twice, since results are keyed by name.

    ``NAME@LAYOUT`` chooses a card's layout.
    """
    cards = [load_card(path.partition("@")[0], path.partition("@")[2] or None) for path in paths]
    twice = [name for name, times in Counter(c.name for c in cards).items() if times > 1]
    if twice:
        raise UserError(f"cards given twice: {', '.join(twice)}; leave one of each")
    return cards


def load_card(path: str | Path, loader: str | None = None) -> BenchmarkCard:
    """Read a benchmark card: a name (``cifar10`` is ``eval/cifar10.yaml``) or a path; see :mod:`filip.resources`.

    loader: choose this layout of the card instead of its default. Raises UserError for a file that is not
    there, unknown or missing keys, and values that do not fit, naming the key and the file.
    """
    file = resources.find("benchmark", path)
    raw = resources.read_yaml(file)
    if not isinstance(raw, dict):
        raise UserError(f"{file} should hold `key: value` lines, see any other card in eval/")
    try:
        return _card(raw, loader)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def _card(raw: dict[str, Any], loader: str | None) -> BenchmarkCard:
    for key in ("loader", "layouts"):
        if key not in raw:
            raise UserError(f"the key {key!r} is missing")
    layout = _layout(raw.pop("layouts"), loader or raw["loader"])
    del raw["loader"]
    classes = raw.pop("classes", None)
    card = read_settings(BenchmarkCard, {**raw, "layout": layout})
    if card.metric not in KINDS[card.kind]:
        raise UserError(f"metric={card.metric} must be {' or '.join(KINDS[card.kind])} for {card.kind}")
    if card.kind == "classification" and classes is None:
        raise UserError(f"classes is missing; give {{raw: prompt name}} or `{FROM_DATA}`")
    if card.kind in HAVE_CAPTIONS or classes in (None, FROM_DATA):
        return replace(card, classes=None)
    if not isinstance(classes, dict):
        raise UserError(f"classes should be {{raw class: prompt name}} or `{FROM_DATA}`")
    return replace(card, classes={str(raw): str(name) for raw, name in classes.items()})


def _layout(layouts: Any, loader: str) -> dict[str, Any]:
    if not isinstance(layouts, dict) or loader not in layouts:
        has = ", ".join(layouts) if isinstance(layouts, dict) else repr(layouts)
        raise UserError(f"no layout {loader!r}; the card's layouts are {has}")
    if loader not in FORMATS:
        raise UserError(f"unknown loader {loader!r}; there are {', '.join(FORMATS)}")
    options = dict(layouts[loader] or {})
    if options.get("split") is None:
        raise UserError(f"layouts.{loader}.split is missing (the folder or split name, e.g. test)")
    common = {key: options.pop(key) for key in ("path", "split", "size") if key in options}
    return {"loader": loader, **common, "options": options}


def match_classes(card: BenchmarkCard, names: list[str]) -> list[str]:
    """Return the prompt name of each class of the data set, in the data set's order.

    names: the data set's class names; position = label. They are matched with the card's raw names or, for
    a copy that was exported with prompt names, with those; spaces, slashes and capitals do not matter.
    Raises UserError with the difference if neither set equals the data set's, and if the card's metric makes no
    sense with so few classes.
    """
    if card.metric == "top5" and len(names) <= 5:
        raise UserError(f"card {card.name}: metric top5 needs more than 5 classes, the data set has {len(names)}")
    if card.classes is None:
        return list(names)
    classes = card.classes
    canonical = [_canonical(name) for name in names]
    raw = {_canonical(key): name for key, name in classes.items()}
    if len(raw) != len(classes):
        raise UserError(f"card {card.name}: two raw class names differ only in capitals or punctuation")
    if set(canonical) == set(raw) and len(canonical) == len(raw):
        return [raw[name] for name in canonical]
    prompt_names = list(classes.values())
    if Counter(canonical) == Counter(_canonical(name) for name in prompt_names):
        # Names may occur twice (ImageNet has two missiles): equal names are interchangeable.
        by_name = {_canonical(name): name for name in prompt_names}
        return [by_name[name] for name in canonical]
    if card.classes_of:
        theirs = load_card(card.classes_of).classes or {}
        if canonical == [_canonical(name) for name in theirs.values()]:
            return prompt_names
    only_data = sorted(name for name in names if _canonical(name) not in raw)
    only_card = sorted(key for key in classes if _canonical(key) not in set(canonical))
    raise UserError(
        f"the classes of {card.name} ({len(names)} in the data set, {len(classes)} in its card) differ. "
        f"Only in the data set: {_some(only_data)}. Only in the card: {_some(only_card)}. "
        "Correct `classes` in the card or use the matching copy of the data set"
    )


def _canonical(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_")


def _some(names: list[str], limit: int = 8) -> str:
    shown = ", ".join(names[:limit]) or "none"
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")
