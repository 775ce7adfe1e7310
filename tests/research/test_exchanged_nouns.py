"""Captions with two nouns exchanged: which words change places, how the model reads them, and a training with them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from filip.common.errors import UserError
from filip.models import build_model, load_preset
from filip.text.tokenizer import decode_token, token_texts, tokenize
from filip.train.losses import TERMS, Loss
from filip_research.exchanged_nouns import nouns, with_nouns_exchanged
from tests.support.training import losses, run_many, series, train_arguments
from tests.train.loss_batches import settings


def words_at(caption: str) -> list[str]:
    ids = tokenize(caption)[0][0].tolist()
    return [decode_token(ids[place]) for place in nouns(ids)]


def batch_of(captions: list[str]) -> dict[str, torch.Tensor]:
    ids, lengths = tokenize(captions)
    return {"ids": ids, "lengths": lengths}


def test_nouns_end_a_run_of_content_words() -> None:
    assert words_at("a small red bicycle behind the tree") == ["bicycle", "tree"]
    assert words_at("a photo of the dog, and two cats!") == ["dog", "cats"]
    assert words_at("of the") == words_at("a zzyzxq") == []  # not in one piece


def test_two_nouns_of_a_caption_change_places() -> None:
    batch = batch_of(["a red cat and a blue car", "a cat and a cat", "a red dog"])
    altered, lengths = with_nouns_exchanged(batch, "0")
    assert lengths.tolist() == [int(batch["lengths"][0]), 0, 0]  # nothing to exchange
    shown = "".join(token_texts()[token] for token in altered[0, 1 : int(lengths[0]) - 1].tolist()).strip()
    assert shown == "a red car and a blue cat"


@pytest.mark.parametrize("interaction", ["token_wise", "pooled"])
def test_the_model_encodes_them_beside_the_captions(interaction: str) -> None:
    torch.manual_seed(0)
    model = build_model(replace(load_preset("tiny"), interaction=interaction)).eval()
    batch = batch_of(["a red dog and a cat", "of the", "two cats in a car"])
    ids, lengths = with_nouns_exchanged(batch, "0")
    pixels = torch.randn(3, 3, model.image_size, model.image_size)
    there = lengths > 0
    every = torch.cat([batch["ids"], ids[there]]), torch.cat([batch["lengths"], lengths[there]])
    encoded = model(pixels, *every).apart(lengths)
    plain = model(pixels, batch["ids"], batch["lengths"])
    torch.testing.assert_close(encoded.text, plain.text)
    assert there.tolist() == (encoded.further.lengths > 0).tolist() == [True, False, True]
    alone = model.encode_text(ids[there], lengths[there])  # one vector each, or tokens
    torch.testing.assert_close(encoded.further.tokens, alone if interaction == "pooled" else alone.tokens)


def test_captions_are_made_by_one_term_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TERMS, "others", TERMS["exchanged_nouns"])
    with pytest.raises(UserError, match=r"loss\.exchanged_nouns and loss\.others both make further captions"):
        Loss({"exchanged_nouns": 1.0, "others": 1.0}, settings())


@pytest.mark.slow
def test_a_run_trains_with_exchanged_captions(squares: Path, tmp_path: Path) -> None:
    options = ("loss.exchanged_nouns=1", "model.interaction=pooled", "max_steps=6")
    runs = [
        train_arguments(squares, tmp_path / "one", *options),
        train_arguments(squares, tmp_path / "cached", *options, "gradient_cache=6"),
    ]
    assert run_many(1, runs, tmp_path / "log") == [0, 0]
    assert losses(tmp_path / "cached")[:4] == pytest.approx(losses(tmp_path / "one")[:4], abs=1e-5)
    assert len(series(tmp_path / "one", "tokens/exchanged_share_exchanged_nouns")) == 6
