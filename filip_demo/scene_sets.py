"""Make many scenes: the training list, and the test sets with their ground truth.

A test set is written in CLIP_benchmark's webdataset layout. In addition to image and caption a sample has
``.things.png`` (mode L: pixels of the n-th thing are n, of the background 0), ``.json`` (the things in that
order: concept, label, artist, box) and, where there are any, ``.names.txt``, ``.relation.txt``, ``.half_name.txt``,
``.whole_name.txt``, ``.half_relation.txt`` and ``.whole_relation.txt`` (captions to select from, the true one first).

A false caption must be false. A name may replace another only if no word of it belongs to the labels or keywords of
what is shown, nor vice versa, and if it comes from another subgroup of CLDR than all that is shown: "bird" is never
offered as a wrong name for an eagle.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from filip.common.progress import track
from filip_demo.catalogue import Emoji
from filip_demo.render import is_written, png_bytes, write_atomically
from filip_demo.scene_captions import fill, relation_of, relation_sentence
from filip_demo.scenes import Scene, Sprites, new_scene, pairs_of
from filip_demo.test_sets import add_member

SEARCH = "demo_scenes_search"


@dataclass(frozen=True)
class SceneFacts:
    """Facts about a scene that the lists state."""

    path: str  # path of its image, below the corpus
    caption: str
    concepts: tuple[str, ...]
    labels: tuple[str, ...]
    artists: tuple[str, ...]

    @property
    def content_id(self) -> int:
        """Return an id, equal for scenes of the same things and for a drawing of one thing alone (Emoji.content_id)."""
        codes = " ".join(sorted(self.concepts))
        return int.from_bytes(hashlib.sha256(codes.encode()).digest()[:8], "big") >> 1


def write_training_scenes(out: Path, compose: Callable[..., Scene], count: int, processes: int) -> list[SceneFacts]:
    """Compose the training scenes, write their images below ``out`` and return their things."""
    made = _for_each(partial(_write_image, out, compose), count, processes)
    return list(track(made, "composing training scenes", "scenes", total=count))


def _write_image(out: Path, compose: Callable[..., Scene], index: int) -> SceneFacts:
    scene = compose(index=index)
    path = f"images/scenes/{index:06d}.png"
    if not is_written(out / path):
        write_atomically(out / path, png_bytes(scene.image))
    return facts(scene, path)


def facts(scene: Scene, path: str) -> SceneFacts:
    things = scene.things
    concepts, labels, artists = (tuple(getattr(t, key) for t in things) for key in ("concept", "label", "artist"))
    return SceneFacts(path, scene.caption, concepts, labels, artists)


def scene_makers(trained: Sprites, unseen_artist: Sprites, held_out: frozenset[str]) -> dict[str, Callable[..., Scene]]:
    """Return how each test set composes its scenes. trained: the training artists' sprites, held-out concepts too."""
    concepts = sorted(concept for concept in trained if concept not in held_out)
    unseen = sorted(concept for concept in trained if concept in held_out)
    drawn = [concept for concept in concepts if concept in unseen_artist]
    makers: dict[str, Callable[..., Scene]] = {}
    if len(concepts) > 2:
        makers["demo_scenes_new"] = partial(new_scene, trained, concepts, seed=1)
    if len(drawn) > 2:
        makers["demo_scenes_artist"] = partial(new_scene, unseen_artist, drawn, seed=2)
    if len(concepts) > 1 and unseen:
        makers["demo_scenes_concepts"] = partial(new_scene, trained, concepts, seed=3, unseen=unseen)
    if len(concepts) > 2:
        makers[SEARCH] = partial(new_scene, trained, concepts, seed=4)
    return makers


def write_scene_sets(
    makers: Mapping[str, Callable[..., Scene]],
    root: Path,
    count: int,
    processes: int,
    choices: Callable[[Scene], dict[str, list[str]]],
) -> dict[str, dict[str, Any]]:
    """Write ``root/<name>/…`` of each maker and return their summaries.

    choices: the captions to select from, by the extension of their file. SEARCH, on which settings are searched, shows
    no two things together that an earlier set shows together.
    """
    shown: set[frozenset[str]] = set()
    summaries = {}
    for name, compose in makers.items():
        if name == SEARCH:
            compose = partial(compose, avoided=frozenset(shown))
        make = partial(_members, compose, choices)
        folder = root / name
        (folder / "test").mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "dataset_type.txt", b"retrieval\n")
        buffer = io.BytesIO()
        artists: set[str] = set()
        made = _for_each(make, count, processes)
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for index, (members, things) in enumerate(track(made, f"composing {name}", "scenes", total=count)):
                artists |= {thing["artist"] for thing in things}
                shown |= pairs_of(thing["concept"] for thing in things)
                for extension, data in members.items():
                    add_member(tar, f"s{index:07d}.{extension}", data)
        write_atomically(folder / "test" / "0.tar", buffer.getvalue())
        write_atomically(folder / "test" / "nshards.txt", b"1\n")
        summaries[name] = {"kind": "retrieval", "images": count, "captions": count, "artists": sorted(artists)}
    return summaries


def _members(
    compose: Callable[..., Scene], choices: Callable[[Scene], dict[str, list[str]]], index: int
) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """Return the files of one test scene by extension, and its things."""
    scene = compose(index=index)
    things = [{"concept": t.concept, "label": t.label, "artist": t.artist, "box": t.box} for t in scene.things]
    shown = np.zeros((scene.image.height, scene.image.width), np.uint8)  # which thing (from 1) each pixel shows
    for number, thing in enumerate(scene.things, 1):
        shown[thing.mask] = number
    members = {
        "png": png_bytes(scene.image),
        "txt": scene.caption.encode(),
        "things.png": png_bytes(Image.fromarray(shown)),
        "json": json.dumps({"things": things}, ensure_ascii=False).encode(),
    }
    members |= {extension: "\n".join(found).encode() for extension, found in choices(scene).items() if found}
    return members, things


def name_and_relation_choices(emoji: Mapping[str, Emoji], names: Sequence[str], scene: Scene) -> dict[str, list[str]]:
    """Return the captions to select from by extension. names: concepts with names for false captions."""
    choices = {"names.txt": name_choices(scene, emoji, names), "relation.txt": relation_choices(scene)}
    halves = {"name": half_name_choices(scene, emoji, names), "relation": half_relation_choices(scene)}
    for what, captions in halves.items():
        if captions:
            short, wrong, true = captions
            choices |= {f"half_{what}.txt": [short, wrong], f"whole_{what}.txt": [true, short]}
    return choices


def _for_each(make: Callable[[int], Any], count: int, processes: int) -> Iterator[Any]:
    """Yield ``make(0) … make(count - 1)`` in order, from forked processes, to which no sprites need to be sent."""
    if processes == 1 or count < 64:
        yield from map(make, range(count))
        return
    with ProcessPoolExecutor(processes, get_context("fork"), _install, (make,)) as pool:
        yield from pool.map(_make, range(count), chunksize=32)


_installed: list[Callable[[int], Any]] = []  # set once in each worker process


def _install(make: Callable[[int], Any]) -> None:
    _installed[:] = [make]


def _make(index: int) -> Any:
    return _installed[0](index)


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
    """Return whether ``other`` might be a right name for a picture of ``shown``."""
    words, name = _words(shown.label), _words(other.label)
    known_as = words.union(*map(_words, shown.tags))
    other_known_as = name.union(*map(_words, other.tags))
    return shown.subgroup == other.subgroup or bool(name & known_as) or bool(words & other_known_as)


def relation_choices(scene: Scene) -> list[str]:
    """Return a true relation of two things, then the same with the two exchanged; [] if no relation is clear."""
    (first, second, *rest), relation = _related("wrong relation", scene)
    if relation is None:
        return []
    return [relation_sentence(first, relation, second, rest), relation_sentence(second, relation, first, rest)]


def half_name_choices(scene: Scene, emoji: Mapping[str, Emoji], names: Sequence[str]) -> list[str]:
    """Return a true list of all things but one, the same with a wrong name added, and with the true one; [] if none.

    The second is a half-truth (Kargi et al., 2026): longer, and mostly right. The third is the control: a model that
    prefers what is short prefers the first to it, too.
    """
    draw = random.Random(f"half-truth {scene.caption} {scene.index}")
    true = draw.sample([thing.label for thing in scene.things], len(scene.things) - 1)
    wrong = _wrong_labels(draw, scene, emoji, names, 1)
    missing = [thing.label for thing in scene.things if thing.label not in true]
    return [fill(LIST, true + more) for more in ([], wrong, missing)] if true and wrong else []


def half_relation_choices(scene: Scene) -> list[str]:
    """Return two things of the scene, the two in a wrong relation, and in the true one; [] if no relation is clear."""
    (first, second, *_), relation = _related("half-truth, relation", scene)
    if relation is None:
        return []
    related = [relation_sentence(first, found, second, []) for found in (OPPOSITE[relation], relation)]
    return [fill(LIST, [first, second]), *related]


def _related(purpose: str, scene: Scene) -> tuple[list[str], str | None]:
    """Return the labels of the things in a drawn order, and the relation of the first two, if it is clear."""
    draw = random.Random(f"{purpose} {scene.caption} {scene.index}")
    things = draw.sample(scene.things, len(scene.things))
    return [thing.label for thing in things], relation_of(things[0], things[1], draw)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.lower().replace("-", " ").split()) - FUNCTION_WORDS
