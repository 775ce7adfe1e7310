"""Captions of the training list: CLDR labels, alone or followed by some of the emoji's CLDR keywords."""

from __future__ import annotations

import random

from filip_demo.catalogue import Drawing, Emoji

MAX_TAGS = 2
# CLDR's keywords for chopsticks; a text rule drops what is not English
NOT_ENGLISH = ("hashi", "jeotgarak", "kuaizi")
LABEL_ONLY = 0.9  # share of captions without keywords; the test captions are labels


def caption_of(drawing: Drawing) -> str:
    """Return e.g. ``tulip`` or ``tulip, flower, growth``: the same at every build, different for each artist."""
    choose = random.Random(f"caption {drawing.artist} {drawing.emoji.code}")
    tags = informative_tags(drawing.emoji)
    if not tags or choose.random() < LABEL_ONLY:
        return drawing.emoji.label
    count = min(len(tags), choose.randint(1, MAX_TAGS))
    return ", ".join([drawing.emoji.label, *choose.sample(tags, count)])


def informative_tags(emoji: Emoji) -> list[str]:
    """Return the keywords that say more than the label, in CLDR's order."""
    words = set(emoji.label.lower().replace(":", " ").split())
    return [tag for tag in emoji.tags if not set(tag.lower().split()) <= words and tag not in NOT_ENGLISH]
