"""A text's scores of many items, by the kernel and by PyTorch, against one product in float64."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from late_interaction import native
from late_interaction.retrieval import search, text_scores


def in_int8(tokens: Tensor) -> tuple[Tensor, Tensor]:
    scales = tokens.abs().amax(-1) / 127
    return (tokens / scales[..., None]).round().to(torch.int8), scales


def exact(words: Tensor, tokens: Tensor, lengths: list[int]) -> Tensor:
    products = tokens.double() @ words.double().T
    return torch.stack([item.amax(0).mean() for item in products.split(lengths)]).float()


@pytest.fixture(params=["kernel", "PyTorch"])
def computed_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    probe = torch.ones(1, 4, dtype=torch.int8)
    if native.text_scores(torch.ones(1, 4), probe, torch.ones(1), torch.tensor([1])) is None:
        if request.param == "kernel":
            pytest.skip("this CPU lacks AVX-512's products of int8 and bfloat16")
    elif request.param == "PyTorch":
        monkeypatch.setattr(native, "text_scores", lambda *_: None)
    return request.param


@pytest.mark.parametrize("seed", range(12))
def test_scores_are_those_of_one_product(computed_by: str, seed: int) -> None:
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    words = F.normalize(torch.randn(draw.choice([1, 4, 12, 15, 16, 31, 60]), 128, generator=generator), dim=-1)
    lengths = [draw.randint(1, 40) for _ in range(draw.choice([1, 63, 64, 200]))]
    tokens = F.normalize(torch.randn(sum(lengths), 128, generator=generator), dim=-1)
    tokens[draw.randrange(len(tokens))] = words[0]
    wanted, given = exact(words, tokens, lengths), torch.tensor(lengths)
    for kind, scales in (in_int8(tokens), (tokens.bfloat16(), None), (tokens, None)):
        scores = text_scores(words, kind, scales, lengths=given)
        assert (scores - wanted).abs().max() < (0.004 if computed_by == "PyTorch" else 0.002)
        values, items = search(words, kind, scales, lengths=given, k=10)
        assert torch.equal(values, scores.sort(descending=True).values[:10])
        assert torch.equal(scores[items], values)
    assert torch.allclose(text_scores(words, tokens, lengths=given), wanted, atol=1e-6)


def test_rows_with_other_data_between_them_and_threads_change_no_bit(computed_by: str) -> None:
    tokens, scales = in_int8(torch.randn(300, 7, 64, generator=torch.Generator().manual_seed(0)))
    words = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    apart = torch.full((300, 7, 72), 99, dtype=torch.int8)
    apart[..., :64] = tokens
    scores = text_scores(words, tokens, scales)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(text_scores(words, apart[..., :64], scales), scores)
    finally:
        torch.set_num_threads(before)
    packed = text_scores(words, tokens.flatten(0, 1), scales.flatten(), lengths=torch.full((300,), 7))
    assert torch.equal(packed, scores)


def test_a_number_that_is_none_shows_in_its_item_alone(computed_by: str) -> None:
    tokens, scales = in_int8(torch.randn(70, 9, 64, generator=torch.Generator().manual_seed(0)))
    scales[5, 0] = scales[66, 8] = torch.nan
    floats = (tokens * scales[..., None]).bfloat16()
    for kind, factors in ((tokens, scales), (floats, None), (floats.float(), None)):
        scores = text_scores(torch.randn(5, 64), kind, factors)
        assert scores.isnan().nonzero().flatten().tolist() == [5, 66]


def test_odd_widths_are_scored_too() -> None:
    tokens = torch.randn(20, 3, 7, generator=torch.Generator().manual_seed(0))
    wanted = exact(tokens[0], tokens.flatten(0, 1), [3] * 20)
    for kind, scales, error in ((*in_int8(tokens), 0.2), (tokens.bfloat16(), None, 0.05)):
        assert torch.allclose(text_scores(tokens[0], kind, scales), wanted, atol=error)


def test_what_does_not_fit_is_refused_in_words() -> None:
    words, tokens = torch.ones(2, 8), torch.ones(3, 4, 8, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"words \[2, 4\], tokens \[12, 8\].* need one width"):
        text_scores(words[:, :4], tokens, torch.ones(3, 4))
    for scales in (None, torch.ones(3, 4).half(), torch.ones(3, 3)):
        with pytest.raises(ValueError, match="one float32 scale each"):
            text_scores(words, tokens, scales)
    with pytest.raises(ValueError, match="without tokens"):
        text_scores(words, tokens[0].float(), lengths=torch.tensor([4, 0]))
