"""kill -9 of ingest: a rerun gives the bytes of an uninterrupted run."""

import json
import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from filip.data.cards import load_source
from filip.data.fetching.shard_maker import SUFFIXES, ShardMaker, is_complete
from tests.data.test_ingest import contents
from tests.support.processes import Process, kill_at_random


def command(out: Path, card_path: Path) -> Process:
    arguments = [f"source={card_path}", f"out={out}", f"funnel={out}.json", f"text_funnel={out}.texts.json"]
    return Process(["-m", "filip.data.ingest", *arguments])


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_ingest_survives_kill_9(tmp_path: Path) -> None:
    """It is killed a few times here; FILIP_KILLS=20 for more, as before a release. A folder that is full is begun anew.

    The moments follow progress, not the clock: on a busy machine they would all fall into the imports.
    """
    rng = np.random.default_rng(0)
    (tmp_path / "own").mkdir()
    for n in range(120):
        noise = rng.integers(0, 255, (300, 300, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "own" / f"{n}.jpg")
        (tmp_path / "own" / f"{n}.txt").write_text(f"picture number {n} of many\nnoise that nobody names {n}")
    settings = {"image_size": 128, "processes": 2, "samples_per_shard": 10}
    rules = {"language": False, "max_repeats": 0}
    one = tmp_path / "mine.yaml"
    one.write_text(json.dumps({"images": str(tmp_path / "own"), "download": settings, "text_rules": rules}))
    started = time.monotonic()
    assert command(tmp_path / "whole", one).wait(300) == 0
    took = time.monotonic() - started
    whole = contents(tmp_path / "whole")
    assert len(whole) == 12 * 3

    def finish_and_compare() -> None:
        assert command(tmp_path / "killed", one).wait(300) == 0
        assert contents(tmp_path / "killed") == whole
        assert [path.name for path in (tmp_path / "killed" / "_work").glob("0*")] == []
        for name in ("json", "texts.json"):
            assert (tmp_path / f"whole.{name}").read_text() == (tmp_path / f"killed.{name}").read_text()

    def finished() -> int:
        return len(list((tmp_path / "killed").glob("*_stats.json")))

    for _ in range(int(os.environ.get("FILIP_KILLS", 2))):
        moment = random.SystemRandom().randint(finished(), 11)
        running = command(tmp_path / "killed", one)
        while finished() < moment and running.poll() is None:
            time.sleep(0.01)
        kill_at_random(running, took / 12)
        print(f"{moment} of 12 shards were waited for, {finished()} were done")
        if finished() == 12:
            finish_and_compare()
            shutil.rmtree(tmp_path / "killed")
    finish_and_compare()


def test_who_is_killed_once_a_shard_is_complete_leaves_no_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.yaml").write_text("title: T\n")
    monkeypatch.setattr("filip.data.fetching.shard_maker.InProgress.close", lambda *_: None)
    with ShardMaker(card=load_source(tmp_path / "c.yaml"), final_folder=tmp_path).staged(3) as (staging, _):
        for suffix in SUFFIXES:
            (staging / f"00003{suffix}").touch()
    assert is_complete(tmp_path, 3) and list((tmp_path / "_work").iterdir()) == []
