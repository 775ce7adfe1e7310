import math

import pytest

from filip.train.watchdog import Limits, StepStatus, Watchdog

GOOD = {
    "loss": 2.0, "grad_norm": 1.0, "logit_scale": 20.0, "loss_scale": 65536.0, "skipped": False, "finite": True,
    "chance_loss": math.log(128),
}  # fmt: skip


def kinds(steps: list[dict], fp16: bool = False, limits: Limits | None = None) -> list[tuple[str, int, int]]:
    watchdog = Watchdog(128, max_logit_scale=100.0, fp16=fp16, limits=limits)
    results = []
    for i, changes in enumerate(steps, start=1):
        results += watchdog.observe(StepStatus(step=i, **{**GOOD, **changes}))
    return [(f.kind, f.first, f.last) for f in results]


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        ({"finite": False, "loss": math.nan}, "non-finite"),
        ({"grad_norm": math.inf}, "non-finite"),
        ({"logit_scale": 99.99}, "logit scale at its clamp"),
        ({"loss": math.log(128) * 1.005}, "loss stuck at log(batch)"),
    ],
)
def test_each_condition_is_named_once_with_its_steps(bad: dict, kind: str) -> None:
    limits = Limits(clamp_steps=3, stuck_steps=3)
    assert kinds([{}, {}, bad, bad, bad, bad, {}], limits=limits) == [(kind, 3, 5)]
    assert kinds([bad, bad, {}, bad, bad], limits=limits) == []  # never three in a row
    assert kinds([bad, bad, bad, {}, bad, bad, bad], limits=limits) == [(kind, 1, 3), (kind, 5, 7)]


def test_overflows_that_the_scaler_skips_are_no_alert_until_the_scale_has_collapsed() -> None:
    overflow = {"skipped": True, "grad_norm": math.inf, "loss_scale": 1024.0}
    assert kinds([overflow] * 20, fp16=True) == []
    collapsed = {**overflow, "loss_scale": 1.0}
    assert kinds([overflow, collapsed, collapsed], fp16=True) == [("loss scale collapsed", 2, 2)]
    assert kinds([overflow, collapsed, collapsed], fp16=True, limits=Limits(non_finite_steps=2))[1:] == [
        ("non-finite", 2, 3)
    ]


def test_a_discarded_step_is_bad_where_no_scaler_is_at_work() -> None:
    assert kinds([{}, *[{"skipped": True, "grad_norm": None}] * 3], limits=Limits(non_finite_steps=2)) == [
        ("non-finite", 2, 3)
    ]


def test_a_loss_stuck_at_chance_is_named() -> None:
    watchdog = Watchdog(128, 100.0, False, Limits(stuck_steps=1))
    status = {**GOOD, "loss": 1.5 * math.log(128), "chance_loss": 1.5 * math.log(128)}
    assert "chance for 128 pairs" in str(watchdog.observe(StepStatus(step=1, **status))[0])
    assert watchdog.observe(StepStatus(step=2, **{**status, "loss": math.log(128)})) == []


def test_a_share_of_the_last_steps_is_named_once_it_is_reached() -> None:
    limits = Limits(window_steps=4, saturated_share=0.5, data_share=0.6, skipped_share=0.5)
    empty, full = ({"metrics": {"monitor/saturated_share": share}} for share in (0.0, 1.0))
    # Two of four batches are saturated from the fifth step on, not two in a row.
    assert kinds([empty, empty, full, empty, full, empty, full], limits=limits) == [("loss saturated", 5, 5)]
    assert kinds([{"data_share": 0.7}] * 6, limits=limits) == [("waiting for data", 4, 4)]
    assert kinds([{"data_share": 0.7}] * 3, limits=limits) == []
    skips = [{"skipped": True, "grad_norm": None}, {}] * 4
    assert kinds(skips, fp16=True, limits=limits) == [("many skipped steps", 4, 4)]


@pytest.mark.parametrize(
    ("metrics", "kind"),
    [
        ({"tokens/same_patch_share": 0.95}, "words point at one patch"),
        ({"tokens/bos_eos_share": 0.95}, "patches point at [BOS] or [EOS]"),
        ({"tokens/image_rank": 60.0, "tokens/text_rank": 1.5}, "embeddings collapsed"),
        ({"vectors/image_rank": 1.0}, "embeddings collapsed"),
    ],
)
def test_a_collapse_is_named_by_the_steps_that_look_at_the_embeddings(metrics: dict, kind: str) -> None:
    limits = Limits(collapse_checks=3)
    ill = {"metrics": metrics}
    assert kinds([{}, ill, {}, {}, ill, {}, ill, ill], limits=limits) == [(kind, 2, 7)]
    well = {"metrics": {name: 0.5 if "share" in name else 50.0 for name in metrics}}
    assert kinds([ill, ill, well, ill, ill], limits=limits) == []


def test_a_collapse_names_the_learning_rate_and_what_helps() -> None:
    watchdog = Watchdog(128, 100.0, False, Limits(collapse_checks=1))
    status = StepStatus(step=9, **{**GOOD, "metrics": {"tokens/text_rank": 1.29}, "lr": 0.01789})
    (alert,) = watchdog.observe(status)
    assert "tokens/text_rank is 1.29" in alert.message and "the learning rate is 0.018" in alert.message
    assert "lower optimizer.base_lr" in alert.message and "optimizer.warmup_steps" in alert.message


def test_ranks_with_different_gradient_norms_are_named_at_once() -> None:
    assert kinds([{"grad_norm_spread": 1e-7}, {}, {"grad_norm_spread": 0.02}]) == [
        ("ranks disagree on the gradient norm", 3, 3)
    ]


def test_nothing_is_good_while_a_non_finite_stretch_runs() -> None:
    watchdog = Watchdog(128, 100.0, False)
    watchdog.observe(StepStatus(step=1, **GOOD))
    assert watchdog.healthy
    watchdog.observe(StepStatus(step=2, **{**GOOD, "finite": False}))
    assert not watchdog.healthy
    watchdog.reset()
    assert watchdog.healthy
