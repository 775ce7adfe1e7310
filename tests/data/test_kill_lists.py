"""kill -9 of the stages around the download, at several moments: a rerun gives the bytes of an uninterrupted run."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.killing import kill_at_random, kill_group
from tests.data.pair_shards import write_pairs
from tests.support.captions import synthetic_list
from tests.support.processes import Process

SMALL_BLOCKS = "import filip.data.lists.duckdb_io as d; d.ROWS_PER_GROUP = 250; "
# in the other languages' lists no word is looked up: it takes three seconds of every start to read them
ENGLISH = "import filip.data.lists.word_frequencies as w; w._languages = lambda: {'en'}; "
PREPARE = "from filip.data.prepare import PrepareConfig as C, main; "
RULES = "from filip.data.text_rules import TextRulesConfig as C, main; "
RUN = "from filip.command import run_command; run_command(main, C)"


def start(program: str, *arguments: str) -> Process:
    return Process(["-c", program + RUN, *arguments])


def kill_when(running: Process, moment: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not moment():
        assert running.poll() is None, "it was over before the moment came"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    kill_group(running)


def timed(stage: Callable[[str], Process], out: str) -> float:
    """Run a stage to its end and return the seconds."""
    started = time.monotonic()
    assert stage(out).wait(300) == 0
    return time.monotonic() - started


@pytest.mark.slow
def test_score_and_select_survive_kill_9(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path, [40] * 8, size=64)
    (tmp_path / "c.yaml").write_text("title: T\n")

    def scored(out: str) -> Process:
        return start(
            "from filip.data.score import ScoreConfig as C, main; ",
            f"source={tmp_path}/c.yaml",
            f"shards={pairs.source.shards}",
            f"captions={pairs.source.captions}",
            f"out={tmp_path}/{out}",
            f"summary={tmp_path}/{out}.json",
            "max_distance=2",
            "processes=1",
        )

    took = timed(scored, "whole")
    kill_when(scored("killed"), lambda: any((tmp_path / "killed").rglob("0*.parquet")))
    kill_at_random(scored("killed"), took)
    timed(scored, "killed")
    one, two = (sorted((tmp_path / out).glob("*.parquet")) for out in ("whole", "killed"))
    assert len(one) == 8 and [p.read_bytes() for p in one] == [p.read_bytes() for p in two]
    assert (tmp_path / "whole.json").read_text() == (tmp_path / "killed.json").read_text()

    def selected(out: str) -> Process:
        return start(
            "from filip.data.select import SelectConfig as C, main; ",
            f"source={tmp_path}/c.yaml",
            f"captions={tmp_path}/whole",
            f"out={tmp_path}/{out}",
            f"funnel={tmp_path}/{out}.json",
            "keep=[phash % 2 = 0]",
        )

    timed(selected, "chosen")
    kill_when(selected("again"), lambda: any((tmp_path / "again").glob("0*.parquet")))
    timed(selected, "again")
    one, two = (sorted((tmp_path / out).glob("*.parquet")) for out in ("chosen", "again"))
    assert len(one) == 8 and [p.read_bytes() for p in one] == [p.read_bytes() for p in two]
    assert (tmp_path / "chosen.json").read_text() == (tmp_path / "again.json").read_text()


@pytest.mark.slow
def test_prepare_and_text_rules_survive_kill_9(tmp_path: Path) -> None:
    synthetic_list(tmp_path / "source.parquet", 5_000)
    (tmp_path / "c.yaml").write_text("text_rules: {max_repeats: 3}\n")

    def prepare(out: str) -> Process:
        return start(SMALL_BLOCKS + PREPARE, f"source={tmp_path}/source.parquet", f"out={tmp_path}/{out}")

    def rules(out: str) -> Process:
        return start(
            SMALL_BLOCKS + ENGLISH + RULES,
            f"source={tmp_path}/c.yaml",
            f"list={tmp_path}/list.parquet",
            f"out={tmp_path}/{out}",
            f"funnel={tmp_path}/{out}.json",
            "processes=1",
        )

    timed(prepare, "list.parquet")
    work = tmp_path / ".again.parquet.work"
    kill_when(prepare("again.parquet"), work.exists)
    assert not (tmp_path / "again.parquet").exists()
    timed(prepare, "again.parquet")

    took = timed(rules, "kept.parquet")
    judged = tmp_path / ".kept_again.parquet.work" / "judged"
    moments = [lambda: (judged.parent / "unique.parquet").exists(), lambda: len(list(judged.glob("[!.]*"))) >= 9]
    for moment in moments:
        kill_when(rules("kept_again.parquet"), moment)
        assert not (tmp_path / "kept_again.parquet").exists()
    kill_at_random(rules("kept_again.parquet"), took)
    timed(rules, "kept_again.parquet")

    for one, two in (("list.parquet", "again.parquet"), ("kept.parquet", "kept_again.parquet")):
        assert (tmp_path / one).read_bytes() == (tmp_path / two).read_bytes()
    reports = [(tmp_path / f"{name}.json").read_text() for name in ("kept.parquet", "kept_again.parquet")]
    assert reports[0] == reports[1]
    assert not list(tmp_path.glob(".*"))
