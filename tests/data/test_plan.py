"""The plan of the data stages: its arithmetic."""

import pytest

from filip.data.cards import DownloadSettings, SourceCard, load_source
from filip.data.plan import PlanConfig, stages, table


def planned(config: PlanConfig, card: SourceCard) -> dict:
    return {stage.name: stage for stage in stages(config, card)}


def test_340_million_rows_are_few_jobs_of_bounded_memory() -> None:
    result = planned(PlanConfig(340e6, cores=64, threads=16), SourceCard("web"))
    assert sum(stage.jobs for stage in result.values()) < 300 and result["translate, parts"].jobs == 256
    assert all(stage.memory < 16e9 for stage in result.values())
    assert result["download"].files == 4 * 34_000
    # 340 million images of 25 kB at 1,000 URLs a second: 8.5 TB and what tars add, four days
    assert 8.5e12 < result["download"].disk < 1e13 and 94 < result["download"].hours < 95
    # 680 million translations at 100 a second on each of 64 cores
    assert result["translate, parts"].hours == pytest.approx(680e6 / 100 / 64 / 3600)


def test_a_small_source_is_translated_by_one_job_and_images_of_one_s_own_are_not_downloaded() -> None:
    result = planned(PlanConfig(20_000), load_source("own_images"))
    assert "prepare" not in result and "download" not in result and result["ingest"].files == 80
    assert result["translate, parts"].jobs == 3 and result["manifest"].memory < 2e9
    assert planned(PlanConfig(20_000, cores=64, threads=4), load_source("own_images"))["ingest"].cores == 4
    assert "translate, plan" not in planned(PlanConfig(5_000), load_source("own_images"))
    # DuckDB's part of it grows with the list, and then it is more than that of the processes that store images
    assert result["ingest"].memory < planned(PlanConfig(340e6), load_source("own_images"))["ingest"].memory


def test_dead_hosts_and_large_pictures_take_their_time() -> None:
    web = SourceCard("web", download=DownloadSettings(processes=8, threads=128))
    hours = {dead: planned(PlanConfig(340e6, cores=64, dead=dead), web)["download"].hours for dead in (0.0, 0.05)}
    # 17 million URLs wait three times ten seconds in one of 1,024 threads
    assert hours[0.05] - hours[0.0] == pytest.approx(0.05 * 340e6 * 30 / 1024 / 3600)
    images = [planned(PlanConfig(1e6, megapixels=n), load_source("own_images"))["ingest"].hours for n in (0.3, 12)]
    assert 4 < images[1] / images[0] < 5


def test_the_summary_names_the_study_s_memory() -> None:
    lines = table(PlanConfig(340e6, source="filip300m", threads=8, cores=8))
    assert any("data: {threads: 8, memory: 7GB}" in line for line in lines)
    assert any("looks at 68,000 files on every rank" in line for line in lines)
