import json
from pathlib import Path

import pytest

from filip.cli.command import run_command
from filip.common.errors import UserError
from filip.data.funnel import Fragment, FunnelConfig, main, read_fragment, write_fragment


def test_fragment_round_trip_drops_empty_reasons_and_sorts_by_count(tmp_path: Path) -> None:
    path = tmp_path / "f" / "download.json"
    write_fragment(path, Fragment("download", "s", 10, 6, {"a": 1, "none": 0, "b": 3}, notes={"x": [1]}))
    raw = json.loads(path.read_text())
    counts = {"in": 10, "out": 6, "dropped": {"b": 3, "a": 1}}
    assert raw == {"stage": "download", "source": "s", "unit": "pairs", **counts, "notes": {"x": [1]}}
    assert list(raw["dropped"]) == ["b", "a"]
    assert read_fragment(path).n_out == 6


def test_counts_that_do_not_add_up_are_refused_when_written_and_when_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match="10 pairs came in, but 6 out and 3 dropped make 9"):
        write_fragment(path, Fragment("s", "x", 10, 6, {"a": 3}))
    assert not path.exists()
    path.write_text(json.dumps({"stage": "s", "source": "x", "in": 2, "out": 3, "dropped": {"a": -1}}))
    with pytest.raises(UserError, match="at least 0"):
        read_fragment(path)
    path.write_text("{}")
    with pytest.raises(UserError, match=r"a\.json is not a funnel fragment"):
        read_fragment(path)
    with pytest.raises(UserError, match=r"there is no file or folder .*a funnel fragment"):
        read_fragment(tmp_path / "missing.json")


def test_merge_checks_that_each_stage_takes_what_the_last_gave(tmp_path: Path, capsys) -> None:
    stages = [
        Fragment("text_rules", "a", 100, 80, {"not_english": 20}),
        Fragment("download", "a", 80, 70, {"http_404": 10}),
        Fragment("translate", "a", 140, 120, {"empty": 20}, unit="candidates"),
        Fragment("text_rules", "b", 5, 5, {}),
    ]
    paths = []
    for i, stage in enumerate(stages):
        paths.append(str(tmp_path / f"{i}.json"))
        write_fragment(paths[-1], stage)
    out = tmp_path / "funnel.json"
    main(FunnelConfig(paths, str(out)))
    merged = [(stage["source"], stage["stage"]) for stage in json.loads(out.read_text())["stages"]]
    assert merged == [*(("a", stage) for stage in ("text_rules", "download", "translate")), ("b", "text_rules")]
    assert "http_404 10" in capsys.readouterr().out
    write_fragment(paths[1], Fragment("download", "a", 79, 70, {"http_404": 9}))
    out.unlink()
    with pytest.raises(SystemExit) as stop:
        run_command(main, FunnelConfig, argv=[f"fragments=[{','.join(paths)}]", f"out={out}"])
    assert stop.value.code == 2 and not out.exists()
    assert "gave out 80 pairs, but 'download' took in 79" in capsys.readouterr().err
