"""Swapped captions: one noun of the batch in place of another, never a caption that is true by its words."""

from dataclasses import replace

import pytest
import torch

from filip.common.errors import UserError
from filip.models import build_model, load_preset
from filip.text.tokenizer import decode_token, token_texts, tokenize
from filip_research.exchanged_nouns import with_nouns_exchanged
from filip_research.swapped_words import nouns, with_noun_exchanged
from tests.support.training import compose


def words_at(caption: str) -> list[str]:
    ids = tokenize(caption)[0][0].tolist()
    return [decode_token(ids[place]) for place in nouns(ids)]


def batch_of(captions: list[str], groups: list[int]) -> dict[str, torch.Tensor]:
    ids, lengths = tokenize(captions)
    return {"ids": ids, "lengths": lengths, "group": torch.tensor(groups)}


def text(row: torch.Tensor, length: torch.Tensor) -> str:
    return "".join(token_texts()[token] for token in row[1 : int(length) - 1].tolist()).strip()


def test_nouns_end_a_run_of_content_words() -> None:
    assert words_at("a small red bicycle behind the tree") == ["bicycle", "tree"]
    assert words_at("a photo of the dog, and two cats!") == ["dog", "cats"]
    assert words_at("of the") == words_at("a zzyzxq") == []  # not in one piece


def test_a_swapped_caption_differs_in_one_noun_that_its_group_does_not_have() -> None:
    captions = ["a red dog on the grass", "a dog", "a cat beside a blue car", "a bicycle", "in the"]
    groups = [0, 0, 1, 2, 3]
    batch = batch_of(captions, groups)
    came_in = set()
    for key in range(40):
        swapped, lengths = with_noun_exchanged(batch, str(key))
        assert int(lengths[4]) == 0  # nothing to exchange
        for i in range(4):
            length = lengths[i]
            assert length in (0, batch["lengths"][i])
            if not length:
                continue
            before, after = (text(batch["ids"][i], length).split(), text(swapped[i], length).split())
            (place,) = [k for k, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
            assert before[place] in {"dog", "grass", "cat", "car", "bicycle"}
            others = " ".join(c for c, g in zip(captions, groups, strict=True) if g == groups[i]).split()
            assert after[place] not in others
            came_in.add(after[place])
    assert came_in == {"dog", "grass", "cat", "car", "bicycle"}
    assert torch.equal(with_noun_exchanged(batch, "1")[0], with_noun_exchanged(batch, "1")[0])


def test_two_nouns_of_a_caption_change_places() -> None:
    batch = batch_of(["a red cat and a blue car", "a cat and a cat", "a red dog"], [0, 1, 2])
    altered, lengths = with_nouns_exchanged(batch, "0")
    assert lengths.tolist() == [int(batch["lengths"][0]), 0, 0]  # nothing to exchange
    assert text(altered[0], lengths[0]) == "a red car and a blue cat"


@pytest.mark.parametrize("interaction", ["token_wise", "pooled"])
def test_the_model_encodes_them_beside_the_captions(interaction: str) -> None:
    torch.manual_seed(0)
    model = build_model(replace(load_preset("tiny"), interaction=interaction)).eval()
    batch = batch_of(["a red dog", "of the", "two cats"], [0, 1, 2])
    ids, lengths = with_noun_exchanged(batch, "0")
    pixels = torch.randn(3, 3, model.image_size, model.image_size)
    there = lengths > 0
    every = torch.cat([batch["ids"], ids[there]]), torch.cat([batch["lengths"], lengths[there]])
    encoded = model(pixels, *every).apart(lengths)
    plain = model(pixels, batch["ids"], batch["lengths"])
    torch.testing.assert_close(encoded.text, plain.text)
    assert there.tolist() == (encoded.further.lengths > 0).tolist() == [True, False, True]
    alone = model.encode_text(ids[there], lengths[there])  # one vector each, or tokens
    torch.testing.assert_close(encoded.further.tokens, alone if interaction == "pooled" else alone.tokens)


def test_captions_that_would_be_compared_otherwise_are_refused() -> None:
    with pytest.raises(UserError, match=r"compares by the maximum over all tokens"):
        compose("model=tiny", "loss.swapped_words=1", "token_keep_ratio=0.5")
