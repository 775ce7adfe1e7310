"""Tests of single terms of filip_research; tests/train/test_loss_terms.py holds them to their definitions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from filip.common.errors import UserError
from filip.train.losses import TERMS, Loss, resolve_weights, resolved_settings
from tests.research.references import swapped_words
from tests.support.training import compose, losses, run_many, series, train_arguments
from tests.train.loss_batches import random_batch, run, settings
from tests.train.test_loss_terms import assert_same


def margin(value: float) -> dict[str, Any]:
    return {"hard_negatives": {"weight": 1, "margin": value}}


def test_the_margin_makes_a_similar_caption_cost_more() -> None:
    batch = random_batch("hard_negatives", [4])
    plain = float(run("token_wise", batch).loss.detach())
    assert float(run("hard_negatives", batch, loss=margin(0.0)).loss.detach()) == pytest.approx(plain)
    with torch.no_grad():
        batch.text_vector[:] = batch.text_vector[0]
    assert float(run("hard_negatives", batch, loss=margin(0.3)).loss.detach()) > plain


def test_a_setting_of_a_term_stands_with_its_weight() -> None:
    for given in (
        ["loss.hard_negatives={weight: 0.5, margin: 0.3}"],
        ["loss.hard_negatives.weight=0.5", "loss.hard_negatives.margin=0.3"],
    ):
        config = compose("model=tiny", *given)
        weights = resolve_weights(config.loss, "token_wise")
        assert weights == {"token_wise": 1.0, "hard_negatives": 0.5}
        assert Loss(weights, config).own["hard_negatives"].margin == 0.3
        written = resolved_settings(config, weights)
        assert written["hard_negatives"] == {"weight": 0.5, "margin": 0.3} and written["pooled"] == 0
        config.loss = written
        assert resolve_weights(written, "token_wise") == weights
        assert resolved_settings(config, weights) == written


@pytest.mark.parametrize("counts", [[5], [1]])
def test_altered_captions_are_compared_by_the_smooth_maximum_as_true_ones_are(counts: list[int]) -> None:
    batch = random_batch("swapped_words", counts, longest=4, seed=3)
    expected = swapped_words(batch, lambda s: 0.2 * torch.log(torch.exp(s / 0.2).mean(dim=-1)))
    result = run("swapped_words", batch, token_maximum="smooth", token_temperature=0.2).loss
    assert_same(result, expected, batch)


def test_captions_are_made_by_one_term_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TERMS, "others", TERMS["swapped_words"])
    with pytest.raises(UserError, match=r"loss\.swapped_words and loss\.others both make further captions"):
        Loss({"swapped_words": 1.0, "others": 1.0}, settings())


@pytest.mark.slow
def test_a_run_trains_with_swapped_captions_and_a_setting(squares: Path, tmp_path: Path) -> None:
    terms = ("loss.swapped_words=1", "loss.hard_negatives={weight: 0.5, margin: 0.2}", "max_steps=6")
    runs = [
        train_arguments(squares, tmp_path / "one", *terms),
        train_arguments(squares, tmp_path / "cached", *terms, "gradient_cache=6"),
    ]
    assert run_many(1, runs, tmp_path / "log") == [0, 0]
    assert losses(tmp_path / "cached")[:4] == pytest.approx(losses(tmp_path / "one")[:4], abs=1e-5)
    assert series(tmp_path / "one", "tokens/swapped_share_swapped_words")[0] > 0
    written = json.loads((tmp_path / "one" / "config.json").read_text())
    assert written["loss"]["hard_negatives"] == {"weight": 0.5, "margin": 0.2}


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (
            ["loss.hard_negatives={weight: 1, margn: 0.3}"],
            "there is no key 'margn' in loss.hard_negatives; did you mean 'margin'",
        ),
        (["loss.hard_negatives={weight: 1, margin: big}"], r"hard_negatives\.margin=big: margin takes a number"),
        (["loss.hard_negatives={weight: 1, margin: -1}"], "margin=-1.0 must be at least 0"),
        # what is written later takes the place of the number
        (["loss.hard_negatives=1", "loss.hard_negatives.margin=0.3"], "has no weight"),
        (["loss.pooled={weight: 1}"], "this term has no settings"),
    ],
)
def test_a_setting_that_a_term_does_not_have_is_refused(given: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        compose("model=tiny", *given)
