"""Scenes of several things: selecting the true caption, and pointing at the thing that is named."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from filip.cli.command import run_command
from filip.common.errors import UserError
from filip.eval.cards import load_card
from filip.eval.datasets import Sample, Thing
from filip.eval.encode_set import Context
from filip.eval.encoders import load_encoder
from filip.eval.formats import open_set
from filip.eval.outcomes import read_outcomes
from filip.eval.pictures.scenes import SceneSheet, draw
from filip.eval.pointing import BACKGROUND, point, pointed_scenes
from filip.eval.protocols import NoSettings, scene_pointing
from tests.eval.miniature import run_protocol, write_model, write_webdataset
from tests.eval.test_alignment import COLOURS, ColourBlind
from tests.support.shards import encoded, write_tar

PLACES = {"red": (0, 0, 16, 16), "green": (16, 0, 32, 16), "blue": (8, 16, 24, 32)}
CAPTION = "a green and a red next to blue"


def scene(names: tuple[str, ...] = ("red", "green", "blue")) -> tuple[Image.Image, Image.Image]:
    """Return coloured squares on white, and the map of which is where."""
    image, shown = Image.new("RGB", (32, 32), "white"), Image.new("L", (32, 32), 0)
    for number, name in enumerate(names, 1):
        image.paste(COLOURS[name], PLACES[name])
        shown.paste(number, PLACES[name])
    return image, shown


def write_scenes(folder: Path, count: int = 6, cut: int | None = None) -> None:
    """Write scenes; of each map of the things only the first ``cut`` bytes."""
    image, shown = scene()
    members: list[tuple[str, bytes]] = []
    for number in range(count):
        key = f"s{number:07d}"
        members += [(f"{key}.png", encoded(image)), (f"{key}.txt", CAPTION.encode())]
        members += [(f"{key}.things.png", encoded(shown)[:cut])]
        members += [(f"{key}.json", json.dumps({"things": [{"label": n} for n in PLACES]}).encode())]
        members += [(f"{key}.names.txt", b"a red and a blue\na red and a bus\na bus and a blue")]
        members += [(f"{key}.half_name.txt", b"a red and a blue\na red, a blue and a bus")]
        members += [(f"{key}.whole_name.txt", b"a red, a green and a blue\na red and a green")]
        if number % 2:
            members += [(f"{key}.relation.txt", b"a red left of a green\na green left of a red")]
    write_tar(folder / "test" / "0.tar", members)
    (folder / "test" / "nshards.txt").write_text("1\n")
    (folder / "dataset_type.txt").write_text("retrieval\n")


def card_file(folder: Path, kind: str, **layout: str) -> Path:
    file = folder / f"my_{kind}_{layout.get('choices', 'all')}.yaml"
    content = {"name": file.stem, "title": "T", "kind": kind, "metric": "accuracy", "loader": "webdataset"}
    content["layouts"] = {"webdataset": {"path": "scenes", "split": "test", **layout}}
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "scenes")
    return tmp_path


def sample() -> Sample:
    image, shown = scene()
    things = [
        Thing(name, Image.fromarray((np.asarray(shown) == number).astype(np.uint8) * 255))
        for number, name in enumerate(PLACES, 1)
    ]
    return Sample("s", image, captions=[CAPTION], things=things)


def test_a_scene_is_read_with_the_place_of_each_thing(root: Path) -> None:
    data = open_set(load_card(card_file(root, "pointing")), root)
    first = data[0]
    assert [thing.label for thing in first.things] == list(PLACES) and first.captions == [CAPTION]
    for thing in first.things:
        assert thing.mask.getbbox() == PLACES[thing.label] and set(np.unique(np.asarray(thing.mask))) == {0, 255}


def test_scenes_are_maps_of_the_classes_that_their_things_name(root: Path) -> None:
    write_scenes(root / "demo_scenes_new")
    data = open_set(load_card("demo_segmentation"), root)
    assert data.classes == ["blue", "green", "red"] and len(data) == 6
    segments = data[0].segments
    assert segments is not None and segments[31, 0] == -1 and not data[0].things
    for name, (left, top, right, bottom) in PLACES.items():
        assert (segments[top:bottom, left:right] == data.classes.index(name)).all()
    write_webdataset(root / "demo_scenes_new", None, [["no things"]], shards=1)
    with pytest.raises(UserError, match=r"sample s0000000 in .* has no \.things\.png and \.json"):
        open_set(load_card("demo_segmentation"), root)


def test_only_samples_with_choices_take_part_in_a_selection(root: Path) -> None:
    names = open_set(load_card(card_file(root, "selection", choices="names.txt")), root)
    relations = open_set(load_card(card_file(root, "selection", choices="relation.txt")), root)
    assert (len(names), len(relations)) == (6, 3)
    assert names[0].captions[0] == "a red and a blue" and relations[0].captions[1] == "a green left of a red"


def test_each_name_points_at_its_own_thing() -> None:
    (result,) = point(ColourBlind(), [sample()])  # type: ignore[arg-type]
    assert result.right == result.right_among_things() == [True] * 3 and result.score == 1
    for number, name in enumerate(PLACES):
        left, top, right, bottom = (side // 8 for side in PLACES[name])
        assert (result.owner[top:bottom, left:right] == number).all() and (result.owner == number).sum() == 4
    assert (result.owner == BACKGROUND).sum() == 4


def test_a_thing_that_no_patch_belongs_to_is_not_counted() -> None:
    thin = sample()
    line = Image.new("L", (32, 32), 0)
    line.paste(255, (0, 0, 32, 1))
    thin.things[0] = Thing("red", line)
    assert point(ColourBlind(), [thin])[0].counted == [1, 2]  # type: ignore[arg-type]


def test_scene_pointing_as_a_command(root: Path) -> None:
    model, out = write_model(root / "m.safetensors"), root / "out"
    card = card_file(root, "pointing")
    arguments = [f"model={model}", f"root={root}", f"data=[{card}]", f"out={out}"]
    result = run_protocol("scene_pointing", arguments)["benchmarks"][card.stem]
    assert (result["n"], result["images"]) == (18, 6)
    outcomes = read_outcomes(out / "scene_pointing" / f"{card.stem}.json")[card.stem]
    assert outcomes.values["right"].mean() == pytest.approx(result["value"])
    assert len(set(outcomes.cluster)) == 6
    assert result["chance"] == pytest.approx(1 / 4) and result["among_things"]["chance"] == pytest.approx(1 / 3)
    assert 0 <= result["value"] <= result["among_things"]["value"] <= 1 or result["value"] == 0


def test_an_image_with_one_mask_is_a_scene_of_the_thing_that_its_caption_names(root: Path) -> None:
    image, shown = scene(("red",))
    mask = shown.point(lambda value: 255 * value)
    members = [
        (f"s{n}.{suffix}", content)
        for n in range(3)
        for suffix, content in (("png", encoded(image)), ("txt", b"red"), ("mask.png", encoded(mask)))
    ]
    write_tar(root / "scenes" / "test" / "0.tar", members)
    card, record = load_card(card_file(root, "pointing")), {}
    result = scene_pointing.run(ColourBlind(), card, NoSettings(), Context(str(root)), record)  # type: ignore[arg-type]
    assert (result["n"], result["value"], result["chance"]) == (3, 1.0, 4 / 16)
    assert result["among_things"] == {"reason": "every image shows one thing"}
    assert [
        value.reason
        for value in map(
            partial(scene_pointing.PROTOCOL.measure, numbers=result), scene_pointing.PROTOCOL.table.columns
        )
    ] == [None, "every image shows one thing"]
    write_tar(root / "scenes" / "test" / "0.tar", [*members[:2], ("s0.mask.png", encoded(mask)[:50])])
    with pytest.raises(
        UserError, match=r"s0\.mask\.png of my_pointing_all cannot be read \(.*\); fetch the test set again"
    ):
        list(pointed_scenes(ColourBlind(), card, open_set(card, root)))  # type: ignore[arg-type]
    write_tar(root / "scenes" / "test" / "0.tar", members[:2])
    with pytest.raises(UserError, match="does not say where its things are"):
        list(pointed_scenes(ColourBlind(), card, open_set(card, root)))  # type: ignore[arg-type]


def test_a_broken_map_of_the_things_is_named(root: Path) -> None:
    # its header is whole: it breaks when its pixels are asked for
    write_scenes(root / "scenes", count=1, cut=60)
    card = load_card(card_file(root, "pointing"))
    with pytest.raises(UserError, match=r"s0000000\.things\.png of .*scenes cannot be read.*fetch"):
        list(pointed_scenes(ColourBlind(), card, open_set(card, root)))  # type: ignore[arg-type]


def test_the_sheet_as_a_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [write_model(root / f"{name}.safetensors", name) for name in ("pooled", "token_wise")]
    card, picture = card_file(root, "pointing"), root / "sheet.png"
    arguments = [f"models=[{','.join(models)}]", "labels=[CLIP,FILIP]", f"root={root}", f"card={card}"]
    arguments += ["count=4", f"parts={root / 'parts.json'}"]
    run_command(draw, SceneSheet, argv=[*arguments, f"out={picture}"])
    first = picture.read_bytes()
    drawn = json.loads((root / "parts.json").read_text())
    points = list(
        pointed_scenes(load_encoder(models[1], None, "cpu"), load_card(card), open_set(load_card(card), root))
    )
    rights = {scene.sample.captions[0]: sum(scene.right) for scene in points}
    for scene in drawn["scenes"]:
        caption = " ".join(part["word"] for part in scene["caption"])
        assert scene["models"][1]["right"] == rights[caption], "as the tables count"
    assert drawn["totals"][1]["right"] == sum(scene["models"][1]["right"] for scene in drawn["scenes"])
    assert Image.open(picture).width > 3 * 288
    run_command(draw, SceneSheet, argv=[*arguments, f"out={picture}"])
    assert picture.read_bytes() == first
    with pytest.raises(SystemExit):
        run_command(draw, SceneSheet, argv=[*arguments, f"out={picture}", "labels=[one]"])
    assert "1 labels for 2 models" in capsys.readouterr().err
