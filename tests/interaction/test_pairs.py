"""Chosen pairs have the values and gradients that they have among all pairs."""

import pytest
import torch

from late_interaction import late_interaction, late_interaction_pairs
from tests.interaction.problems import random_problem, tied_problem, upstream

MASK = torch.arange(6) < torch.tensor([[6], [3], [1], [5]])
PAIRS = {
    "aligned": (torch.arange(4), torch.arange(4)),
    "candidates of each image": (torch.arange(4)[:, None].expand(-1, 3), torch.tensor([[0, 2, 4]] * 4)),
    "candidates of each text": (torch.tensor([[3, 1, 0]] * 2), torch.tensor([4, 2])[:, None].expand(-1, 3)),
    "one pair": (torch.tensor(2), torch.tensor(4)),
}


# Padded texts of 6 positions: valid ones first, last, and anywhere (the third is then copied, the others are not).
PLACES = {"packed": None, "first": [0, 1, 2, 3, 4], "last": [1, 2, 3, 4, 5], "anywhere": [0, 2, 3, 4, 5]}


@pytest.mark.parametrize("backend", ["tiled", "native"])
@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_those_among_all(name: str, places: str, backend: str) -> None:
    images, texts = PAIRS[name]
    image, text, lengths = random_problem(4, 6, [3, 1, 5, 3, 3], 16)
    text = -text.abs()  # all similarities are negative, so that a padding of zeros would win
    image = image.abs()
    given, mask, where = text, MASK, PLACES[places]
    image = image.masked_fill(~MASK[..., None], torch.nan)
    valid = torch.zeros(5, 6, dtype=torch.bool)
    if where is not None:
        for row, length in zip(valid, lengths.tolist(), strict=True):
            row[where[-length:] if places == "last" else where[:length]] = True
        given = torch.full((5, 6, 16), torch.nan)
        given[valid] = text
    results = []
    for double in (False, True):
        dtype = torch.float64 if double or backend == "tiled" else torch.float32
        tokens = [tensor.to(dtype).requires_grad_() for tensor in (image, text if double else given)]
        if double:
            whole = late_interaction(*tokens, lengths, image_mask=mask, backend="reference")
            result = whole._replace(i2t=whole.i2t[images, texts], t2i=whole.t2i[images, texts])
        else:
            which = lengths if where is None else valid
            result = late_interaction_pairs(*tokens, which, images, texts, image_mask=mask, backend=backend)
        gradients = torch.autograd.grad(tuple(result), tokens, [w.to(dtype) for w in upstream(result.i2t.shape)])
        of_texts = gradients[1] if double or where is None else gradients[1][valid]
        assert not gradients[0][~MASK].any() and gradients[1].sum() == pytest.approx(of_texts.sum().item())
        results.append([part.double() for part in (*result, gradients[0][MASK], of_texts)])
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("longest", [40, 300])
def test_pairs_in_any_order_by_each_instruction_set(longest: int, dtype: torch.dtype, isa: str, threads: None) -> None:
    """Many units of work, items of many pairs and of none, maps of one and of two bytes."""
    image, text, lengths = random_problem(9, 35, [longest, 7, 33, 1, 20, 2], 30)
    image, text = image.to(dtype), text.to(dtype)
    images, texts = torch.randint(8, (150,)), torch.randint(5, (150,))
    exact = image.double().requires_grad_(), text.double().requires_grad_()
    whole = late_interaction(*exact, lengths, backend="reference")
    chosen = [side[images, texts] for side in whole]
    weights = upstream(chosen[0].shape)
    expected = [*chosen, *torch.autograd.grad(chosen, exact, [weight.double() for weight in weights])]
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        tokens = image.clone().requires_grad_(), text.clone().requires_grad_()
        result = late_interaction_pairs(*tokens, lengths, images, texts, backend="native")
        results.append([*result, *torch.autograd.grad(tuple(result), tokens, weights)])
    assert all(map(torch.equal, *results))
    gradients = 1e-5 if dtype == torch.float32 else 5e-3  # which are rounded to the tokens' dtype
    for one, other, tolerance in zip(results[0], expected, (1e-6,) * 2 + (gradients,) * 2, strict=True):
        assert (one.double() - other).norm() <= tolerance * other.norm()


def test_what_is_not_finite_shows() -> None:
    for token in range(3):
        image, text, lengths = random_problem(1, 4, [3], 16)
        text[token, 3] = torch.inf
        zero = torch.zeros(1, dtype=torch.int64)
        assert not late_interaction_pairs(image, text, lengths, zero, zero, backend="native").i2t.isfinite()


def test_between_the_passes_only_winners_are_kept() -> None:
    image, text, lengths = random_problem(4, 6, [3, 1, 5, 3, 3], 16)
    kept: list[int] = []
    tokens = image.bfloat16().requires_grad_(), text.bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel() * tensor.element_size()) or tensor, lambda tensor: tensor
    ):
        result = late_interaction_pairs(*tokens, lengths, *PAIRS["candidates of each image"])
    assert sum(kept) == 2 * (image.numel() + text.numel()) + 4 * (3 * 6 + 3 + 5 + 3)
    gradients = torch.autograd.grad(result.i2t.sum() + result.t2i.sum(), tokens)
    assert all(gradient.dtype == torch.bfloat16 for gradient in gradients)


def test_of_equal_maxima_the_first_takes_the_gradient() -> None:
    problem = tied_problem(3, 5, [4, 4, 4], 3)
    both = []
    for score in (
        lambda *tokens: late_interaction_pairs(*tokens, torch.arange(3), torch.arange(3)).i2t,
        lambda *tokens: late_interaction(*tokens, backend="reference").i2t.diagonal(),
    ):
        tokens = [tensor.clone().requires_grad_() for tensor in problem[:2]]
        both.append(torch.autograd.grad(score(*tokens, problem.text_lengths).sum(), tokens))
    torch.testing.assert_close(both[0], both[1])


@pytest.mark.parametrize("texts", [[0, 2], [0], torch.tensor([0, 1], dtype=torch.int32)])
def test_what_does_not_fit_is_refused_in_words(texts: list[int] | torch.Tensor) -> None:
    problem = random_problem(2, 3, [2, 4], 8)
    with pytest.raises(ValueError, match=r"from 0 to 2, but there are 2 texts|\[1\]|and torch.int32 \[2\]"):
        late_interaction_pairs(*problem, torch.arange(2), torch.as_tensor(texts))
    with pytest.raises(ValueError, match=r"\[0, 2, 6\] looks like .* pass cu_seqlens.diff\(\)"):
        late_interaction(*problem[:2], torch.tensor([0, 2, 6]))
