"""Shards that are not local are streamed: every pair once a pass, and a resumed run goes on at the shard."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from filip.data.loading import remote_shards, streaming
from filip.data.loading.config import DataConfig, Source, StreamConfig
from filip.data.loading.streaming import StreamLoader, build_stream_loader
from filip.errors import UserError
from tests.data.loaders import keys
from tests.data.pair_shards import Pairs, number_of, write_pairs

pytestmark = pytest.mark.filterwarnings("ignore:.*worker processes in total")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Write eight shards of six pairs."""
    return write_pairs(tmp_path_factory.mktemp("streamed"), [6] * 8)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def web(pairs: Pairs) -> Iterator[str]:
    """Serve the folder by HTTP."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(pairs.root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


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


def stream(root: str, rank: int = 0, ranks: int = 1, workers: int = 0, **source: Any) -> StreamLoader:
    given = {"shards": f"{root}/shards", "captions": f"{root}/captions", "pairs": 48} | source
    data = DataConfig(sources=[Source(**given)], workers=workers, auto_augment=0)
    config = StreamConfig(data, batch_size=3, image_size=16, seed=3, rank=rank, world_size=ranks)
    return build_stream_loader(config)


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


def test_a_resumed_run_reads_the_shards_that_are_not_finished(
    web: str, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks with two workers stop; one with one worker goes on: nothing is lost, finished shards do not return."""
    monkeypatch.setattr(streaming, "BUFFER", 2)  # so that a shard is finished soon
    shards = f"{web}/shards/{{00000..00007}}.tar"
    ranks = [stream(web, rank, ranks=2, workers=2, shards=shards) for rank in range(2)]
    before = [batch for rank in ranks for batch in itertools.islice(rank, 5)]
    state = StreamLoader.merged([rank.state_dict() for rank in ranks])
    finished = state["first"] + len(state["finished"])
    assert 1 < finished < 6 and state["pairs_done"] == 30
    one = stream(web, workers=1, shards=shards)
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
        ("pipe:cat /none/{0..1}.tar", r"cannot read pipe:cat /none/[01].tar"),
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
