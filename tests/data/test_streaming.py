"""Shards in a bucket or on a server are read through a local cache, exactly as local ones."""

import itertools
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from filip.common.errors import UserError
from filip.loading import loader as loading
from filip.loading.config import Source
from tests.data.pair_shards import Pairs, assert_same, keys, loader, write_pairs

pytestmark = pytest.mark.filterwarnings("ignore:.*worker processes in total")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return write_pairs(tmp_path_factory.mktemp("streamed"), [6] * 8)


class _Quiet(SimpleHTTPRequestHandler):
    send_half = False  # of each tar, and then hang up

    def log_message(self, *_: Any) -> None:
        pass

    def copyfile(self, source: Any, outputfile: Any) -> None:
        content = source.read()
        outputfile.write(content[: len(content) // 2] if self.send_half and self.path.endswith(".tar") else content)


@contextmanager
def served(folder: Path) -> Iterator[str]:
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


def source(root: str, **changes: Any) -> Source:
    return Source(**{"shards": f"{root}/shards", "captions": f"{root}/captions"} | changes)


@pytest.mark.slow
def test_ten_legs_of_a_fifth_of_an_epoch_are_two_undisturbed_local_ones(
    web: str, pairs: Pairs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each leg has another number of workers, one of two caches, and room for two of eight tars."""
    local, room = loader(pairs), 2.5 * pairs.tar(0).stat().st_size / 1e9
    expected = [batch for _ in range(2) for batch in local]
    legs: list[dict[str, Any]] = []
    state = None
    for leg in range(10):
        options = {"cache": str(tmp_path / str(leg % 2)), "cache_gb": room, "workers": leg % 3}
        streamed = loader([source(web, shards=f"{web}/shards/{{00000..00007}}.tar")], **options)
        if state is not None:
            streamed.load_state_dict(state)
        batches = itertools.chain.from_iterable(itertools.repeat(streamed))
        legs += itertools.islice(batches, (leg + 1) * len(expected) // 10 - len(legs))
        state = streamed.state_dict()
        assert len(list(Path(options["cache"]).glob("tars/*.tar"))) <= 2 + leg % 3, "each worker may fetch one"
    assert_same(legs, expected)
    assert (state["epoch"], state["pairs_done"]) == (1, 48) and "have changed" not in caplog.text
    assert all(count == 2 for count in Counter(keys(legs)).values()) and sorted({*keys(legs)}) == pairs.keys


@pytest.mark.slow
@pytest.mark.parametrize("captions", [True, False])
def test_two_ranks_read_every_pair_of_a_bucket_once_an_epoch(
    bucket: str, pairs: Pairs, tmp_path: Path, captions: bool
) -> None:
    changes = {} if captions else {"captions": None}
    options = {"cache": str(tmp_path), "batch_size": 3, "world_size": 2, "workers": 2}
    ranks = [loader([source(bucket, **changes)], rank=rank, **options) for rank in range(2)]
    epoch = [batch for rank in ranks for batch in rank]
    assert sorted(keys(epoch)) == pairs.keys and not ranks[0].counters
    assert "8 shards, 8 of them fetched into" in ranks[0].describe()
    here = Source(pairs.source.shards, pairs.source.captions if captions else None)
    assert_same(epoch[:8], list(loader([here], batch_size=3, world_size=2)))


def test_a_tar_that_changes_is_fetched_again_and_one_that_breaks_off_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "PAUSES", (0, 0))
    data = write_pairs(tmp_path / "data", [6, 6])
    with served(data.root) as address:
        options = {"cache": str(tmp_path / "cache"), "batch_size": 6, "shuffle_window_shards": 1}
        given = [source(address, shards=f"{address}/shards/{{00000..00001}}.tar")]
        first = list(loader(given, **options))
        other = write_pairs(tmp_path / "other", [7, 6], size=30)
        for shard in range(2):
            for name in (data.tar(shard), data.sidecar(shard)):
                name.write_bytes((other.root / name.relative_to(data.root)).read_bytes())
                os.utime(name, (1, 1))  # a server tells whole seconds
        assert_same(list(loader(given, **options)), list(loader(other, **options)))
        monkeypatch.setattr(_Quiet, "send_half", True)
        with pytest.raises(UserError, match=r"cannot open http://\S+/0000\d.tar: \w+: "):
            list(loader(given, **options | {"cache": str(tmp_path / "empty")}))
    assert not list((tmp_path / "empty" / "tars").glob("*")) and len(first) == 2


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"shards": "{web}/shards/{{00007..00008}}.tar"}, r"there is no http://\S+/00008.tar; does data.sources"),
        ({"shards": "{web}/captions"}, r"lists no \*.tar"),
        ({"shards": "{web}/{{shards,shards}}/00000.tar"}, "each address must end in a NAME.tar of its own"),
        ({"captions": "{web}/nowhere"}, r"no caption side-cars: .* has no"),
    ],
)
def test_shards_that_are_not_there_are_one_sentence(
    web: str, tmp_path: Path, changes: dict[str, str], why: str
) -> None:
    given = {name: value.format(web=web) for name, value in changes.items()}
    with pytest.raises(UserError, match=why):
        loader([source(web, **given)], cache=str(tmp_path))
