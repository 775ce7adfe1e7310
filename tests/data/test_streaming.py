"""Shards that are not local are streamed: every pair once a pass, and a resumed run goes on at the shard."""

import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from filip.common.errors import UserError
from filip.data.cards import parse_card
from filip.data.fetching.shard_maker import is_complete
from filip.data.forget import forget
from filip.data.ingest import IngestConfig, ingest
from filip.data.ingest import resolve_card as resolve_ingest
from filip.data.prepare import PrepareConfig, prepare, resolve_card
from filip.data.remote_tars import address
from filip.data.verify import verify
from filip.loading import remote_shards, streaming
from filip.loading.config import DataConfig, Source, StreamConfig
from filip.loading.pair_index import index_source
from filip.loading.streaming import StreamLoader, build_stream_loader
from filip.train.training_data import as_they_lie
from tests.data.downloads import download_first_shard, write_list
from tests.data.own_images import CAPTIONS, picture, text_beside, write_images
from tests.data.pair_shards import Pairs, keys, loader, number_of, write_pairs
from tests.data.test_forget import COUNT, config, ingested, write_data_set

pytestmark = pytest.mark.filterwarnings("ignore:.*worker processes in total")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Write eight shards of six pairs."""
    return write_pairs(tmp_path_factory.mktemp("streamed"), [6] * 8)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder by HTTP."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def web(pairs: Pairs) -> Iterator[str]:
    with served(pairs.root) as address:
        yield address


@pytest.fixture(scope="module")
def bucket(pairs: Pairs) -> Iterator[str]:
    """Serve the folder by S3's protocol, as the bucket ``pairs``."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="pairs")
        for path in pairs.root.rglob("*.*"):
            client.upload_file(str(path), "pairs", str(path.relative_to(pairs.root)))
        yield "s3://pairs"
    server.stop()


@pytest.mark.slow
def test_a_data_set_in_a_bucket_is_scored_verified_streamed_and_forgotten_from(bucket: str, tmp_path: Path) -> None:
    card = write_data_set(tmp_path, f"{bucket}/mine")
    shards, manifest = tmp_path / "shards", tmp_path / "m.json"
    tars = sorted(shards.glob("*.tar"))
    assert [address(tar) for tar in tars] == [f"{bucket}/mine/0000{n}.tar" for n in range(3)]
    assert verify(manifest) == []
    before = [tar.lstat().st_mtime_ns for tar in tars]
    ingested(card, tmp_path, f"{bucket}/mine")
    assert [tar.lstat().st_mtime_ns for tar in tars] == before, "nothing is made again"

    (tmp_path / "urls.txt").write_text("3.jpg\n")
    assert forget(config(tmp_path, urls=str(tmp_path / "urls.txt")))["images"] == 1
    assert verify(manifest) == []

    source = Source(str(shards), str(tmp_path / "captions"), manifest=str(manifest))
    data = as_they_lie(DataConfig(sources=[source], workers=0, auto_augment=0))
    assert (data.sources[0].shards, data.sources[0].pairs) == (f"{bucket}/mine", COUNT - 1)
    (batch,) = build_stream_loader(StreamConfig(data, batch_size=COUNT - 1, image_size=16))
    rows = [row for tar in tars for row in pq.read_table(tar.with_suffix(".parquet")).to_pylist()]
    assert sorted(keys([batch])) == sorted(row["key"] for row in rows if row["url"] not in (None, "3.jpg"))
    with pytest.raises(UserError, match=r"00000.tar leads to s3://pairs/mine/00000.tar"):
        index_source(source)

    for tars_of, why in (
        (f"{bucket}/mine", r"tars=s3://pairs/mine is filled from \S+/shards: give another"),
        ("s3://nobody/mine", "there is no s3://nobody/mine, or no bucket of this name"),
        ("bucket/mine", "not an address of a bucket"),
    ):
        with pytest.raises(UserError, match=why):
            ingest(card, IngestConfig("mine", out=str(tmp_path / "others"), tars=tars_of))
    fsspec.filesystem("s3").rm(f"{bucket}/mine/00001.tar")
    assert any("there is no s3://pairs/mine/00001.tar" in fault for fault in verify(manifest))


def test_a_downloaded_shard_goes_to_the_bucket_with_what_describes_it(bucket: str, tmp_path: Path) -> None:
    write_images(tmp_path / "own")
    urls = [(tmp_path / "own" / name).as_uri() for name in CAPTIONS]
    listed, folder = write_list(tmp_path / "list.parquet", urls), tmp_path / "shards"
    card = parse_card({"name": "web", "image_root": str(tmp_path / "own")}, tmp_path / "web.yaml")
    download_first_shard(card, listed, folder, tars=f"{bucket}/web")
    assert is_complete(folder, 0) and address(folder / "00000.tar") == f"{bucket}/web/00000.tar"
    names = {path.rpartition("/")[2] for path in fsspec.filesystem("s3").ls(f"{bucket}/web")}
    assert names == {"00000.tar", "00000.parquet", "00000_stats.json"}
    answers = pq.read_table(folder / "00000.answers").to_pylist()
    assert len(answers) == len(urls) and all(answer["time"] for answer in answers)
    samples = remote_shards.samples_in(f"{bucket}/web/00000.tar", Counter())
    assert [sample["txt"].decode() for sample in samples] == [f"caption {n}" for n in range(len(urls))]


def stream(root: str, rank: int = 0, ranks: int = 1, workers: int = 0, window: int = 16, **source: Any) -> StreamLoader:
    given = {"shards": f"{root}/shards", "captions": f"{root}/captions", "pairs": 48} | source
    data = DataConfig(sources=[Source(**given)], workers=workers, auto_augment=0, shuffle_window_shards=window)
    config = StreamConfig(data, batch_size=3, image_size=16, seed=3, rank=rank, world_size=ranks)
    return build_stream_loader(config)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_two_ranks_read_every_pair_of_a_bucket_once_an_epoch(bucket: str, pairs: Pairs, workers: int) -> None:
    ranks = [stream(bucket, rank, ranks=2, workers=workers) for rank in range(2)]
    epochs = [[batch for rank in ranks for batch in rank] for _ in range(2)]
    for epoch in epochs:
        assert sorted(keys(epoch)) == pairs.keys and len(epoch) == 16
    assert keys(epochs[0]) != keys(epochs[1])
    numbers = [number_of(image, 48) for batch in epochs[0] for image in batch["pixels"]]
    assert [pairs.keys[n] for n in numbers] == keys(epochs[0])
    groups = [int(group) for batch in epochs[0] for group in batch["group"]]
    assert groups == [n // 2 for n in numbers]
    assert not ranks[0].counters
    assert keys(list(stream(bucket, 0, ranks=2, workers=workers))) == keys(epochs[0])[:24]


@pytest.mark.slow
def test_a_batch_has_pairs_of_many_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other people's tars are sorted. The buffer has a quarter of a shard, as 2,000 of 8,000 images."""
    monkeypatch.setattr(streaming, "BUFFERED", 1)
    buffer = 16
    many = write_pairs(tmp_path, [64] * 32, captions=1, size=8)
    tars = [str(many.tar(n)) for n in range(32)]
    with served(tmp_path) as address:
        source = Source(f"{address}/shards/{{00000..00031}}.tar", f"{address}/captions", pairs=2048)
        options = {"batch_size": 32, "image_size": 8, "seed": 3}
        streamed = build_stream_loader(StreamConfig(DataConfig(sources=[source], workers=0, auto_augment=0), **options))
        data = wds.WebDataset(tars, shardshuffle=32, seed=3).shuffle(buffer).to_tuple("__key__").batched(32)
        batches = {
            "streamed": [batch["key"] for batch in streamed],
            "local": [batch["key"] for batch in loader(many, batch_size=32, shuffle_window_shards=16)],
            "webdataset": [names for (names,) in data],
        }
    mixed = {name: np.mean([len({key[:5] for key in keys}) for keys in found]) for name, found in batches.items()}
    assert mixed["local"] > 12 and mixed["streamed"] > 6 > 3 > mixed["webdataset"]


@pytest.mark.slow
def test_a_resumed_run_reads_the_unfinished_shards(web: str, pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks with two workers stop; one with one worker goes on: nothing is lost, finished shards do not return."""
    monkeypatch.setattr(streaming, "BUFFERED", 2)  # so that a shard is finished soon
    shards = f"{web}/shards/{{00000..00007}}.tar"
    ranks = [stream(web, rank, ranks=2, workers=2, window=1, shards=shards) for rank in range(2)]
    before = [batch for rank in ranks for batch in itertools.islice(rank, 5)]
    state = StreamLoader.merged([rank.state_dict() for rank in ranks])
    finished = state["first"] + len(state["finished"])
    assert 1 < finished < 6 and state["pairs_done"] == 30
    one = stream(web, workers=1, window=1, shards=shards)
    one.load_state_dict(state)
    assert (one.epoch, one.batch) == (0, 10)
    rest = list(itertools.islice(itertools.chain(one, one), 2 * (8 - finished)))  # what the other shards hold
    seen = Counter(keys(before)), Counter(keys(rest))
    assert sorted(seen[0] | seen[1]) == pairs.keys
    assert sum((seen[0] & seen[1]).values()) == 30 - 6 * finished  # only of shards that were not finished
    other = stream(web, shards=shards, weight=0.5)
    with pytest.raises(UserError, match="belongs to other data"):
        other.load_state_dict(state)


def test_captions_of_the_tars_come_through_a_command(pairs: Pairs) -> None:
    shards = f"pipe:cat {pairs.root}/shards/{{00000..00007}}.tar"
    found = stream("", shards=shards, captions=None)
    epoch = list(found)
    assert sorted(keys(epoch)) == pairs.keys and not found.counters
    half = stream("", shards=shards, captions=str(pairs.root / "captions"), weight=0.5)
    assert half.pairs == 24 and len(set(keys(list(half)))) == 24


def test_a_shard_that_breaks_off_is_read_again_and_one_that_is_missing_is_named(
    web: str, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_shards, "PAUSE", 0)
    tar, once = pairs.tar(0), tmp_path / "once"
    broken = f"if mkdir {once} 2>/dev/null; then head -c 4000 {tar}; else cat {tar}; fi"
    problems = Counter[str]()
    assert [s["__key__"] for s in remote_shards.samples_in(f"pipe:{broken}", problems)] == pairs.keys[:6]
    assert once.exists() and not problems
    some = list(remote_shards.samples_in(f"pipe:head -c 4000 {tar}", problems))
    assert 0 < len(some) < 6 and problems == {"shards_truncated": 1}
    for shards, why in (
        (f"{web}/shards/{{00007..00008}}.tar", r"there is no http://\S+/00008.tar"),
        ("pipe:cat /none/{0..1}.tar", r"cannot open pipe:cat /none/[01].tar"),
    ):
        with pytest.raises(UserError, match=why):
            list(stream(web, shards=shards, pairs=12, workers=1))


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ({"shards": "s3://pairs/shards", "pairs": None}, "a stream cannot be counted"),
        ({"shards": "shards"}, "shards is local and others are streamed"),
        ({"weight": 0.0}, "the weights leave no shard"),
        ({"captions": None, "shards": "{web}/captions"}, "lists no \\*.tar"),
        ({"pairs": 2}, "2 pairs .* do not fill one global batch of 3"),
    ],
)
def test_a_source_that_cannot_be_streamed_is_one_sentence(web: str, source: dict[str, Any], why: str) -> None:
    if "{web}" in str(source.get("shards")):
        source = source | {"shards": source["shards"].format(web=web)}
    with pytest.raises(UserError, match=why):
        stream(web, **source)


def test_lists_and_images_of_a_bucket_are_read_like_local_ones(bucket: str, tmp_path: Path) -> None:
    files = fsspec.filesystem("s3")
    for part in (0, 1):
        rows = [f"{part}{n},http://a.b/{part}{n}.jpg,a caption {part}{n}\n" for n in range(3)]
        files.pipe(f"pairs/lists/part-{part}.csv", ("uid,url,caption\n" + "".join(rows)).encode())
    np.save(tmp_path / "uids.npy", np.array(["01", "12"]))
    files.put(str(tmp_path / "uids.npy"), "pairs/lists/uids.npy")
    card = resolve_card(PrepareConfig(f"{bucket}/lists/part-*.csv", "", uids=f"{bucket}/lists/uids.npy"))
    assert prepare(card, tmp_path / "list.parquet").n_in == 6
    assert sorted(pq.read_table(tmp_path / "list.parquet")["caption"].to_pylist()) == ["a caption 01", "a caption 12"]
    assert not list(tmp_path.glob(".*")), "no copies stay"
    with pytest.raises(UserError, match=r"there is no s3://pairs/lists/none\.csv"):
        prepare(resolve_card(PrepareConfig(f"{bucket}/lists/none.csv", "")), tmp_path / "none.parquet")

    files.put(text_beside(tmp_path / "own"), "pairs/own", recursive=True)
    config = IngestConfig(f"{bucket}/own", out=str(tmp_path / "shards"))
    card = resolve_ingest(config)
    assert ingest(card, config)[1].n_out == len(CAPTIONS)
    copies = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards.images").rglob("*.png")}
    files.pipe("pairs/own/dog.png", picture("bridge #3.png"))
    files.rm("pairs/own/two cats.png")
    assert ingest(card, config)[1].n_out == len(CAPTIONS) - 1
    changed = {path.name for path, when in copies.items() if not path.exists() or path.stat().st_mtime_ns != when}
    assert changed == {"dog.png", "two cats.png"}, "the others are not fetched again"


@pytest.mark.slow
def test_a_download_killed_while_it_sends_a_tar_is_finished_by_the_next(bucket: str, tmp_path: Path) -> None:
    write_images(tmp_path / "own")
    urls = [(tmp_path / "own" / name).as_uri() for name in CAPTIONS]
    write_list(tmp_path / "list.parquet", urls)
    (tmp_path / "web.yaml").write_text(f"title: T\nimage_root: {tmp_path}/own\n")
    stopped = (
        "import os, s3fs\n"
        "def cut(self, path, place, **_):\n"
        "    with self.open(place, 'wb') as file: file.write(open(path, 'rb').read(9)); os.kill(os.getpid(), 9)\n"
        "s3fs.S3FileSystem.put_file = cut\n"
        "from pathlib import Path\nfrom filip.data.cards import load_source\n"
        "from tests.data.downloads import download_first_shard\n"
        "where = Path('list.parquet'), Path('shards').resolve()\n"
        f"download_first_shard(load_source('web.yaml'), *where, tars='{bucket}/cut')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run([sys.executable, "-c", stopped], cwd=tmp_path, check=False, env=environment)
    assert killed.returncode == -signal.SIGKILL
    files, shards = fsspec.filesystem("s3"), tmp_path / "shards"
    assert list(shards.glob("_work/00000.*/00000.tar")) and not files.exists("pairs/cut/00000.tar")
    given = ["source=web.yaml", "list=list.parquet", "out=shards", f"tars={bucket}/cut", "processes=1"]
    subprocess.run([sys.executable, "-m", "filip.data.download", *given], cwd=tmp_path, check=True)
    assert address(shards / "00000.tar") == f"{bucket}/cut/00000.tar"
    samples = remote_shards.samples_in(f"{bucket}/cut/00000.tar", Counter())
    assert len(list(samples)) == len(urls)
    assert not list(shards.glob("_work/00000.*"))
