"""Chosen pairs have the values and gradients that they have among all pairs."""

import pytest
import torch

from late_interaction import late_interaction, late_interaction_pairs, pairs
from tests.interaction.problems import random_problem, tied_problem, upstream

MASK = torch.arange(6) < torch.tensor([[6], [3], [1], [5]])
PAIRS = {
    "aligned": (torch.arange(4), torch.arange(4)),
    "candidates of each image": (torch.arange(4)[:, None].expand(-1, 3), torch.tensor([[0, 2, 4]] * 4)),
    "one pair": (torch.tensor(2), torch.tensor(4)),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_those_among_all(name: str, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_TILE_ELEMENTS", 50)  # several blocks
    images, texts = PAIRS[name]
    image, text, lengths = random_problem(4, 6, [3, 1, 5, 3, 3], 16)
    text = -text.abs()  # all similarities are negative, so that a padding of zeros would win
    image, text = image.abs().double(), text.double()
    mask = None
    if masked:
        mask = MASK
        image[~MASK] = float("nan")
    results = []
    for score in (late_interaction_pairs, None):
        tokens = image.clone().requires_grad_(), text.clone().requires_grad_()
        if score is not None:
            result = score(*tokens, lengths, images, texts, image_mask=mask)
        else:
            whole = late_interaction(*tokens, lengths, image_mask=mask, backend="reference")
            result = whole._replace(i2t=whole.i2t[images, texts], t2i=whole.t2i[images, texts])
        gradients = torch.autograd.grad(tuple(result), tokens, upstream(result.i2t.shape))
        results.append([*result, gradients[0][MASK], gradients[1]])
        if masked:
            assert not gradients[0][~MASK].any()
    torch.testing.assert_close(results[0], results[1])


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


def test_cumulative_lengths_are_recognised() -> None:
    problem = random_problem(2, 3, [2, 4], 8)
    with pytest.raises(ValueError, match=r"\[0, 2, 6\] looks like .* pass cu_seqlens.diff\(\)"):
        late_interaction(*problem[:2], torch.tensor([0, 2, 6]))
