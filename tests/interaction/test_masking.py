"""Padding on either side takes part in nothing, whatever it holds."""

import pytest
import torch

from late_interaction import late_interaction
from tests.interaction.available import BACKENDS
from tests.interaction.problems import random_problem, upstream


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_images_are_padded_ones(backend: str) -> None:
    problem = random_problem(3, 6, [3, 1, 5], 16)
    mask = torch.arange(6) < torch.tensor([[6], [2], [5]])
    padded = problem.image_tokens.requires_grad_()
    one = late_interaction(padded, *problem[1:], image_mask=mask, backend=backend)
    packed = padded[mask]
    other = late_interaction(packed, *problem[1:], image_lengths=mask.sum(dim=1), backend=backend)
    assert all(map(torch.equal, one, other))
    weights = upstream(one.i2t.shape)
    assert torch.equal(
        torch.autograd.grad(one, padded, weights)[0][mask], torch.autograd.grad(other, packed, weights)[0]
    )
    whole = torch.ones(3, 6).bool()  # is no mask at all
    assert all(
        map(
            torch.equal,
            late_interaction(*problem, image_mask=whole, backend=backend),
            late_interaction(*problem, backend=backend),
        )
    )


def test_texts_without_a_token_anywhere_are_no_cumulative_lengths() -> None:
    with pytest.raises(ValueError, match=r"every text needs at least one token.*3 of 3 have none"):
        late_interaction(torch.ones(2, 3, 8), torch.ones(3, 4, 8), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"every text needs at least one token.*1 of 2 have none"):
        late_interaction(torch.ones(2, 3, 8), torch.ones(2, 4, 8), torch.tensor([0, 3]))


def test_a_mask_keeps_the_digits_of_float64() -> None:
    """The share of the tokens that exist was a quotient of integers, which is float32."""
    problem = random_problem(3, 7, [3, 1, 5], 16)
    image, text = problem.image_tokens.double(), problem.text_tokens.double()
    mask = torch.arange(7) < torch.tensor([[7], [3], [5]])
    result = late_interaction(image, text, problem.text_lengths, image_mask=mask, backend="reference")
    for n, count in enumerate((7, 3, 5)):
        alone = late_interaction(image[n : n + 1, :count], text, problem.text_lengths, backend="reference")
        torch.testing.assert_close(result.i2t[n : n + 1], alone.i2t, rtol=1e-14, atol=1e-15)
        torch.testing.assert_close(result.t2i[n : n + 1], alone.t2i, rtol=1e-14, atol=1e-15)
