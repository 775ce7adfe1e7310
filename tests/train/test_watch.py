"""The state of a run from its folder alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from filip.command import run_command
from filip.errors import UserError
from filip.train.watch import Watch, describe, find_run, main, read_run

NOW = 1_000_000.0


def write_run(
    folder: Path, lines: int = 30, steps: int | None = 1000, events: tuple[tuple[str, str], ...] = ()
) -> Path:
    """Write a run that logged every ten steps, twenty seconds apart, the last line ten seconds before NOW."""
    folder.mkdir(parents=True)
    text = []
    for n in range(1, lines + 1):
        entry = {
            "step": 10 * n,
            "time": NOW - 10 - 20 * (lines - n),
            "loss/total": 5.0 - 0.1 * n,
            "epoch": n / 100,
        }
        speed = {"speed/seconds_per_step": 2.0, "speed/pairs_per_second": 64.0, "speed/data_share": 0.25}
        text.append(json.dumps({**entry, **speed, "accuracy/i2t": n / 100, "accuracy/t2i": n / 200}))
    for kind, what in events:
        text.append(json.dumps({"step": 10 * lines, "time": NOW - 10, "event": kind, "text": what}))
    (folder / "log.jsonl").write_text("\n".join(text) + '\n{"step": 999, "lo')
    start = {"steps": steps, "config": {"max_steps": None, "epochs": 2.0}}
    (folder / "starts.jsonl").write_text(json.dumps(start) + "\n")
    return folder


def test_a_running_run_has_rate_and_eta(tmp_path: Path) -> None:
    shown = describe(read_run(write_run(tmp_path / "run")), NOW, 80)
    text = "\n".join(shown)
    assert "running, step 300 of 1,000 (30 %), last line 10s ago" in text
    assert "loss 2.0000  i2t 30.0 %  t2i 15.0 %" in text
    assert "64 pairs/s, 2 s a step  25 % of it waiting for data  ETA 23m20s" in text
    assert "alarms: none" in text
    assert max(map(len, shown)) <= 80


def test_a_run_that_wrote_its_log_before_it_recorded_its_steps_still_has_an_end(tmp_path: Path) -> None:
    assert read_run(write_run(tmp_path / "run", steps=None)).steps == 2000  # 300 steps are 0.3 of 2 epochs


def test_silence_alarms_signals_and_the_end_are_told(tmp_path: Path) -> None:
    alarm = ("watchdog", "watchdog: loss stuck at log(batch) in steps 1 to 500")
    run = read_run(write_run(tmp_path / "run", events=(alarm, ("checkpoint", "saved it"))))
    text = "\n".join(describe(run, NOW + 600, 120))
    assert "SILENT: stopped, killed or stuck" in text and "last line 10m10s ago" in text
    assert "alarms: 1" in text and "step 300: watchdog: loss stuck" in text and "step 300: saved it" in text
    stopped = read_run(
        write_run(tmp_path / "stopped", events=(("signal", "stopped by a signal after step 300"),))
    )
    assert "stopped by a signal, step 300" in "\n".join(describe(stopped, NOW + 600))
    (tmp_path / "run" / "finished.json").write_text("{}")
    (tmp_path / "run" / "finished.json").write_text(json.dumps({"step": 300}))
    done = "\n".join(describe(read_run(tmp_path / "run"), NOW + 600))
    assert "finished, step 300" in done and "ETA" not in done


def test_a_folder_of_runs_means_the_one_that_wrote_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import os

    for age, name in ((100, "old"), (0, "new")):
        write_run(tmp_path / name)
        os.utime(tmp_path / name / "log.jsonl", (NOW - age, NOW - age))
    assert find_run(tmp_path) == tmp_path / "new"
    run_command(main, Watch, argv=[f"run_dir={tmp_path}"])  # no terminal: prints and ends
    assert f"{tmp_path / 'new'}\n" in capsys.readouterr().out
    with pytest.raises(UserError, match="there is no file or folder"):
        find_run(tmp_path / "none")
