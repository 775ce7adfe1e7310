"""Pointing in scenes.

A name points at the patch that is most similar to any of its tokens, and is right if that patch belongs to its thing;
see :mod:`filip.eval.pointing`. Chance is the share of patches that are right. ``among_things`` asks the same of the
patches of things alone: the first number is also lost to the background, the second only to another thing. Where every
image shows one thing, the second is not there.
"""

from __future__ import annotations

from filip.common.errors import UserError
from filip.eval.cards import BenchmarkCard
from filip.eval.encode_set import Context
from filip.eval.encoders import Encoder
from filip.eval.formats import open_set
from filip.eval.outcomes import Outcomes, Record
from filip.eval.pointing import BACKGROUND, POOLED, pointed_scenes, rate
from filip.eval.protocols import Column, NoSettings, Numbers, Protocol, ReportTable

ONE_THING = "every image shows one thing"


def run(encoder: Encoder, card: BenchmarkCard, settings: NoSettings, context: Context, record: Record) -> Numbers:
    """Measure one benchmark: fractions, with a 95 % interval over scenes.

    The outcome of each name is put into ``record`` under the card's name, the names of a scene as one cluster.
    """
    names = [
        (scene.sample.key, n, *outcome)
        for scene in pointed_scenes(encoder, card, open_set(card, context.root))
        for n, *outcome in zip(
            scene.counted,
            scene.right,
            scene.chance(),
            scene.right_among_things(),
            scene.chance(of=(scene.owner != BACKGROUND).sum()),
            strict=True,
        )
    ]
    if not names:
        raise UserError(f"{card.name}: no name of any scene has a patch to point at; are its patches too large?")
    scenes, numbers, right, chance, among, chance_among = zip(*names, strict=True)
    keys = [f"{scene} {n}" for scene, n in zip(scenes, numbers, strict=True)]
    record[card.name] = Outcomes.of(keys, {"right": right, "right_among_things": among}, scenes)
    return {
        "n": len(keys),
        "images": len(set(scenes)),
        **rate(right, chance, scenes),
        "among_things": rate(among, chance_among, scenes) if min(chance_among) < 1 else {"reason": ONE_THING},
        "split": card.split,
    }


PROTOCOL = Protocol(
    "pointing",
    ("pointing",),
    run,
    NoSettings,
    ReportTable(
        "Pointing in scenes (accuracy, %)",
        (
            Column("on its own thing", "all", outcome="/right", headline=True),
            Column(
                "among the things alone",
                "among_things",
                "among_things.value",
                "among_things.chance",
                "among_things.ci95",
                outcome="/right_among_things",
                headline=True,
            ),
        ),
        (
            "A patch belongs to what covers most of it; the second column leaves the patches of the background out.",
            POOLED,
        ),
    ),
    note="The patch most similar to any token of a name belongs to the thing of that name.",
    on_patches=True,
)
