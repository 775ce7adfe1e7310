"""The plan of the data stages: its arithmetic, and its constants against a run of the stages."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bench.data_scale import STAGES, measure, write_list
from filip.data.cards import SourceCard, load_source
from filip.data.plan import PlanConfig, duckdb_memory, least_memory, stages, table

ROWS = 20_000


def planned(config: PlanConfig, card: SourceCard) -> dict:
    return {stage.name: stage for stage in stages(config, card)}


def test_340_million_rows_are_few_jobs_of_bounded_memory() -> None:
    found = planned(PlanConfig(340e6, cores=64, threads=16), SourceCard("web"))
    assert sum(stage.jobs for stage in found.values()) < 300 and found["translate, parts"].jobs == 256
    assert all(stage.memory < 16e9 for stage in found.values())
    assert found["download"].files == 4 * 34_000
    # 340 million images of 25 kB at 1,000 URLs a second: 8.5 TB and what tars add, four days
    assert 8.5e12 < found["download"].disk < 1e13 and 94 < found["download"].hours < 95
    # 680 million translations at 100 a second on each of 64 cores
    assert found["translate, parts"].hours == pytest.approx(680e6 / 100 / 64 / 3600)


def test_a_small_source_is_translated_by_one_job_and_images_of_one_s_own_are_not_downloaded() -> None:
    found = planned(PlanConfig(20_000), load_source("own_images"))
    assert "prepare" not in found and "download" not in found and found["ingest"].files == 80
    assert found["translate, parts"].jobs == 3 and found["manifest"].memory < 2e9
    assert planned(PlanConfig(20_000, cores=64, threads=4), load_source("own_images"))["ingest"].cores == 4
    assert "translate, plan" not in planned(PlanConfig(5_000), load_source("own_images"))
    # DuckDB's part of it grows with the list, and then it is more than that of the processes that store images
    assert found["ingest"].memory < planned(PlanConfig(340e6), load_source("own_images"))["ingest"].memory


def test_the_summary_names_the_study_s_memory() -> None:
    lines = table(PlanConfig(340e6, source="filip300m", threads=8, cores=8))
    assert any("data: {threads: 8, memory: 7GB}" in line for line in lines)


@pytest.mark.slow
def test_the_plan_s_memory_and_disk_are_those_of_a_run(tmp_path: Path) -> None:
    """The disk is compared per row, the memory as a whole; DuckDB has the least limit that the plan counts on."""
    write_list(tmp_path / "all.parquet", ROWS)
    plan = planned(PlanConfig(ROWS, threads=2), SourceCard("bench", back_translation=None))
    assert duckdb_memory(ROWS) == 1e9
    limit = f"{least_memory(ROWS) // 10**6}MB"
    measured = {}
    for name in ("prepare", "text_rules", "shards", "translate", "manifest", "index"):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            measured[name] = pool.submit(measure, STAGES[name], tmp_path, 2, limit).result()
    for name in ("prepare", "text_rules", "translate", "index"):
        assert measured[name]["result"] == pytest.approx(plan[name].disk, rel=0.3), name
    # a download without its images: what describes them, and where they are
    described = plan["download"].disk - ROWS * 28_500
    assert measured["shards"]["result"] == pytest.approx(described, rel=0.3)
    for name in ("prepare", "text_rules", "translate", "manifest", "index"):
        assert measured[name]["memory"] <= plan[name].memory, name
        assert measured[name]["scratch"] <= 1.5 * plan[name].scratch + 10**6, name


@pytest.mark.slow
def test_images_of_one_s_own_need_no_more_memory_than_the_plan_counts_on(tmp_path: Path) -> None:
    """Lists of captions that DuckDB gathers itself would be in memory all at once."""
    rows = 100_000
    write_list(tmp_path / "kept.parquet", rows)
    limit = f"{least_memory(rows) // 10**6}MB"
    for name in ("own_table", "ingest"):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            measured = pool.submit(measure, STAGES[name], tmp_path, 2, limit).result()
    plan = planned(PlanConfig(rows, threads=2), load_source("own_images"))
    assert measured["memory"] <= plan["ingest"].memory
    described = pq.read_table(tmp_path / "ingested" / "00000.parquet", columns=["captions", "status"])
    assert described.num_rows == 10_000 and described["captions"][0].as_py()
