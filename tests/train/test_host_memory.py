"""The plan for a node's main memory against what a loader really holds, and against sums by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from filip.data.loading.config import DataConfig, Source
from filip.data.loading.pair_index import index_source
from filip.train.counts import RANK_BYTES, node_bytes, to_ask_for
from tests.data.pair_shards import write_pairs
from tests.support.launched_ranks import environment

WORKER = str(Path(__file__).parent / "loader_memory.py")
FILIP340M = {"ranks": 8, "world_size": 128, "batch_per_rank": 320, "image_size": 224, "pairs": 340_000_000}


@pytest.mark.slow
def test_a_loader_holds_what_was_planned(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path, [150, 150])
    batch, size = 32, 320
    for workers in (1, 3):
        command = [sys.executable, WORKER, str(tmp_path), str(workers), str(batch), str(size)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment())
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
        assert lines, done.stderr[-3000:]
        measured = json.loads(lines[0].removeprefix("RESULT"))
        data = DataConfig(sources=[pairs.source], workers=workers)
        shape = {"batch_per_rank": batch, "image_size": size, "parameters": 0, "pairs": 300}
        planned = node_bytes(data, ranks=1, world_size=1, gpu=False, **shape)
        # For the rank itself only what the loader adds; a worker that has prepared its batches makes no other.
        assert 0.8 < measured / (sum(planned.values()) - RANK_BYTES) < 1.1, (workers, measured, planned)


def test_the_index_has_the_planned_size(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path, [30, 50])
    found = index_source(pairs.source)
    planned = node_bytes(DataConfig(sources=[pairs.source]), **{**FILIP340M, "pairs": 80}, parameters=0)
    assert found.offset.nbytes + found.size.nbytes + found.row.nbytes == planned["index"]


def test_a_node_of_the_paper_s_base_run() -> None:
    data = DataConfig(sources=[Source("a")] * 4, workers=6, reader_groups=16)
    parts = node_bytes(data, **FILIP340M, parameters=150_000_000)
    assert parts["index"] == 5.44e9  # once, whatever the number of processes
    assert parts["pixels"] == 8 * (6 * 5 + 2) * 320 * 3 * 224 * 224
    # 48 workers, a window of 16 shards and one in 4 sources
    assert parts["captions"] == 48 * 4 * 17 * 10_000 * 280
    more = node_bytes(DataConfig(sources=data.sources, workers=12, reader_groups=16), **FILIP340M, parameters=0)
    assert more["captions"] == 2 * parts["captions"] and more["index"] == parts["index"]
    assert to_ask_for({"a": 10.1e9}) == 13_000  # MB: a fifth more, in whole GB


def test_a_rank_reads_from_its_own_group_unless_there_are_fewer_ranks() -> None:
    data = DataConfig(sources=[Source("a")], workers=1, reader_groups=16)
    opened = {
        ranks: node_bytes(data, **{**FILIP340M, "ranks": 1, "world_size": ranks}, parameters=0)["captions"]
        for ranks in (128, 16, 4, 1)
    }
    assert [opened[ranks] / opened[128] for ranks in opened] == [1, 1, 4, 16]
