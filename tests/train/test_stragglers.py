"""Who keeps a fleet waiting: the slowest rank by name, sums over ranks, and loss spikes."""

from filip.train.monitors import RankReport, Slowest, slowest, summed
from filip.train.watchdog import Limits, StepStatus, Watchdog


def reports(*encoding: float, data_wait: float = 0.0) -> list[RankReport]:
    """Return one report per rank; the last one waits ``data_wait`` for its data."""
    waits = [0.0] * (len(encoding) - 1) + [data_wait]
    pairs = enumerate(zip(encoding, waits, strict=True))
    return [RankReport(wait, seconds, {"undecodable": rank}, f"host{rank}") for rank, (seconds, wait) in pairs]


def of(ranks: list[RankReport]) -> tuple[Slowest, Slowest]:
    return slowest(ranks, "data_wait"), slowest(ranks, "encoding")


def watchdog(straggler_intervals: int = 3) -> Watchdog:
    limits = Limits(straggler_intervals=straggler_intervals)
    return Watchdog(128, max_logit_scale=100.0, fp16=False, limits=limits)


def test_counters_are_summed_and_the_slowest_rank_has_a_name() -> None:
    ranks = reports(1.0, 1.1, 3.0, 0.9, data_wait=0.5)
    data_wait, encoding = of(ranks)
    assert summed([report.counters for report in ranks]) == {"undecodable": 0 + 1 + 2 + 3}
    assert (encoding.rank, encoding.host, encoding.median) == (2, "host2", 1.0)
    assert (data_wait.rank, data_wait.seconds, data_wait.median) == (3, 0.5, 0.0)


def test_a_straggler_is_reported_once_it_has_lasted() -> None:
    dog = watchdog(straggler_intervals=3)
    slow, even = of(reports(1.0, 1.0, 2.0)), of(reports(1.0, 1.1, 1.2))
    assert dog.observe_fleet(10, 4.0, *slow) == dog.observe_fleet(20, 4.0, *slow) == []
    (alert,) = dog.observe_fleet(30, 4.0, *slow)
    assert (alert.kind, alert.first, alert.last) == ("straggler", 10, 30)
    assert "rank 2 on host2 takes 2 s, the rank in the middle 1 s" in str(alert)
    assert dog.observe_fleet(40, 4.0, *slow) == []  # said
    for step in (50, 60, 70, 80):
        assert dog.observe_fleet(step, 4.0, *even) == []
    other = of(reports(2.0, 1.0, 1.0))
    results = [dog.observe_fleet(step, 4.0, *which) for step, which in ((90, slow), (100, other), (110, slow))]
    assert results == [[], [], []]  # never the same rank three times in a row


def test_a_few_milliseconds_are_no_straggler() -> None:
    """Nor is a share of the step that nobody notices."""
    dog = watchdog(straggler_intervals=1)
    assert dog.observe_fleet(10, 0.02, *of(reports(0.0050, 0.0051, 0.0079))) == []
    assert dog.observe_fleet(20, 40.0, *of(reports(1.0, 1.0, 2.0))) == []
    assert dog.observe_fleet(30, 0.2, *of(reports(0.05, 0.05, 0.08)))


def test_a_rank_with_slow_data_is_reported() -> None:
    dog = watchdog(straggler_intervals=2)
    report = of(reports(1.0, 1.0, 1.0, data_wait=1.2))
    assert dog.observe_fleet(1, 10.0, *report) == dog.observe_fleet(2, 10.0, *report) == []  # 12 % of a step
    assert dog.observe_fleet(3, 4.0, *report) == []
    (alert,) = dog.observe_fleet(4, 4.0, *report)
    assert alert.kind == "slow data" and "rank 2 on host2 takes 1.2 s" in str(alert)


def spikes(losses: list[float]) -> list[tuple[int, int]]:
    dog = watchdog()
    results = []
    for step, loss in enumerate(losses, start=1):
        status = StepStatus(
            step, loss, grad_norm=1.0, logit_scale=20.0, loss_scale=1.0, skipped=False, finite=True, chance_loss=50.0
        )
        results += [(a.first, a.last) for a in dog.observe(status) if a.kind == "loss spike"]
    return results


def test_a_loss_spike_is_a_loss_far_above_those_before() -> None:
    noise = [3.0 + 0.05 * (step % 7) for step in range(80)]
    assert spikes([*noise, 5.0, 5.2, 5.1, 3.1]) == [(81, 83)]
    assert spikes([*noise, 5.0, 3.1, 5.0, 3.1]) == []  # single batches
    assert spikes([*noise, *[3.4] * 10]) == []  # within its spread
    assert spikes([8.0 - 0.05 * step for step in range(120)]) == []  # the loss falls
    assert spikes([3.0] * 10 + [9.0] * 10) == []  # too early to say
