"""Another list, or other rules, over a folder that is filled: what was fetched stays, and is not fetched again."""

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filip.data import verify
from filip.data.cards import ImageRuleSettings, SourceCard, parse_card
from filip.data.download import download
from filip.data.fetching.revision import counted_only, revise
from filip.data.funnel import check_fragment, write_fragment
from filip.data.lists.parquet_rows import content_hash
from filip.data.manifest import ManifestConfig
from filip.data.manifest import main as write_manifest
from filip.data.shard_set import images_set_aside, set_aside
from filip.data.sidecar import read_sidecar
from filip.data.translate import TranslationJob, translate
from filip.errors import UserError
from tests.data import hostile
from tests.data.downloads import hashes, write_list

SIZES = {"success": (400, 300), "small": (250, 220), "wide": (900, 310)}


def stored_shard(folder: Path, shard: int, rows: list[tuple[str, str]]) -> None:
    """Write the Parquet file of a shard; rows: URL and a name of SIZES, or the error message."""
    sizes = [SIZES.get(outcome, (None, None)) for _, outcome in rows]
    table = {
        "url": [url for url, _ in rows],
        "caption": [f"caption of {url}" for url, _ in rows],
        "key": [f"{shard:05d}{row:04d}" for row in range(len(rows))],
        "status": ["success" if outcome in SIZES else "failed_to_resize" for _, outcome in rows],
        "error_message": pa.array([None if outcome in SIZES else outcome for _, outcome in rows], pa.string()),
        "original_width": pa.array([width for width, _ in sizes], pa.int64()),
        "original_height": pa.array([height for _, height in sizes], pa.int64()),
    }
    (folder / "_work").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), folder / f"{shard:05d}.parquet")


def wanted(path: Path, urls: list[str]) -> Path:
    pq.write_table(pa.table({"url": urls, "caption": [f"caption of {url}" for url in urls]}), path)
    return path


def test_what_a_new_list_and_new_rules_leave_and_what_they_ask_for(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    stored_shard(folder, 0, [("a", "success"), ("b", "small"), ("c", "http_404"), ("d", "too_small: 150 x 90")])
    stored_shard(folder, 100_000, [("e", "wide"), ("f", "too_small: 40 x 40"), ("a", "success"), ("g", "retried: x")])
    source = wanted(tmp_path / "list.parquet", ["h", "e", "d", "c", "b", "a", "a", "g", "f"])
    added = folder / "_work" / "added_1.parquet"
    card = SourceCard("c", image_rules=ImageRuleSettings(min_side=90, max_aspect=2.5))
    rows, repeated = revise(folder, [0, 100_000], source, ["url", "caption"], card, added, "500MB")
    # never fetched; dropped by the old limit, but not by the new; was left to a later pass
    assert pq.read_table(added)["url"].to_pylist() == ["h", "d", "g"] and rows == 3
    assert repeated == 1
    # the earlier of two copies; what is fetched again; what breaks the new aspect
    assert dict(set_aside(folder)) == {0: {0: None, 3: None}, 100_000: {0: "aspect", 3: None}}
    assert images_set_aside(folder) == {0: 1, 100_000: 1}

    card = SourceCard("c", image_rules=ImageRuleSettings(min_side=230, max_aspect=3))
    smaller = wanted(tmp_path / "smaller.parquet", ["b", "e"])
    assert revise(folder, [0, 100_000], smaller, ["url", "caption"], card, added, "500MB") == (0, 0)
    aside = dict(set_aside(folder))
    assert aside == {0: {0: None, 1: "too_small", 2: None, 3: None}, 100_000: {1: None, 2: None, 3: None}}
    assert revise(folder, [], smaller, ["url", "caption"], card, added, "500MB") == (2, 0)
    assert dict(set_aside(folder)) == {}
    assert counted_only(tmp_path, "listed") == "listed"


def test_a_list_is_told_by_its_rows_and_not_by_its_bytes(tmp_path: Path) -> None:
    table = pa.table({"url": [f"u{n}" for n in range(70_000)], "caption": ["c", None] * 35_000})
    columns = ["url", "caption"]
    found = set()
    for number, options in enumerate(({}, {"row_group_size": 999}, {"compression": "zstd"})):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(table, path, **options)
        found.add(content_hash(path, columns))
    assert len(found) == 1
    pq.write_table(table.slice(1), tmp_path / "other.parquet")
    assert content_hash(tmp_path / "other.parquet", columns) not in found


@pytest.mark.slow
def test_a_changed_rule_downloads_nothing_again(tmp_path: Path) -> None:
    """It used to be refused: the folder had to be deleted, and everything fetched once more."""
    settings = {"image_size": 32, "samples_per_shard": 4, "threads": 2, "retries": 0, "retry_passes": 1, "processes": 1}
    raw = {
        "name": "c",
        "download": settings,
        "image_rules": {"min_side": 0, "max_aspect": 4},
        "allow_private_hosts": True,
    }
    card = parse_card(raw, Path("c.yaml"))
    out, captions = tmp_path / "shards", tmp_path / "captions"
    with hostile.hostile_server() as server:
        names = ["image0", "image1", "flaky", "image3", "nothing", "wide", "image6"]
        first = write_list(tmp_path / "list.parquet", [server.url(name) for name in names])
        before = download(first, out, card)
        assert before.dropped == {"http_404": 1} and before.n_out == 6
        asked, files = server.requests.copy(), hashes(out)

        # a text rule drops a pair, and lets in two others; an image rule drops the wide picture
        table = pq.read_table(first)
        more = pa.table({"url": [server.url("image8"), server.url("image9")], "caption": ["caption 8", "caption 9"]})
        pq.write_table(pa.concat_tables([more, table.take([6, 5, 4, 3, 2, 0])]), first)
        card.image_rules.max_aspect = 2
        fragment = download(first, out, card)
        assert server.requests - asked == {"image8": 1, "image9": 1}
        assert files.items() <= hashes(out).items()
        check_fragment(fragment, "download")
        assert fragment.n_in == 8 and fragment.dropped == {"http_404": 1, "aspect": 1}
        assert download(first, out, card) == fragment

        # the side-cars, the manifest and a check of it know what is left
        job = TranslationJob(
            card=card, shards=out, out=captions, engine="none", pivots=[], models=None, cache=captions / "_c"
        )
        translated = translate(job)
        assert translated is not None
        rows = [row for path in captions.glob("*.parquet") for row in read_sidecar(path)]
        assert sorted(row["captions"][0] for row in rows) == [f"caption {n}" for n in (0, 2, 3, 6, 8, 9)]
        write_fragment(tmp_path / "download.json", fragment)
        (tmp_path / "c.yaml").write_text(json.dumps({**raw, "image_rules": dataclasses.asdict(card.image_rules)}))
        described = ManifestConfig(
            str(tmp_path / "c.yaml"), str(first), str(first), str(out), str(captions),
            [str(tmp_path / "download.json")], str(tmp_path / "manifest.json"),
        )  # fmt: skip
        write_manifest(described)
        assert json.loads((tmp_path / "manifest.json").read_text())["images"]["count"] == 6
        assert verify.verify(described.out) == []

        # the rule is taken back: the picture is still there; a lost shard of the first list is fetched again
        card.image_rules.max_aspect = 4
        (out / "00000.tar").unlink()
        asked = server.requests.copy()
        restored = download(first, out, card)
        assert restored.dropped == {"http_404": 1} and restored.n_out == 7
        assert server.requests - asked == {"image0": 1, "image3": 1} and not (out / "00000.parquet").exists()


@pytest.mark.slow
def test_an_address_that_was_refused_is_asked_once_the_card_allows_it(tmp_path: Path) -> None:
    settings = {"image_size": 32, "threads": 2, "retries": 0, "retry_passes": 0, "processes": 1}
    raw = {"name": "c", "download": settings, "image_rules": {"min_side": 0}}
    out = tmp_path / "shards"
    with hostile.hostile_server() as server:
        listed = write_list(tmp_path / "list.parquet", [server.url("image0"), server.url("image1")])
        with pytest.raises(UserError, match="allow_private_hosts in the card"):
            download(listed, out, parse_card(raw, Path("c.yaml")))
        allowed = parse_card({**raw, "allow_private_hosts": True}, Path("c.yaml"))
        assert download(listed, out, allowed).n_out == 2
