"""The download when a worker, the run or the disk fails: at any moment interruptible, and the rest is not lost."""

import io
import os
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pytest
import webdataset as wds

from filip.common.errors import UserError
from filip.data.cards import load_source, parse_card
from filip.data.download import download
from filip.data.fetching.shard_maker import SUFFIXES, ShardMaker, is_complete
from filip.data.fetching.workers import ShardDownloader, ShardWorkers, download_shards
from tests.data import hostile
from tests.data.downloads import DeadlyResizer, disk_with_room_for, write_list

COLUMNS = ["url", "caption"]
# Requests for a shard of 20 on a disk with room for 30,000 bytes; Python 3.14 first writes when it has 131,072.
BEFORE_IT_IS_FULL = 20 if io.DEFAULT_BUFFER_SIZE < 30_000 else 21


@pytest.mark.slow
def test_a_worker_in_a_call_that_never_returns_is_ended(tmp_path: Path, monkeypatch) -> None:
    """It opens a pipe that nobody writes to: as with a network disk that went away, no time-out reaches it."""
    # leaves 1 s an image and 3 s of time-outs
    for name, value in {"workers.SECONDS_PER_SHARD": 0, "workers.PATIENCE": 0, "workers.REFUSALS": 0}.items():
        monkeypatch.setattr(f"filip.data.fetching.{name}", value)
    monkeypatch.setattr("filip.common.worker_pool.TRIES", 2)
    for n in range(3):
        (tmp_path / f"{n}.jpg").write_bytes(hostile.plain())
    os.mkfifo(tmp_path / "3.jpg")
    settings = {"image_size": 32, "samples_per_shard": 2, "timeout": 1, "retries": 0, "threads": 2}
    card = parse_card({"image_root": str(tmp_path), "download": settings}, Path("c.yaml"))
    source = write_list(tmp_path / "list.parquet", [(tmp_path / f"{n}.jpg").as_uri() for n in range(4)])
    with pytest.raises(UserError, match=r"1 of 2 shards .*00001: its worker was killed \(.*\) or stuck"):
        download(source, tmp_path / "shards", card)
    assert [path.name for path in (tmp_path / "shards").glob("*.tar")] == ["00000.tar"]
    (tmp_path / "3.jpg").unlink()
    monkeypatch.setattr("filip.data.fetching.workers.SECONDS_PER_SHARD", 600)  # the rest may take its time
    assert download(source, tmp_path / "shards", card).dropped == {"missing_file": 1}


@pytest.mark.slow
def test_images_that_kill_their_worker_are_given_up_by_name_and_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("filip.data.fetching.shard_maker.CheckedResizer", DeadlyResizer)
    settings = {"image_size": 32, "samples_per_shard": 6, "threads": 2, "retries": 0}
    rules = {"image_rules": {"min_side": 0}, "allow_private_hosts": True}
    card = parse_card({"download": settings, **rules}, Path("c.yaml"))
    with hostile.hostile_server() as server:
        names = [f"image{n}" for n in range(9)]
        urls = [server.url(name) for name in [*names[:3], "jpeg", "webp", *names[3:]]]
        source = write_list(tmp_path / "list.parquet", urls)
        fragment = download(source, tmp_path / "shards", card)
        asked = server.requests.total()
        assert download(source, tmp_path / "shards", card) == fragment
        assert server.requests.total() == asked
    assert fragment.n_out == 9 and fragment.dropped == {"crashed": 2}
    named = " ".join(fragment.notes["examples"]["crashed"])
    assert f"{server.url('jpeg')} (the process that decodes it dies" in named and server.url("webp") in named
    assert not list(tmp_path.rglob("*.progress"))


class OneAfterTheOther(ShardWorkers):
    """A pool whose workers are this very process."""

    @contextmanager
    def pool(self, alone: bool):
        def submit(shard: int) -> Future:
            future: Future = Future()
            try:
                future.set_result(self.function(shard))
            except Exception as error:
                future.set_exception(error)
            return future

        yield submit

    def in_flight(self, alone: bool) -> int:
        return 1


def test_a_full_disk_ends_the_download_at_once(tmp_path: Path, monkeypatch) -> None:
    settings = {"image_size": 48, "threads": 2, "samples_per_shard": 20}
    rules = {"image_rules": {"min_side": 0}, "allow_private_hosts": True}
    card = parse_card({"download": settings, **rules}, Path("c.yaml"))
    out = tmp_path / "shards"
    out.mkdir()
    with hostile.hostile_server() as server:
        source = write_list(tmp_path / "list.parquet", [server.url(f"image{i}") for i in range(100)], per_shard=20)
        downloader = ShardDownloader(card=card, final_folder=out, listed=source, columns=COLUMNS)
        monkeypatch.setattr("filip.data.fetching.workers.ShardWorkers", OneAfterTheOther)
        done: list[int] = []
        full = pytest.raises(UserError, match=r"shards cannot be written to: .*make room and run the same")
        with disk_with_room_for(30_000), full:
            download_shards(downloader, range(5), done.append)
        assert not done and server.requests.total() < BEFORE_IT_IS_FULL, "neither the rest of the shard nor the next"
        assert {path.suffix for path in out.rglob("*") if path.is_file()} <= {".progress"}
        assert download_shards(downloader, range(5), done.append) == {}
    assert done == list(range(5)) and len(list(wds.WebDataset(str(out / "00000.tar"), shardshuffle=False))) == 20


def test_who_is_killed_once_a_shard_is_complete_leaves_no_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.yaml").write_text("title: T\n")
    monkeypatch.setattr("filip.data.fetching.shard_maker.InProgress.close", lambda *_: None)
    with ShardMaker(card=load_source(tmp_path / "c.yaml"), final_folder=tmp_path).staged(3) as (staging, _):
        for suffix in SUFFIXES:
            (staging / f"00003{suffix}").touch()
    assert is_complete(tmp_path, 3) and list((tmp_path / "_work").iterdir()) == []
