"""The download against a hostile server: every URL ends in one bucket, and every image is right."""

import dataclasses
import hashlib
import json
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webdataset as wds

from filip.common.errors import UserError
from filip.common.files import locked
from filip.common.tar_index import scan_tar
from filip.data.cards import ImageRuleSettings, SourceCard, TextRuleSettings, parse_card
from filip.data.download import download
from filip.data.ingest import IngestConfig, ingest
from filip.data.shard_index import index_of, index_path, shard_index
from tests.data import hostile
from tests.data.downloads import write_list
from tests.data.test_image_rules import EXPECTED, PROBLEMS, assert_colours

HTTP = {
    "nothing": "http_404", "status_403": "http_403", "status_500": "http_5xx", "hang": "timeout", "drip": "timeout",
    "drip_header": "timeout", "loop": "redirect_loop", "opted_out": "opted_out", "cut_off": "cut_off",
    "reset": "connection", "huge": "too_many_bytes",
}  # fmt: skip


@pytest.mark.slow
def test_every_url_of_a_hostile_server_ends_in_one_bucket(tmp_path: Path) -> None:
    settings = {"image_size": 120, "timeout": 1, "retries": 0, "retry_passes": 1, "samples_per_shard": 20}
    settings |= {"normal_success_rate": 0.9}
    card = parse_card({"name": "hostile", "allow_private_hosts": True, "download": settings}, Path("hostile.yaml"))
    reasons = {**HTTP, **PROBLEMS, **dict.fromkeys([*EXPECTED, "moved", "café", "flaky"], "ok")}
    names = sorted(reasons, key=lambda name: hashlib.md5(name.encode()).hexdigest())
    with hostile.hostile_server(slow=1) as server:
        urls = [server.url(name) for name in names]
        artists = [f"artist {name}" for name in names]
        source = write_list(tmp_path / "list.parquet", urls, artist=artists, rank=list(range(len(urls))))
        out = tmp_path / "shards"
        fragment = download(source, out, card)
        asked = server.requests.copy()
        assert download(source, out, card) == fragment and server.requests == asked, "a second run does nothing"

    # the funnel: each URL once, in the bucket that its server asked for
    expected = Counter(reasons.values())
    assert fragment.n_in == len(names) and fragment.n_out == expected.pop("ok")
    assert fragment.dropped == dict(expected)
    transient = ("http_5xx", "timeout", "cut_off", "connection")
    assert fragment.notes["retried"] == [sum(expected[r] for r in transient) + 1], "flaky is retried, and comes"
    assert asked["status_500"] == 2 and asked["nothing"] == asked["status_403"] == 1
    assert "warning" in fragment.notes

    # the shards: what webdataset reads, in the order of the list, with the columns of the list
    samples = {}
    tars = sorted(out.glob("*.tar"))
    assert [tar.name for tar in tars] == ["00000.tar", "00001.tar", "00002.tar"]
    for sample in wds.WebDataset([str(tar) for tar in tars], shardshuffle=False):
        meta = json.loads(sample["json"])
        name = meta["artist"].removeprefix("artist ")
        assert meta["url"] == urls[meta["rank"]] and sample["txt"].decode() == f"caption {meta['rank']}"
        assert meta["key"] == sample["__key__"] and meta["status"] == "success"
        samples[name] = sample["jpg"]
        if name in EXPECTED:
            assert_colours(sample["jpg"], EXPECTED[name], name)
    assert set(samples) == {name for name, reason in reasons.items() if reason == "ok"}
    for tar in tars:
        with tarfile.open(tar) as file:
            keys = [name.split(".")[0] for name in file.getnames()]
        assert keys == sorted(keys)
        written = index_path(tar).stat().st_mtime_ns
        assert shard_index(tar) == index_of(scan_tar(tar)[0])
        assert index_path(tar).stat().st_mtime_ns == written, "the download's own index was up to date"
        rows = pq.read_table(tar.with_suffix(".parquet"))
        assert rows["key"].to_pylist() == sorted(rows["key"].to_pylist())
        assert json.loads(tar.with_name(f"{tar.stem}_stats.json").read_text())["count"] == rows.num_rows
    assert {p.name for p in (out / "_work").iterdir()} == {"plan.json", "lock", "list_0.parquet", "retry_1.parquet"}

    # other rules take over what is here, without another download
    rules = {
        "text_rules": TextRuleSettings(switched_off=["furniture"]),
        "image_rules": ImageRuleSettings(min_side=0, max_aspect=2),
    }
    narrow = dataclasses.replace(card, images=str(out), **rules)
    _, taken = ingest(narrow, IngestConfig("hostile", out=str(tmp_path / "narrow")))
    assert (taken.n_out, taken.dropped["aspect"]) == (fragment.n_out - 1, 1)

    # a folder holds images of one size
    card.download.image_size = 100
    with pytest.raises(UserError, match="filled with another image_size than"):
        download(source, out, card)


def test_mistakes_are_named_before_anything_is_fetched(tmp_path: Path) -> None:
    card = SourceCard("x")
    reserved = write_list(tmp_path / "reserved.parquet", ["http://127.0.0.1:9/a.jpg"], width=[1], key=["k"])
    with pytest.raises(UserError, match=r"columns key, width, which the shards have themselves"):
        download(reserved, tmp_path / "out", card)
    source = write_list(tmp_path / "list.parquet", ["http://127.0.0.1:9/a.jpg"])
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "00000.tar").touch()
    with pytest.raises(UserError, match="unknown origin"):
        download(source, tmp_path / "foreign", card)
    (tmp_path / "busy" / "_work").mkdir(parents=True)
    busy = pytest.raises(UserError, match="being filled by another process")
    with locked(tmp_path / "busy" / "_work" / "lock"), busy:
        download(source, tmp_path / "busy", card)
