"""Pointing in scenes.

A name points at the patch that is most similar to any of its tokens, and is right if that patch belongs to its thing;
see :mod:`filip.eval.scenes`. Chance is the share of patches that are right. ``among_things`` asks the same of the
patches of things alone: the first number is also lost to the background, the second only to another thing.
"""

from __future__ import annotations

import numpy as np

from filip import citations
from filip.errors import UserError
from filip.eval.cards import BenchmarkCard
from filip.eval.context import Context
from filip.eval.encoders import Encoder
from filip.eval.formats import open_set
from filip.eval.metrics import mean_interval
from filip.eval.outcomes import Outcomes, Record
from filip.eval.protocols import Column, NoSettings, Numbers, Protocol
from filip.eval.scenes import BACKGROUND, pointed_scenes


def run(
    encoder: Encoder, card: BenchmarkCard, settings: NoSettings, context: Context, record: Record
) -> Numbers:
    """Measure one benchmark: fractions, with a 95 % interval over scenes.

    The outcome of each name is put into ``record`` under the card's name, the names of a scene as one cluster.
    """
    outcomes: dict[str, list[bool]] = {"right": [], "right_among_things": []}
    chance: dict[str, list[float]] = {name: [] for name in outcomes}
    keys: list[str] = []
    scenes: list[str] = []
    for scene in pointed_scenes(encoder, card, open_set(card, context.root)):
        for n in scene.counted:
            own = (scene.owner == n).sum()
            chance["right"].append(own / scene.owner.size)
            chance["right_among_things"].append(own / (scene.owner != BACKGROUND).sum())
            keys.append(f"{scene.sample.key} {n}")
            scenes.append(scene.sample.key)
        outcomes["right"] += scene.right
        outcomes["right_among_things"] += scene.right_among_things()
    if not keys:
        raise UserError(
            f"{card.name}: no name of any scene has a patch to point at; are its patches too large?"
        )
    record[card.name] = Outcomes.of(keys, outcomes, scenes)
    clusters = np.unique(scenes, return_inverse=True)[1]
    rates = {
        name: {
            "value": float(np.mean(right)),
            "chance": float(np.mean(chance[name])),
            "ci95": list(mean_interval(np.array(right, float), clusters=clusters)),
        }
        for name, right in outcomes.items()
    }
    return {
        "n": len(keys),
        "images": len(set(scenes)),
        **rates["right"],
        "among_things": rates["right_among_things"],
        "split": card.split,
    }


PROTOCOL = Protocol(
    "pointing",
    ("pointing",),
    run,
    NoSettings,
    columns=(
        Column("own thing"),
        Column("among things", "among_things.value", "among_things.chance", "among_things.ci95"),
    ),
    note="The patch most similar to any token of a name belongs to the thing of that name.",
    citation=(citations.EXCITATION_BACKPROP,),
)
