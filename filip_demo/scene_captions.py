"""Captions of scenes: sentences that name each thing once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

# {0} … are names with an article ("a tulip"), {names} the plain names separated by commas, {list} them all with
# articles and an "and" before the last. The order of the names is random and independent of the places of the things.
TEMPLATES: dict[int, list[str]] = {
    1: ["{0}", "{names}", "a picture of {0}", "there is {0} here", "here we see {0}"],
    2: ["{list}", "{names}", "a picture of {list}", "{0} with {1}", "{0} next to {1}", "here we see {list}"],
    3: [
        "{list}",
        "{names}",
        "a picture of {list}",
        "{0} with {1} and {2}",
        "{0} and {1} next to {2}",
        "here we see {list}",
    ],
    4: [
        "{list}",
        "{names}",
        "a picture of {list}",
        "{0} with {1}, {2} and {3}",
        "{0} and {1} next to {2} and {3}",
        "here we see {list}",
    ],
}
MORE = ["{list}", "{names}", "a picture of {list}", "here we see {list}"]  # for any number of things
RELATION_SHARE = 0.2  # share of the captions of two or more things with the place of one thing relative to another


class Placed(Protocol):
    """A named thing at a place."""

    @property
    def label(self) -> str: ...

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Return left, top, right, bottom."""


def caption(draw: random.Random, things: Sequence[Placed]) -> str:
    """Return a sentence that names each thing once, in random order."""
    order = draw.sample(list(things), len(things))
    if len(things) > 1 and draw.random() < RELATION_SHARE:
        relation = relation_of(order[0], order[1], draw)
        if relation is not None:  # e.g. ``a tulip left of a fish, with a bus``
            first, second, *rest = (thing.label for thing in order)
            return relation_sentence(first, relation, second, rest)
    return fill(draw.choice(TEMPLATES.get(len(things), MORE)), [thing.label for thing in order])


def fill(template: str, names: Sequence[str]) -> str:
    with_article = [article(name) for name in names]
    listed = " and ".join([part for part in [", ".join(with_article[:-1]), with_article[-1]] if part])
    return template.format(*with_article, names=", ".join(names), list=listed)


def relation_sentence(first: str, relation: str, second: str, others: Sequence[str]) -> str:
    sentence = f"{article(first)} {relation} {article(second)}"
    return f"{sentence}, with {fill('{list}', others)}" if others else sentence


def relation_of(first: Placed, second: Placed, draw: random.Random) -> str | None:
    """Return where the first is, seen from the second: a relation that holds for their whole boxes, or None."""
    (left, top, right, bottom), (l2, t2, r2, b2) = first.box, second.box
    true = [
        name
        for name, holds in (
            ("left of", right <= l2),
            ("right of", left >= r2),
            ("above", bottom <= t2),
            ("below", top >= b2),
        )
        if holds
    ]
    return draw.choice(true) if true else None


def article(name: str) -> str:
    """Return e.g. ``a tulip`` or ``an onion``; plurals and proper names get no article."""
    last = name.split()[-1]
    plural = last.endswith("s") and not last.endswith(("ss", "us"))
    if plural or name[0].isupper() or name[0].isdigit():
        return name
    return f"{'an' if name[0] in 'aeiou' and not name.startswith(('uni', 'ewe', 'euro')) else 'a'} {name}"
