"""Make false captions of a scene: with a wrong name, with the relation of two things reversed, and half-truths.

A false caption must be false. A name may replace another only if no word of it belongs to the labels or keywords
of what is shown, nor vice versa, and if it comes from another subgroup of CLDR than all that is shown:
"bird" is never offered as a wrong name for an eagle.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from filip_demo.catalogue import Emoji
from filip_demo.scene_captions import fill, relation_of, relation_sentence
from filip_demo.scenes import Scene

WRONG_NAMES = 4  # false captions in addition to the true one
LIST = "{list}"
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
FUNCTION_WORDS = frozenset(["a", "and", "in", "of", "on", "the", "to", "with", "without"])


def name_choices(scene: Scene, emoji: Mapping[str, Emoji], names: Sequence[str]) -> list[str]:
    """Return the true list of the things, then WRONG_NAMES lists with one wrong name each; [] if there are too few.

    emoji: by concept. names: the concepts that may be named wrongly.
    """
    draw = random.Random(f"wrong names {scene.caption} {scene.index}")
    order = draw.sample([thing.label for thing in scene.things], len(scene.things))
    wrong = _wrong_labels(draw, scene, emoji, names, WRONG_NAMES)
    if len(wrong) < WRONG_NAMES:
        return []
    place = draw.randrange(len(order))
    lists = [[*order[:place], label, *order[place + 1 :]] for label in [order[place], *wrong]]
    return [fill(LIST, each) for each in lists]


def _wrong_labels(
    draw: random.Random, scene: Scene, emoji: Mapping[str, Emoji], names: Sequence[str], count: int
) -> list[str]:
    """Draw up to ``count`` labels of ``names`` that no thing of the scene may be called by."""
    shown = [emoji[thing.concept] for thing in scene.things]
    wrong: list[str] = []
    for concept in draw.sample(names, len(names)):
        label = emoji[concept].label
        if label not in wrong and not any(may_be_called(other, emoji[concept]) for other in shown):
            wrong.append(label)
        if len(wrong) == count:
            break
    return wrong


def may_be_called(shown: Emoji, other: Emoji) -> bool:
    """Return whether a picture of ``shown`` might be said to show ``other``."""
    own, name = _words(shown.label), _words(other.label)
    known_as = own.union(*map(_words, shown.tags))
    other_known_as = name.union(*map(_words, other.tags))
    return shown.subgroup == other.subgroup or bool(name & known_as) or bool(own & other_known_as)


def relation_choices(scene: Scene) -> list[str]:
    """Return a true relation of two things, then the same with the two exchanged; [] if no relation is clear."""
    (first, second, *rest), relation = _related("wrong relation", scene)
    if relation is None:
        return []
    return [relation_sentence(first, relation, second, rest), relation_sentence(second, relation, first, rest)]


def half_name_choices(scene: Scene, emoji: Mapping[str, Emoji], names: Sequence[str]) -> list[str]:
    """Return a true list of all things but one, then the same with one wrong name added; [] if there is none.

    The second is a half-truth (Kargi et al., 2026): longer, and mostly right.
    """
    draw = random.Random(f"half-truth {scene.caption} {scene.index}")
    true = draw.sample([thing.label for thing in scene.things], len(scene.things) - 1)
    wrong = _wrong_labels(draw, scene, emoji, names, 1)
    return [fill(LIST, true), fill(LIST, [*true, *wrong])] if true and wrong else []


def half_relation_choices(scene: Scene) -> list[str]:
    """Return two things of the scene, then the two with a relation that is wrong; [] if no relation is clear."""
    (first, second, *_), relation = _related("half-truth, relation", scene)
    if relation is None:
        return []
    return [fill(LIST, [first, second]), relation_sentence(first, OPPOSITE[relation], second, [])]


def _related(purpose: str, scene: Scene) -> tuple[list[str], str | None]:
    """Return the labels of the things in a drawn order, and the relation of the first two, if it is clear."""
    draw = random.Random(f"{purpose} {scene.caption} {scene.index}")
    things = draw.sample(scene.things, len(scene.things))
    return [thing.label for thing in things], relation_of(things[0], things[1], draw)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.lower().replace("-", " ").split()) - FUNCTION_WORDS
