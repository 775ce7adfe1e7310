"""Real img2dataset against a hostile server: every URL in one bucket, every image right, any moment interruptible."""

import hashlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds

from filip.data.cards import SourceCard, parse_card
from filip.data.download import download, sweep
from filip.data.loading.shard_index import index_of, index_path, shard_index
from filip.data.loading.tar_index import scan_tar
from filip.errors import UserError
from filip.files import locked
from tests.data import hostile
from tests.data.deadly import DeadlyResizer
from tests.data.killing import kill_at_random
from tests.data.test_image_rules import EXPECTED, PROBLEMS, assert_colours

HTTP = {
    "nothing": "http_404",
    "status_403": "http_403",
    "status_500": "http_5xx",
    "hang": "timeout",
    "drip": "timeout",
    "drip_header": "timeout",
    "loop": "redirect_loop",
    "opted_out": "opted_out",
    "cut_off": "cut_off",
    "reset": "connection",
}


def write_list(path: Path, urls: list[str], **columns) -> Path:
    captions = [f"caption {i}" for i in range(len(urls))]
    pq.write_table(pa.table({"url": urls, "caption": captions, **columns}), path)
    return path


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every tar and Parquet file."""
    files = [*folder.glob("*.tar"), *folder.glob("*.parquet")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_every_url_of_a_hostile_server_ends_in_one_bucket(tmp_path: Path) -> None:
    card = parse_card(
        {
            "name": "hostile",
            "allow_private_hosts": True,
            "download": {
                "image_size": 120,
                "timeout": 1,
                "retries": 0,
                "retry_passes": 1,
                "samples_per_shard": 20,
                "normal_success_rate": 0.9,
            },
        },
        Path("hostile.yaml"),
    )
    reasons = {**HTTP, **PROBLEMS, **dict.fromkeys([*EXPECTED, "moved", "café", "flaky"], "ok")}
    names = sorted(reasons, key=lambda name: hashlib.md5(name.encode()).hexdigest())
    with hostile.hostile_server(slow=1) as server:
        urls = [server.url(name) for name in names]
        artists = [f"artist {name}" for name in names]
        source = write_list(tmp_path / "list.parquet", urls, artist=artists, rank=list(range(len(urls))))
        out = tmp_path / "shards"
        started = time.monotonic()
        fragment = download(source, out, card)
        assert time.monotonic() - started < 60
        asked = server.requests.copy()
        again = time.monotonic()
        assert download(source, out, card) == fragment, "a second run does nothing"
        assert time.monotonic() - again < 2 and server.requests == asked

    # the funnel: each URL once, in the bucket that its server asked for
    wanted = Counter(reasons.values())
    assert fragment.n_in == len(names) and fragment.n_out == wanted.pop("ok")
    assert fragment.dropped == dict(wanted)
    transient = ("http_5xx", "timeout", "cut_off", "connection")
    assert fragment.notes["retried"] == [sum(wanted[r] for r in transient) + 1], "flaky is retried, and comes"
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
    assert {p.name for p in (out / "_work").iterdir()} == {"plan.json", "lock", "retry_1.parquet"}

    # a folder holds images of one size
    card.download.image_size = 100
    with pytest.raises(UserError, match="filled with another image_size than"):
        download(source, out, card)


KILLED = """
from pathlib import Path
from filip.data.cards import parse_card
from filip.data.download import download, sweep
if __name__ == "__main__":
    settings = {"image_size": 32, "timeout": 5, "samples_per_shard": 40, "threads": 8, "retry_passes": 0}
    rules = {"image_rules": {"min_side": 0}, "allow_private_hosts": True}
    card = parse_card({"download": settings, **rules}, Path("k.yaml"))
    print(download("list.parquet", "shards", card).n_out)
"""


def start(folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "run.py"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


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
        running = start(folders[0])
        output, errors = running.communicate(timeout=500)
        assert running.returncode == 0, errors
        assert output.split()[-1] == str(600 - 67)
        took = time.monotonic() - started

        running = start(folders[1])
        wait_for_shards(killed, 1)
        children = psutil.Process(running.pid).children(recursive=True)
        workers = [c for c in children if c.ppid() != running.pid]  # the fork server's children
        os.kill(workers[-1].pid, signal.SIGKILL)
        wait_for_shards(killed, 4)
        children = psutil.Process(running.pid).children(recursive=True)
        running.kill()
        _, errors = running.communicate(timeout=300)
        assert "worker was killed" in errors, "and the run went on by itself"
        psutil.wait_procs(children, timeout=5)
        assert not [c for c in children if c.is_running() and c.status() != psutil.STATUS_ZOMBIE]
        assert len(list(killed.glob("*_stats.json"))) < 15, "killed too late to show anything"
        kill_at_random(start(folders[1]), took)

        running = start(folders[1])
        output, errors = running.communicate(timeout=500)
        assert running.returncode == 0, errors
        assert output.split()[-1] == str(600 - 67)
    assert len(hashes(whole)) == 30 and hashes(whole) == hashes(killed)
    assert {p.name for p in (killed / "_work").iterdir()} == {"plan.json", "lock"}


@pytest.mark.slow
def test_a_worker_in_a_call_that_never_returns_is_ended(tmp_path: Path, monkeypatch) -> None:
    """Opening a pipe that nobody writes to: like a network disk that went away, no time-out reaches it."""
    # leaves 1 s an image and 3 s of time-outs
    for name, value in {
        "shards.SECONDS_PER_SHARD": 0,
        "shards.LONGEST_WAIT": 0,
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
    monkeypatch.setattr("filip.data.fetching.shards.SECONDS_PER_SHARD", 600)  # the rest may take its time
    assert download(source, tmp_path / "shards", card).dropped == {"missing_file": 1}


@pytest.mark.slow
def test_a_shard_that_kills_every_worker_fails_alone(tmp_path: Path) -> None:
    from filip.data.fetching.img2dataset_setup import make_downloader
    from filip.data.fetching.shards import ListReader
    from filip.data.fetching.workers import SHARD_TRIES, LocalWorkers, download_shards
    from tests.data.poisoned import POISON, Poisoned

    settings = {"image_size": 32, "samples_per_shard": 1, "threads": 1}
    card = parse_card({"image_root": str(tmp_path), "download": settings}, Path("c.yaml"))
    (tmp_path / "a.jpg").write_bytes(hostile.plain())
    source = write_list(tmp_path / "list.parquet", [(tmp_path / "a.jpg").as_uri()] * 9)
    out = tmp_path / "shards"
    out.mkdir()
    downloader = make_downloader(card, out, ["url", "caption"], [])
    downloader.__class__ = Poisoned
    reader = ListReader(source, 1, 0, ["url", "caption"], out / "_work")
    reader.wanted = set(range(9))
    done: list[int] = []
    failures = download_shards(LocalWorkers(downloader, 2), downloader, reader, done.append)
    assert list(failures) == [POISON] and "killed" in failures[POISON] and SHARD_TRIES > 1
    assert sorted(done) == [shard for shard in range(9) if shard != POISON]
    assert len(list(out.glob("*_stats.json"))) == 8


@pytest.mark.slow
def test_a_lost_shard_is_made_again_although_a_retry_pass_exists(tmp_path: Path) -> None:
    settings = {"image_size": 32, "samples_per_shard": 4, "threads": 2, "retries": 0, "retry_passes": 1}
    rules = {"image_rules": {"min_side": 0}, "allow_private_hosts": True}
    card = parse_card({"download": settings, **rules}, Path("c.yaml"))
    out = tmp_path / "shards"
    with hostile.hostile_server() as server:
        names = ["image0", "image1", "flaky", "image3", "image4", "image5", "nothing", "image7"]
        source = write_list(tmp_path / "list.parquet", [server.url(name) for name in names])
        fragment = download(source, out, card)
        assert fragment.n_out == 7 and fragment.notes["retried"] == [1]
        before = hashes(out)
        (out / "00000.tar").unlink()
        (out / "00000_stats.json").unlink()
        (out / "00001.tar").unlink()
        assert download(source, out, card).dropped == fragment.dropped == {"http_404": 1}
    after = hashes(out)
    assert len(before) == 6 and {name for name in before if before[name] != after[name]} == {"00000.parquet"}
    assert pq.read_table(out / "00000.parquet")["error_message"].to_pylist()[2] == "retried: in a later pass"
    written = pq.read_schema(out / "00001.parquet").metadata[b"tar_sha256"].decode()
    assert written == after["00001.tar"]


@pytest.mark.slow
def test_images_that_kill_their_worker_are_given_up_by_name_and_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("filip.data.fetching.img2dataset_setup.CheckedResizer", DeadlyResizer)
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


def test_what_a_killed_worker_was_decoding_is_known_until_all_is_done(tmp_path: Path) -> None:
    def left(finished: bool) -> set[str]:
        (tmp_path / "00003.host.17").mkdir(exist_ok=True)
        for name in ("plan.json", "00003.feather", "00003.progress"):
            (tmp_path / name).touch()
        sweep(tmp_path, finished)
        return {path.name for path in tmp_path.iterdir()}

    assert left(False) == {"plan.json", "00003.progress"}
    assert left(True) == {"plan.json"}


def test_a_missing_cluster_engine_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    card = parse_card({"name": "c", "download": {"distributor": "ray"}}, Path("c.yaml"))
    source = write_list(tmp_path / "list.parquet", ["http://127.0.0.1:9/a.jpg"])
    with pytest.raises(UserError, match="pip install ray"):
        download(source, tmp_path / "out", card)


def test_mistakes_are_named_before_anything_is_fetched(tmp_path: Path) -> None:
    card = SourceCard("x")
    with pytest.raises(UserError, match="no list at"):
        download(tmp_path / "none.parquet", tmp_path / "out", card)
    reserved = write_list(tmp_path / "reserved.parquet", ["http://127.0.0.1:9/a.jpg"], width=[1], key=["k"])
    with pytest.raises(UserError, match=r"columns key, width, which img2dataset writes itself"):
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


@contextmanager
def disk_with_room_for(size: int) -> Iterator[None]:
    """No file of this process can grow beyond ``size`` bytes: to a program the same as a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_fails_the_shard_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    """img2dataset itself prints the error, counts the lost samples as successes and calls the shard done."""
    from filip.data.fetching.img2dataset_setup import make_downloader
    from filip.data.fetching.shards import ListReader

    settings = {"image_size": 48, "threads": 2, "samples_per_shard": 20}
    rules = {"image_rules": {"min_side": 0}, "allow_private_hosts": True}
    card = parse_card({"download": settings, **rules}, Path("c.yaml"))
    with hostile.hostile_server() as server:
        source = write_list(tmp_path / "list.parquet", [server.url(f"image{i}") for i in range(20)])
        out = tmp_path / "shards"
        out.mkdir()
        downloader = make_downloader(card, out, ["url", "caption"], [])
        reader = ListReader(source, 20, 0, ["url", "caption"], out / "_work")
        reader.wanted = {0}
        (row,) = reader
        with disk_with_room_for(30_000), pytest.raises(OSError):
            downloader.download_shard(row)
        assert server.requests.total() < 20, "what cannot be stored is not asked for"
        assert {path.suffix for path in out.rglob("*") if path.is_file()} <= {".feather", ".progress"}
        (row,) = reader
        downloader.download_shard(row)
    assert {path.name[5:] for path in out.glob("0*")} == {".tar", ".index", ".parquet", "_stats.json"}
    assert len(list(wds.WebDataset(str(out / "00000.tar"), shardshuffle=False))) == 20


class OneAfterTheOther:
    """Workers in this very process."""

    shards_per_pool, one_death_ends_the_pool = 1000, False

    def __init__(self, downloader) -> None:
        self.downloader = downloader

    @contextmanager
    def pool(self, alone: bool):
        from filip.data.fetching.shards import run_shard

        def submit(row) -> Future:
            future: Future = Future()
            future.set_result(run_shard(self.downloader, row, 600))
            return future

        yield submit

    def in_flight(self, alone: bool) -> int:
        return 1


def test_a_full_disk_ends_the_download_at_once(tmp_path: Path) -> None:
    from filip.data.fetching.img2dataset_setup import make_downloader
    from filip.data.fetching.shards import ListReader
    from filip.data.fetching.workers import download_shards

    settings = {"image_size": 48, "threads": 2, "samples_per_shard": 20}
    rules = {"image_rules": {"min_side": 0}, "allow_private_hosts": True}
    card = parse_card({"download": settings, **rules}, Path("c.yaml"))
    out = tmp_path / "shards"
    out.mkdir()
    with hostile.hostile_server() as server:
        source = write_list(tmp_path / "list.parquet", [server.url(f"image{i}") for i in range(100)])
        reader = ListReader(source, 20, 0, ["url", "caption"], out / "_work")
        reader.wanted = set(range(5))
        workers = OneAfterTheOther(make_downloader(card, out, ["url", "caption"], []))
        done: list[int] = []
        full = pytest.raises(UserError, match=r"shards cannot be written to: .*make room and run the same")
        with disk_with_room_for(30_000), full:
            download_shards(workers, workers.downloader, reader, done.append)
        assert not done and server.requests.total() < 20, "neither the rest of the shard nor the next"
        reader.wanted = set(range(5))
        assert download_shards(workers, workers.downloader, reader, done.append) == {}
    assert done == list(range(5))


def test_writer_reports_what_img2dataset_would_swallow(tmp_path: Path) -> None:
    from filip.data.fetching.ordered_writer import OrderedWriter

    schema = pa.schema([("key", pa.string()), ("when", pa.string())])
    writer = OrderedWriter(3, str(tmp_path), True, 5, schema, "jpg")
    writer.write(b"image b", "b", "second", {"key": "b", "when": "x"})
    writer.write(None, "c", "no image", {"key": "c", "when": "z"})
    writer.write(b"image a", "a", None, {"key": "a", "when": "y"})
    writer.close()
    (first, second) = wds.WebDataset(str(tmp_path / "00003.tar"), shardshuffle=False)
    assert (first["__key__"], first["jpg"], first["txt"]) == ("a", b"image a", b"")
    assert (second["__key__"], second["txt"]) == ("b", b"second")
    assert pq.read_table(tmp_path / "00003.parquet")["key"].to_pylist() == ["a", "b", "c"]
    writer = OrderedWriter(4, str(tmp_path), True, 5, schema, "jpg")
    with pytest.raises(TypeError):
        writer.write(b"x", "a", "c", {"key": "a", "when": io.BytesIO()})
    with pytest.raises(TypeError):
        writer.close()
    assert not (tmp_path / "00004.tar").exists()
