"""Scenes of tinted things: what training never shows, what is exchanged, and in which colours things are drawn."""

import random
import re
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.csv as csv
import pytest
from PIL import Image

from filip.command import compose_config
from filip_demo.binding import (
    PLACE,
    PROPERTIES,
    Binding,
    binding_scene,
    exchange,
    main,
    new_binding_scene,
    new_values,
    reserved,
)
from filip_demo.catalogue import Emoji
from filip_demo.scenes import SIDE, Sprite
from tests.data.test_demo_scenes import CACHE, samples

NAMES = [f"{letter}hing" for letter in "abcdefghijklmnopqrstuvwxyz"]
GREY = Image.linear_gradient("L").resize((30, 40)).convert("RGBA")  # black at the top, white at the bottom
SPRITES = {name: Sprite("noto", Emoji(name, name, name, (), "objects", ""), GREY) for name in NAMES}


def pairs(scenes: range, make: partial) -> set[tuple[str, ...]]:
    """Return value and name of the things of many scenes; "two ahings" and "a single ahing" are of one name."""
    labels = {tuple(thing.label.split()) for n in scenes for thing in make(index=n).things}
    return {(value, name.removesuffix("s")) for value, name in labels}


@pytest.mark.parametrize("kind", PROPERTIES)
def test_no_training_scene_shows_a_thing_with_a_value_that_a_test_scene_shows(kind: str) -> None:
    trained = pairs(range(600), partial(binding_scene, SPRITES, [kind], 0))
    tested = pairs(range(200), partial(new_binding_scene, SPRITES, kind, 1))
    assert len(reserved(SPRITES)) == 9
    assert tested == {(value, name) for value in new_values(kind) for name in reserved(SPRITES)}
    assert trained == {(value, name) for value in PROPERTIES[kind].values for name in NAMES} - tested


@pytest.mark.parametrize("kind", PROPERTIES)
def test_the_exchanged_caption_has_the_same_words_and_two_other_pairs_that_are_new(kind: str) -> None:
    new = pairs(range(200), partial(new_binding_scene, SPRITES, kind, 1))
    for index in range(50):
        scene = new_binding_scene(SPRITES, kind, 1, index)
        captions = exchange(scene)["exchange.txt"]
        words = [re.sub(r",|\band\b|\ban?\b|s\b", "", caption).split() for caption in captions]
        true, false = (list(zip(each[::2], each[1::2], strict=True)) for each in words)
        assert captions[0] == scene.caption
        assert sorted(true) == sorted({tuple(t.label.removesuffix("s").split()) for t in scene.things})
        assert sorted(words[0]) == sorted(words[1]) and words[0][1::2] == words[1][1::2]
        assert len(set(true) - set(false)) == 2 and set(false) <= new


def test_a_place_is_true_its_exchange_is_false_and_training_shows_no_two_reserved_things() -> None:
    assert all(
        {t.label for t in binding_scene(SPRITES, [PLACE], 0, i).things} - {*reserved(SPRITES)} for i in range(300)
    )
    for index in range(100):
        scene = new_binding_scene(SPRITES, PLACE, 1, index)
        boxes = {thing.label: thing.box for thing in scene.things}
        assert set(boxes) <= set(reserved(SPRITES))
        for caption, holds in zip(exchange(scene)["exchange.txt"], (True, False), strict=True):
            one, relation, other = re.fullmatch(r"an? (\w+) (.+) an? (\w+)", caption).groups()
            (left, top, right, bottom), (l2, t2, r2, b2) = boxes[one], boxes[other]
            true = {"left of": right <= l2, "right of": left >= r2, "above": bottom <= t2, "below": top >= b2}
            assert true[relation] == holds and (caption == scene.caption) == holds


def test_scenes_show_the_sizes_and_the_numbers_that_their_captions_name() -> None:
    for index in range(200):
        scene = binding_scene(SPRITES, ["size", "number"], 0, index)
        kind = ["size", "number"][index % 2]
        shown = Counter(thing.label.split()[0] for thing in scene.things)
        longer = {t.label.split()[0]: max(np.subtract(t.box[2:], t.box[:2])) / SIDE for t in scene.things}
        for value, what in ((value, PROPERTIES[kind].values[value]) for value in shown):
            assert what == shown[value] if kind == "number" else what[0] - 0.01 < longer[value] < what[1] + 0.01


@pytest.mark.slow
def test_the_command_writes_a_table_and_test_sets(tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    main(compose_config(Binding, [f"out={out}", f"cache={CACHE}", "limit=30", "scenes=70", "test_scenes=12"]))
    rows = csv.read_csv(out / "captions.csv").to_pylist()
    assert len(rows) == 70 and all((out / row["path"]).is_file() for row in rows)
    drawn = random.Random(0).choice(samples(out / "eval" / "binding_new"))[1]
    assert drawn["exchange.txt"].split(b"\n")[0] == drawn["txt"] and b"things" in drawn["json"]
    new, search = ({s["txt"] for _, s in samples(out / "eval" / f"binding_{name}")} for name in ("new", "search"))
    assert len(new) == len(search) == 12 and not new & search
