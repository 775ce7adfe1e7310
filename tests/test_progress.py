import pytest

from filip.common import progress
from filip.common.progress import Progress, clock
from filip.train.telemetry import text_line


def test_a_log_gets_rate_and_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 1e-9)
    with Progress("translate pt", "captions", 9000) as bar:
        bar.add(1024)
        bar.add(2000, note="3 failed")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("translate pt: 1,024 of 9,000 captions, ")
    assert "captions/s" in first and first.endswith(" left")
    assert second.startswith("translate pt: 3,024 of 9,000 captions, ") and second.endswith("left, 3 failed")


def test_a_line_of_a_training_has_step_rate_and_time_left() -> None:
    values = {
        "loss/total": 1.0, "optimizer/lr": 1e-3, "optimizer/logit_scale": 14.0, "speed/pairs_per_second": 10.0,
        "speed/data_share": 0.1, "memory/peak_mb": 5.0, "speed/seconds_per_step": 2.0,
    }  # fmt: skip
    line = text_line(1100, 3500, values, 4800.0)
    assert line.startswith("training: 1,100 of 3,500 steps, 0.5 steps/s, 1:20:00 left, loss 1.0000  lr 1.00e-03")
    assert "MFU" not in line and "MFU 31%" in text_line(1100, 3500, values | {"speed/mfu": 0.314}, 4800.0)
    assert [clock(s) for s in (42.9, 370, 11_100)] == ["0:42", "6:10", "3:05:00"]
