import pytest

from filip.common import progress
from filip.common.progress import Progress


def test_a_log_gets_rate_and_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 1e-9)
    with Progress("translate pt", "captions", 9000) as bar:
        bar.add(1024)
        bar.add(2000, note="3 failed")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("translate pt: 1,024 of 9,000 captions, ")
    assert "captions/s" in first and first.endswith(" left")
    assert second.startswith("translate pt: 3,024 of 9,000 captions, ") and second.endswith("left, 3 failed")
