"""Scenes of tinted things: what training never shows, what is exchanged, and in which colours things are drawn."""

import random
import re
from functools import partial
from pathlib import Path

import pyarrow.csv as csv
import pytest
from PIL import Image

from filip.cli.command import compose_config
from filip_demo.binding import COLOURS, NEW, Binding, binding_scene, exchange, main, new_binding_scene, reserved
from filip_demo.catalogue import Emoji
from filip_demo.scenes import Sprite
from tests.data.test_demo_scenes import CACHE, samples

NAMES = [f"{letter}hing" for letter in "abcdefghijklmnopqrstuvwxyz"]
GREY = Image.linear_gradient("L").resize((30, 40)).convert("RGBA")  # black at the top, white at the bottom
SPRITES = {name: Sprite("noto", Emoji(name, name, name, (), "objects", ""), GREY) for name in NAMES}


def pairs(scenes: range, make: partial) -> set[tuple[str, ...]]:
    """Return colour and name of the things of many scenes."""
    return {tuple(thing.label.split()) for n in scenes for thing in make(index=n).things}


def test_no_training_scene_shows_a_thing_in_a_colour_that_a_test_scene_shows() -> None:
    trained = pairs(range(600), partial(binding_scene, SPRITES, 0))
    tested = pairs(range(200), partial(new_binding_scene, SPRITES, 1))
    assert len(reserved(SPRITES)) == 9
    assert tested == {(colour, name) for colour in NEW for name in reserved(SPRITES)}
    assert trained == {(colour, name) for colour in COLOURS for name in NAMES} - tested


def test_the_exchanged_caption_has_the_same_words_and_two_other_pairs_that_are_new() -> None:
    new = pairs(range(200), partial(new_binding_scene, SPRITES, 1))
    for index in range(50):
        scene = new_binding_scene(SPRITES, 1, index)
        captions = exchange(scene)["exchange.txt"]
        words = [re.sub(r",|\band\b|\ban?\b", "", caption).split() for caption in captions]
        true, false = (list(zip(each[::2], each[1::2], strict=True)) for each in words)
        assert captions[0] == scene.caption
        assert sorted(true) == sorted(tuple(thing.label.split()) for thing in scene.things)
        assert sorted(words[0]) == sorted(words[1]) and words[0][1::2] == words[1][1::2]
        assert len(set(true) - set(false)) == 2 and set(false) <= new


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
