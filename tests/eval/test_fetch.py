"""Benchmarks are fetched from a repository in the hub's layout, here a folder, and are then readable."""

from pathlib import Path

import pytest

from filip.command import run_command
from filip.errors import UserError
from filip.eval.cards import load_card
from filip.eval.fetch import Fetch, main, repository
from tests.eval.miniature import write_webdataset


def test_a_benchmark_is_fetched_once_and_only_its_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published = tmp_path / "hub" / "clip-benchmark" / "wds_vtab-cifar10"
    write_webdataset(published, ["airplane", "automobile"], [0, 1, 0])
    write_webdataset(published, ["airplane", "automobile"], [0, 1], split="train")
    given = [f"source={tmp_path / 'hub'}", f"root={tmp_path / 'data'}", "cards=cifar10"]
    run_command(main, Fetch, argv=given)
    assert "cifar10: 3 samples" in capsys.readouterr().err
    fetched = tmp_path / "data" / "wds_vtab-cifar10"
    assert (fetched / "test" / "0.tar").is_file() and not (fetched / "train").exists()
    before = (fetched / "test" / "0.tar").stat().st_mtime_ns
    (fetched / "test" / "1.tar").unlink()
    run_command(main, Fetch, argv=given)
    assert "(1 of 4 files fetched)" in capsys.readouterr().err
    assert (fetched / "test" / "0.tar").stat().st_mtime_ns == before


def test_the_repository_is_the_card_s_or_clip_benchmark_s() -> None:
    assert repository(load_card("mscoco"))[0] == "clip-benchmark/wds_mscoco_captions"
    with pytest.raises(UserError, match="sugar_crepe_add_att is not published on the hub as its layout 'records'"):
        repository(load_card("sugar_crepe_add_att"))


def test_a_repository_that_is_not_there_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_command(main, Fetch, argv=[f"source={tmp_path}", f"root={tmp_path}", "cards=cifar10"])
    assert "error: no repository clip-benchmark/wds_vtab-cifar10 below" in capsys.readouterr().err
