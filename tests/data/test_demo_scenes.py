"""Scenes of the demo corpus: what they show, what is said of it, and what is never shown or said."""

import itertools
import json
import random
import re
import tarfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from filip_demo.catalogue import Emoji
from filip_demo.scene_captions import relation_of
from filip_demo.scene_sets import (
    SEARCH,
    WRONG_NAMES,
    half_name_choices,
    half_relation_choices,
    name_and_relation_choices,
    name_choices,
    relation_choices,
    scene_makers,
    write_scene_sets,
)
from filip_demo.scenes import SIDE, Scene, Sprite, new_scene, pairs_of, training_scene

CACHE = Path(__file__).parents[2] / ".cache" / "demo"  # shared with `make demo`


def emoji(number: int) -> Emoji:
    return Emoji(f"{number:X}", f"{number:X}", f"thing{number}", (), "objects", f"kind{number % 7}")


def sprite(number: int) -> Sprite:
    """Return a block of one colour with a transparent corner and its own proportions."""
    width, height = 20 + 13 * number % 60, 20 + 29 * number % 70
    pixels = np.zeros((height, width, 4), np.uint8)
    pixels[..., :3] = number * 37 % 256, number * 101 % 256, number * 59 % 256
    pixels[..., 3] = 255
    pixels[: height // 2, : width // 2, 3] = 0
    return Sprite(f"artist{number % 3}", emoji(number), Image.fromarray(pixels))


CONCEPTS = {emoji(n).concept: emoji(n) for n in range(40)}
SPRITES = {emoji(n).concept: [sprite(n)] for n in range(40)}
NAMES = list(CONCEPTS)


@pytest.mark.parametrize("index", range(5))
def test_masks_say_which_pixels_show_which_thing(index: int) -> None:
    scene = training_scene(SPRITES, NAMES, 3, index)
    pixels = np.asarray(scene.image)
    assert pixels.shape == (SIDE, SIDE, 3)
    for thing in scene.things:
        left, top, right, bottom = thing.box
        outside = thing.mask.copy()
        outside[top:bottom, left:right] = False
        assert thing.mask.any() and not outside.any()
        own = np.asarray(SPRITES[thing.concept][0].image)[-1, -1, :3].astype(int)
        away = np.abs(pixels.astype(int) - own).max(2)
        # the thing's own colour inside its mask; only edges are blended with what is behind
        assert np.median(away[thing.mask]) <= 1
        corner = np.zeros_like(thing.mask)
        corner[top + 2 : (top + bottom) // 2 - 2, left + 2 : (left + right) // 2 - 2] = True
        assert not (thing.mask & corner).any(), "the transparent corner belongs to the background"
    for one, other in itertools.combinations(scene.things, 2):
        assert not (one.mask & other.mask).any()


def test_a_caption_names_each_thing_once_and_nothing_else() -> None:
    every_name = {e.label for e in CONCEPTS.values()}
    seen = Counter()
    for index in range(400):
        scene = training_scene(SPRITES, NAMES, 0, index)
        words = scene.caption.replace(",", " ").split()
        assert sorted(w for w in words if w in every_name) == sorted(t.label for t in scene.things)
        seen[len(scene.things)] += 1
    assert set(seen) == {1, 2, 3, 4} and min(seen.values()) > 40


def stated_truly(scene: Scene, caption: str) -> list[bool]:
    """Return for each relation that a caption states whether the scene shows it."""
    where = {thing.label: thing.box for thing in scene.things}
    results = []
    for relation, axis, sign in (("left of", 0, 1), ("right of", 0, -1), ("above", 1, 1), ("below", 1, -1)):
        if f" {relation} " in caption:
            first, second = caption.split(f" {relation} ")
            a, b = where[first.split()[-1]], where[second.split(",")[0].split()[-1]]
            low, high = (a, b) if sign > 0 else (b, a)
            results.append(low[axis + 2] <= high[axis])
    return results


def test_a_relation_that_a_caption_states_is_true() -> None:
    scenes = [training_scene(SPRITES, NAMES, 1, index) for index in range(400)]
    stated = [true for scene in scenes for true in stated_truly(scene, scene.caption)]
    assert len(stated) > 30 and all(stated)


def test_combinations_of_test_scenes_never_occur_in_training() -> None:
    trained: set[tuple[str, str]] = set()
    for index in range(600):
        concepts = sorted(t.concept for t in training_scene(SPRITES, NAMES, 0, index).things)
        trained |= set(itertools.combinations(concepts, 2))
    assert len(trained) > 300
    for index in range(100):
        concepts = sorted(t.concept for t in new_scene(SPRITES, NAMES, 1, index).things)
        assert len(set(concepts)) == 3
        assert not trained & set(itertools.combinations(concepts, 2))


def test_wrong_names_are_never_true_of_the_image() -> None:
    for index in range(60):
        scene = new_scene(SPRITES, NAMES, 1, index)
        right, *wrong = name_choices(scene, CONCEPTS, NAMES)
        shown = {thing.label for thing in scene.things}
        named = [set(c.replace(",", " ").replace(" and ", " ").split()) - {"a", "an"} for c in (right, *wrong)]
        assert named[0] == shown and len(wrong) == WRONG_NAMES == len(set(wrong))
        for names in named[1:]:
            assert len(names & shown) == 2 and len(names - shown) == 1
            (name,) = names - shown
            assert all(emoji(int(name[5:])).subgroup != CONCEPTS[t.concept].subgroup for t in scene.things)


def test_the_two_captions_of_a_relation_have_the_same_words_and_only_one_is_true() -> None:
    result = 0
    for index in range(60):
        scene = new_scene(SPRITES, NAMES, 1, index)
        choices = relation_choices(scene)
        if not choices:
            continue
        result += 1
        right, wrong = choices
        assert right != wrong
        assert Counter(right.replace(",", "").split()) == Counter(wrong.replace(",", "").split())
        assert stated_truly(scene, right) == [True] and stated_truly(scene, wrong) == [False]
    assert result > 50


def test_a_half_truth_adds_what_is_false_to_what_is_true_and_its_control_what_is_true() -> None:
    scenes = [new_scene(SPRITES, NAMES, 1, index) for index in range(60)]
    relations = 0
    for scene in scenes:
        shown = {thing.label: thing for thing in scene.things}
        named = [re.findall(r"thing\d+", caption) for caption in half_name_choices(scene, CONCEPTS, NAMES)]
        assert len(named[0]) == 2 and set(named[0]) < set(shown)
        assert named[1][:2] == named[2][:2] == named[0] and named[1][2] not in shown and set(named[2]) == set(shown)
        if not (choices := half_relation_choices(scene)):
            continue
        relations += 1
        true, half, whole = choices
        first, second = re.findall(r"thing\d+", true)
        assert re.findall(r"thing\d+", half) == re.findall(r"thing\d+", whole) == [first, second]
        true_ones = {relation_of(shown[first], shown[second], random.Random(seed)) for seed in range(20)}
        assert not any(f" {relation} " in half for relation in true_ones) and len(half) > len(true)
        assert any(f" {relation} " in whole for relation in true_ones)
    assert relations > 50


def test_scenes_to_search_on_show_no_two_things_that_reported_ones_show_together(tmp_path: Path) -> None:
    makers = scene_makers(SPRITES, SPRITES, frozenset())
    write_scene_sets(makers, tmp_path, 12, 1, partial(name_and_relation_choices, CONCEPTS, NAMES))
    shown = {
        name: {
            pair
            for _, members in samples(tmp_path / name)
            for pair in pairs_of(thing["concept"] for thing in json.loads(members["json"])["things"])
        }
        for name in makers
    }
    searched = shown.pop(SEARCH)
    assert len(searched) >= 30 and len(shown) == 2
    assert all(searched.isdisjoint(reported) for reported in shown.values())


def samples(folder: Path) -> list[tuple[str, dict[str, bytes]]]:
    result: dict[str, dict[str, bytes]] = {}
    with tarfile.open(folder / "test" / "0.tar") as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            result.setdefault(key, {})[extension] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return list(result.items())
