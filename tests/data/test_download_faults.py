"""The download when a worker, the run or the disk fails: at any moment interruptible, and the rest is not lost."""

import io
import os
import signal
import time
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import webdataset as wds

from filip.common.errors import UserError
from filip.data.cards import parse_card
from filip.data.download import download
from filip.data.fetching.workers import SHARD_TRIES, LocalWorkers, ShardDownloader, download_shards, run_shard
from tests.data import hostile
from tests.data.downloads import POISON, DeadlyResizer, Poisoned, disk_with_room_for, hashes, write_list
from tests.support.processes import Process, kill_at_random

KILLED = """
from pathlib import Path
from filip.data.cards import parse_card
from filip.data.download import download
if __name__ == "__main__":
    settings = {"image_size": 32, "timeout": 5, "samples_per_shard": 40, "threads": 8, "retry_passes": 0}
    rules = {"image_rules": {"min_side": 0}, "allow_private_hosts": True}
    card = parse_card({"download": settings, **rules}, Path("k.yaml"))
    print(download("list.parquet", "shards", card).n_out)
"""

COLUMNS = ["url", "caption"]
# Requests for a shard of 20 on a disk with room for 30,000 bytes; Python 3.14 first writes when it has 131,072.
BEFORE_IT_IS_FULL = 20 if io.DEFAULT_BUFFER_SIZE < 30_000 else 21


def start(folder: Path) -> Process:
    for name in ("printed", "errors"):
        (folder / name).write_text("")
    return Process([str(folder / "run.py")], log=folder / "printed", errors=folder / "errors", cwd=folder)


def wait_for_shards(shards: Path, count: int) -> None:
    deadline = time.monotonic() + 500
    while len(list(shards.glob("*_stats.json"))) < count and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.slow
def test_kill_9_of_a_worker_and_then_of_everything_gives_the_same_bytes(tmp_path: Path) -> None:
    with hostile.hostile_server() as server:
        # the URLs, and so the JSON in the tars, are the same for both: one server
        urls = [server.url(f"image{i}" if i % 9 else "nothing") for i in range(600)]
        folders = [tmp_path / "whole", tmp_path / "killed"]
        for folder in folders:
            folder.mkdir()
            write_list(folder / "list.parquet", urls)
            (folder / "run.py").write_text(KILLED)
        whole, killed = (folder / "shards" for folder in folders)
        started = time.monotonic()
        assert start(folders[0]).wait(500) == 0, (folders[0] / "errors").read_text()
        assert (folders[0] / "printed").read_text().split()[-1] == str(600 - 67)
        took = time.monotonic() - started

        running = start(folders[1])
        wait_for_shards(killed, 1)
        children = psutil.Process(running.pid).children(recursive=True)
        workers = [c for c in children if c.ppid() != running.pid]  # the fork server's children
        os.kill(workers[-1].pid, signal.SIGKILL)
        wait_for_shards(killed, 4)
        children = psutil.Process(running.pid).children(recursive=True)
        running.kill()
        psutil.wait_procs(children, timeout=300)
        assert "worker was killed" in (folders[1] / "errors").read_text(), "and the run went on by itself"
        assert not [c for c in children if c.is_running() and c.status() != psutil.STATUS_ZOMBIE]
        assert len(list(killed.glob("*_stats.json"))) < 15, "killed too late to show anything"
        kill_at_random(start(folders[1]), took)

        assert start(folders[1]).wait(500) == 0, (folders[1] / "errors").read_text()
        assert (folders[1] / "printed").read_text().split()[-1] == str(600 - 67)
    assert len(hashes(whole)) == 30 and hashes(whole) == hashes(killed)
    assert {p.name for p in (killed / "_work").iterdir()} == {"plan.json", "lock"}


@pytest.mark.slow
def test_a_worker_in_a_call_that_never_returns_is_ended(tmp_path: Path, monkeypatch) -> None:
    """It opens a pipe that nobody writes to: as with a network disk that went away, no time-out reaches it."""
    # leaves 1 s an image and 3 s of time-outs
    for name, value in {
        "workers.SECONDS_PER_SHARD": 0,
        "workers.PATIENCE": 0,
        "workers.REFUSALS": 0,
        "workers.SHARD_TRIES": 2,
    }.items():
        monkeypatch.setattr(f"filip.data.fetching.{name}", value)
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
def test_a_shard_that_kills_every_worker_fails_alone(tmp_path: Path) -> None:
    settings = {"image_size": 32, "samples_per_shard": 1, "threads": 1}
    card = parse_card({"image_root": str(tmp_path), "download": settings}, Path("c.yaml"))
    (tmp_path / "a.jpg").write_bytes(hostile.plain())
    source = write_list(tmp_path / "list.parquet", [(tmp_path / "a.jpg").as_uri()] * 9)
    out = tmp_path / "shards"
    out.mkdir()
    downloader = Poisoned(card=card, final_folder=out, listed=source, columns=COLUMNS)
    done: list[int] = []
    failures = download_shards(LocalWorkers(downloader, 2), range(9), done.append)
    assert list(failures) == [POISON] and "killed" in failures[POISON] and SHARD_TRIES > 1
    assert sorted(done) == [shard for shard in range(9) if shard != POISON]
    assert len(list(out.glob("*_stats.json"))) == 8


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


class OneAfterTheOther(LocalWorkers):
    """A pool whose workers are this very process."""

    @contextmanager
    def pool(self, alone: bool):
        def submit(part) -> Future:
            future: Future = Future()
            future.set_result(run_shard(self.downloader, part, 600))
            return future

        yield submit

    def in_flight(self, alone: bool) -> int:
        return 1


def test_a_full_disk_ends_the_download_at_once(tmp_path: Path) -> None:
    settings = {"image_size": 48, "threads": 2, "samples_per_shard": 20}
    rules = {"image_rules": {"min_side": 0}, "allow_private_hosts": True}
    card = parse_card({"download": settings, **rules}, Path("c.yaml"))
    out = tmp_path / "shards"
    out.mkdir()
    with hostile.hostile_server() as server:
        source = write_list(tmp_path / "list.parquet", [server.url(f"image{i}") for i in range(100)])
        workers = OneAfterTheOther(ShardDownloader(card=card, final_folder=out, listed=source, columns=COLUMNS), 1)
        done: list[int] = []
        full = pytest.raises(UserError, match=r"shards cannot be written to: .*make room and run the same")
        with disk_with_room_for(30_000), full:
            download_shards(workers, range(5), done.append)
        assert not done and server.requests.total() < BEFORE_IT_IS_FULL, "neither the rest of the shard nor the next"
        assert {path.suffix for path in out.rglob("*") if path.is_file()} <= {".feather", ".progress"}
        assert download_shards(workers, range(5), done.append) == {}
    assert done == list(range(5)) and len(list(wds.WebDataset(str(out / "00000.tar"), shardshuffle=False))) == 20
