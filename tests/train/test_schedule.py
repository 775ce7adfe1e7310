import pytest

from filip.errors import UserError
from filip.train.schedule import make_schedule


def test_the_papers_peak_and_the_shape_of_the_curve() -> None:
    schedule = make_schedule(6e-3, global_batch=8192, warmup_steps=3000, steps=50_000)
    assert schedule.peak == pytest.approx(6e-3 * 4)  # sqrt(8192 / 512)
    assert schedule.at(0) == pytest.approx(schedule.peak / 3000)
    assert schedule.at(1499) == pytest.approx(schedule.peak / 2)
    assert schedule.at(2999) == schedule.at(3000) == pytest.approx(schedule.peak)
    assert schedule.at(26_500) == pytest.approx(schedule.peak / 2)
    assert schedule.at(50_000) == pytest.approx(0)
    values = [schedule.at(step) for step in range(3000, 50_000, 100)]
    assert values == sorted(values, reverse=True)
    assert "sqrt(8192 / 512)" in schedule.reason(6e-3, 8192)


def test_no_warm_up_is_allowed() -> None:
    schedule = make_schedule(1.0, 512, warmup_steps=0, steps=10)
    assert schedule.at(0) == 1.0
    assert schedule.at(5) == pytest.approx(0.5)


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(UserError, match="warmup_steps=3000"):
        make_schedule(1.0, 512, warmup_steps=3000, steps=600)
