"""The loss as a sum of named terms: weights, names, and a term added from outside."""

import math

import pytest
import torch
from torch import nn

from filip.common.errors import UserError
from filip.models import Encoded, PooledFeatures, TextFeatures
from filip.train.costs import count
from filip.train.engine import Batching
from filip.train.losses import Loss, resolve_weights
from filip.train.losses.term import WeightSchedule
from tests.support.training import compose


def encoded(pairs: int = 4, dim: int = 8) -> Encoded:
    generator = torch.Generator().manual_seed(0)

    def unit(*shape: int) -> torch.Tensor:
        return nn.functional.normalize(torch.randn(*shape, dim, generator=generator), dim=-1)

    text = TextFeatures(unit(3 * pairs), torch.full((pairs,), 3))
    return Encoded(unit(pairs, 5), text, torch.tensor([10.0]), PooledFeatures(unit(pairs), unit(pairs)))


def test_weights_follow_the_model_unless_given() -> None:
    nothing = {"token_wise": None, "pooled": None}
    assert resolve_weights(nothing, "token_wise") == {"token_wise": 1.0}
    assert resolve_weights(nothing, "pooled") == {"pooled": 1.0}
    assert resolve_weights({"pooled": 0.5}, "token_wise") == {"token_wise": 1.0, "pooled": 0.5}
    assert resolve_weights({"token_wise": 0, "pooled": 2}, "token_wise") == {"pooled": 2.0}
    with pytest.raises(UserError, match="weight 0"):
        resolve_weights({"token_wise": 0.0}, "token_wise")


def test_the_total_is_the_weighted_sum_and_every_metric_has_a_name() -> None:
    config = compose()
    group = torch.arange(4)
    one = {n: Loss({n: 1.0}, config)(encoded(), group) for n in ("token_wise", "pooled")}
    both = Loss({"token_wise": 1.0, "pooled": 0.5}, config)(encoded(), group)
    assert float(both.loss) == pytest.approx(float(one["token_wise"].loss + 0.5 * one["pooled"].loss))
    of_both = {f"{name}/{way}" for name in ("loss", "accuracy") for way in ("i2t", "t2i")}
    assert set(one["pooled"].metrics) == {"loss/total", "monitor/saturated_share", *of_both}
    assert torch.equal(both.metrics["loss/i2t"], one["token_wise"].metrics["loss/i2t"])
    assert torch.equal(both.metrics["loss/i2t_pooled"], one["pooled"].metrics["loss/i2t"])
    assert torch.equal(both.metrics["loss/pooled"], one["pooled"].loss)
    assert not any(value.requires_grad for value in both.metrics.values())


@pytest.mark.parametrize(
    ("weight", "at"),
    [
        ("linear from 0 to 2 in steps 10 to 20", {0: 0, 10: 0, 15: 1, 20: 2, 99: 2}),
        ("cosine from 1 to 0.2 in steps 0 to 100", {0: 1, 25: 0.6 + 0.4 * math.sqrt(0.5), 50: 0.6, 100: 0.2}),
        ("switch from 0.5 to 0 at step 7", {0: 0.5, 6: 0.5, 7: 0, 8: 0}),
    ],
)
def test_a_weight_follows_its_schedule(weight: str, at: dict[int, float]) -> None:
    config = compose(f"loss.pooled={weight}")
    weights = resolve_weights(config.loss, "token_wise")
    loss = Loss(weights, config)
    assert {step: loss.weights_at(step).get("pooled", 0) for step in at} == pytest.approx(at)
    # A run writes its weights into its configuration, from which it is resumed and compared.
    written = {name: str(value) if isinstance(value, WeightSchedule) else value for name, value in weights.items()}
    assert written["pooled"] == weight and resolve_weights(written, "token_wise") == weights


def test_a_term_counts_only_in_the_steps_that_give_it_a_weight() -> None:
    config = compose("loss.token_wise=switch from 0 to 2 at step 3", "loss.pooled=0.5")
    loss = Loss(resolve_weights(config.loss, "token_wise"), config)
    early, late = (loss(encoded(), torch.arange(4), step) for step in (2, 3))
    assert "loss/token_wise" not in early.metrics
    assert float(early.loss) == pytest.approx(float(0.5 * early.metrics["loss/pooled"]))
    expected = 2 * late.metrics["loss/token_wise"] + 0.5 * late.metrics["loss/pooled"]
    assert float(late.loss) == pytest.approx(float(expected))
    assert torch.equal(early.metrics["loss/i2t_pooled"], late.metrics["loss/i2t_pooled"])
    assert loss.describe() == "(switch from 0 to 2 at step 3) x token_wise + 0.5 x pooled"


def test_random_tokens_are_drawn_anew_in_each_step_and_again_where_it_is_repeated() -> None:
    loss = Loss({"token_wise": 1.0}, compose("token_keep_ratio=0.25", "token_score=random"))
    values = [float(loss(encoded(), torch.arange(4), step).loss) for step in (3, 3, 4)]
    assert values[0] == values[1] != values[2]


def followed(scheduled: list[str], fixed: dict[int, list[str]]) -> list[dict[str, float]]:
    """Compare the loss under a schedule with that of fixed settings at some steps; return the metric at each."""
    loss, batch, group = Loss({"token_wise": 1.0}, compose(*scheduled)), encoded(), torch.arange(4)
    metrics = []
    for step, overrides in fixed.items():
        result = loss(batch, group, step)
        torch.testing.assert_close(result.loss, Loss({"token_wise": 1.0}, compose(*overrides))(batch, group).loss)
        metrics.append({name: float(value) for name, value in result.metrics.items()})
    return metrics


RATIO = "token_keep_schedule=linear from 1 to 0.25 in steps 0 to 4"
TEMPERATURE = "token_temperature=linear from 0.2 to 0 in steps 0 to 4"


def test_share_of_tokens_and_temperature_follow_their_schedules() -> None:
    shares = {0: 1.0, 2: 0.625, 4: 0.25, 9: 0.25}
    fixed = {step: [f"token_keep_ratio={share}"] for step, share in shares.items()}
    metrics = followed(["token_keep_ratio=0.25", RATIO], fixed)
    assert [line["tokens/keep_ratio"] for line in metrics] == list(shares.values())
    smooth = "token_maximum=smooth"
    fixed = {0: [smooth, "token_temperature=0.2"], 3: [smooth, "token_temperature=0.05"], 4: []}
    assert followed([smooth, TEMPERATURE], fixed)[-1]["tokens/temperature"] == 0  # the maximum itself


def test_memory_is_planned_for_the_largest_share_of_tokens_that_a_schedule_keeps() -> None:
    quarter = "token_keep_ratio=0.25"
    batching = Batching(global_batch=64, per_rank=64, accumulation=1, chunk=64)
    every, later, at_once = (
        count(config.model, config, batching, 1).memory
        for config in (compose(), compose(quarter, RATIO), compose(quarter))
    )
    assert every == later and at_once["loss"] < later["loss"]


def test_the_minimum_of_the_selection_reaches_the_loss() -> None:
    group = torch.arange(4)
    settings = ("token_keep_ratio=0.25",)
    whole = Loss({"token_wise": 1.0}, compose())(encoded(), group)
    floor = Loss({"token_wise": 1.0}, compose(*settings, "token_keep_minimum=5"))(encoded(), group)
    paper = Loss({"token_wise": 1.0}, compose(*settings))(encoded(), group)
    assert float(floor.loss) == pytest.approx(float(whole.loss))
    assert float(paper.loss) != pytest.approx(float(whole.loss))
