"""Padding on either side takes part in nothing, whatever it holds."""

import pytest
import torch

from late_interaction import late_interaction
from tests.interaction.available import BACKENDS
from tests.interaction.problems import random_problem, upstream


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_takes_part_in_nothing(backend: str) -> None:
    problem = random_problem(4, 6, [3, 1, 5], 16)
    results = []
    for filler in (0.0, 1e4, float("nan")):
        padded = torch.full((3, 9, 16), filler)
        for j, text in enumerate(problem.text_tokens.split([3, 1, 5])):
            padded[j, : len(text)] = text
        padded.requires_grad_()
        similarity = late_interaction(problem.image_tokens, padded, problem.text_lengths, backend=backend)
        (similarity.i2t.sum() + similarity.t2i.sum()).backward()
        assert padded.grad is not None
        beyond = torch.arange(9) >= problem.text_lengths[:, None]
        assert float(padded.grad[beyond].abs().max()) == 0
        results.append((similarity.i2t, similarity.t2i, padded.grad))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    packed = late_interaction(*problem, backend=backend)
    assert torch.equal(packed.i2t, results[0][0]) and torch.equal(packed.t2i, results[0][1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("filler", [0.0, 1e4, float("nan")])
def test_masked_image_tokens_take_part_in_nothing(backend: str, filler: float) -> None:
    """All similarities are negative, so that a padding of zeros would win every maximum over image tokens."""
    problem = random_problem(3, 6, [3, 1, 5], 16)
    text, lengths = -problem.text_tokens.abs(), problem.text_lengths
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0]]).bool()
    image = torch.where(mask[..., None], problem.image_tokens.abs(), filler).requires_grad_()
    text = text.requires_grad_()
    result = late_interaction(image, text, lengths, image_mask=mask, backend=backend)
    alone = [
        late_interaction(tokens[keep][None], text, lengths, backend="reference")
        for tokens, keep in zip(image, mask, strict=True)
    ]
    for name in ("i2t", "t2i"):
        expected = torch.cat([getattr(similarity, name) for similarity in alone])
        torch.testing.assert_close(getattr(result, name), expected, rtol=1e-5, atol=1e-6)
    weights = upstream(result.i2t.shape)
    gradients = torch.autograd.grad(tuple(result), (image, text), weights)
    separate = tuple(torch.cat(matrices) for matrices in zip(*alone, strict=True))
    for a, b in zip(gradients, torch.autograd.grad(separate, (image, text), weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert not gradients[0][~mask].any()


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
