"""The loss as a sum of named terms: weights, names, chance, and a term added from outside."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from filip.errors import UserError
from filip.interaction import choose_tokens
from filip.models import Encoded, PooledFeatures, TextFeatures
from filip.train import losses
from filip.train.losses import Loss, Term, TermOutput, resolve_weights
from filip.train.losses.token_wise import selection_metrics
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
    config = compose("backend=reference")
    group = torch.arange(4)
    one = {n: Loss({n: 1.0}, config)(encoded(), group) for n in ("token_wise", "pooled")}
    both = Loss({"token_wise": 1.0, "pooled": 0.5}, config)(encoded(), group)
    assert float(both.loss) == pytest.approx(float(one["token_wise"].loss + 0.5 * one["pooled"].loss))
    assert set(one["pooled"].metrics) == {
        "loss/total",
        "loss/i2t",
        "loss/t2i",
        "accuracy/i2t",
        "accuracy/t2i",
    }
    assert torch.equal(both.metrics["loss/i2t"], one["token_wise"].metrics["loss/i2t"])
    assert torch.equal(both.metrics["loss/i2t_pooled"], one["pooled"].metrics["loss/i2t"])
    assert torch.equal(both.metrics["loss/pooled"], one["pooled"].loss)
    assert not any(value.requires_grad for value in both.metrics.values())


def test_chance_counts_every_term() -> None:
    loss = Loss({"token_wise": 1.0, "pooled": 0.5}, compose())
    assert loss.chance(128) == pytest.approx(1.5 * math.log(128))
    assert loss.describe() == "token_wise + 0.5 x pooled"


def test_a_term_from_outside_needs_one_entry_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def compute(batch: losses.LossInput) -> TermOutput:
        image, text = batch.vectors
        distance = (image - text).square().sum(dim=1).mean()
        return TermOutput(distance, {"alignment/distance": distance.sqrt()})

    term = Term(compute, "vectors", lambda pairs: 2.0, lambda shape: 0.0, "squared distance")
    monkeypatch.setitem(losses.TERMS, "distance", term)
    config = compose("backend=reference", "+loss.distance=0.1")
    weights = resolve_weights(config.loss, "token_wise")
    assert weights == {"token_wise": 1.0, "distance": 0.1}
    output = Loss(weights, config)(encoded(), torch.arange(4))
    assert {"loss/distance", "alignment/distance_distance"} <= set(output.metrics)
    assert Loss(weights, config).chance(8) == pytest.approx(math.log(8) + 0.2)


def test_the_monitor_of_the_selection_tells_what_is_kept() -> None:
    axes = torch.eye(8)
    image = axes[:4].repeat(3, 1, 1)  # 3 images of the same 4 patches
    text = TextFeatures(torch.cat([axes[[7, 0, 7]]] * 3), torch.full((3,), 3))  # [BOS], a word, [EOS]
    told = selection_metrics(choose_tokens(image, *text, 0.25), image, text)
    # Of each caption the word is kept, and of each image the patch that it names.
    assert float(told["tokens/kept_bos_eos"]) == 0
    assert float(told["tokens/kept_same_patch"]) == 1
    assert float(told["tokens/kept_text_cosine"]) == pytest.approx(1)
    both = selection_metrics(choose_tokens(image, *text, 0.6), image, text)  # 2 of 3: [BOS] wins the tie
    assert float(both["tokens/kept_bos_eos"]) == pytest.approx(1 / 2)
    assert float(both["tokens/kept_text_cosine"]) == pytest.approx(1 / 2)


def test_the_selection_reports_only_where_it_selects() -> None:
    group = torch.arange(4)
    everything = Loss({"token_wise": 1.0}, compose("backend=reference"))(encoded(), group)
    quarter = compose("backend=reference", "token_keep_ratio=0.25", "token_score=contrast")
    selected = Loss({"token_wise": 1.0}, quarter)(encoded(), group)
    added = set(selected.metrics) - set(everything.metrics)
    assert added == {f"tokens/kept_{n}" for n in ("bos_eos", "same_patch", "text_cosine", "image_cosine")}


def test_the_minimum_of_the_selection_reaches_the_loss() -> None:
    group = torch.arange(4)
    settings = ("backend=reference", "token_keep_ratio=0.25")
    whole = Loss({"token_wise": 1.0}, compose("backend=reference"))(encoded(), group)
    floor = Loss({"token_wise": 1.0}, compose(*settings, "token_keep_minimum=5"))(encoded(), group)
    paper = Loss({"token_wise": 1.0}, compose(*settings))(encoded(), group)
    assert float(floor.loss) == pytest.approx(float(whole.loss))
    assert float(paper.loss) != pytest.approx(float(whole.loss))
