"""Both maxima of every backend on random problems, padded on either side, against einsum and autograd in float64."""

import random
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from late_interaction import SmoothMaximum, late_interaction
from tests.interaction.problems import BOUNDS, Errors, upstream

PROBLEMS = 12
TEMPERATURES = [0.001, 0.014, 0.05, 0.3, 5.0]  # the first beyond the range of float32's exponential
BACKENDS = [key for key in BOUNDS if key[0] != "triton"]


class Drawn(NamedTuple):
    image: Tensor  # [b, n1, d], padding included
    text: Tensor  # [t, n2, d], likewise
    image_mask: Tensor
    text_mask: Tensor


def drawn(seed: int, dtype: torch.dtype) -> Drawn:
    """Draw unit tokens of some number of features; the padding, anywhere, is NaN."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    d = draw.choice([1, 4, 16, 17, 100, 128])

    def side(items: int, longest: int) -> tuple[Tensor, Tensor]:
        tokens = F.normalize(torch.randn(items, longest, d, generator=generator), dim=-1).to(dtype)
        share = draw.choice([0.0, 0.2, 0.7, 1.0])  # of the tokens that exist
        mask = torch.rand(items, longest, generator=generator) < share
        mask[torch.arange(items), torch.randint(longest, (items,), generator=generator)] = True
        return torch.where(mask[..., None], tokens, torch.nan), mask

    image, image_mask = side(draw.choice([1, 2, 5, 9, 30]), draw.choice([1, 3, 16, 49, 64]))
    text, text_mask = side(draw.choice([1, 3, 17, 40]), draw.choice([1, 2, 7, 20, 80]))
    return Drawn(image, text, image_mask, text_mask)


def exact(problem: Drawn, temperature: float | None) -> tuple[Tensor, ...]:
    """Compute both similarities and both gradients from all of [b, t, n1, n2]; None takes the maximum."""
    image, text = (side.double().nan_to_num().requires_grad_() for side in problem[:2])
    similarity = torch.einsum("ikd,jrd->ijkr", image, text)
    masks = problem.image_mask[:, None, :, None], problem.text_mask[None, :, None, :]

    def direction(own: int) -> Tensor:
        """Return the mean over the tokens of side ``own`` of the maximum over the other side."""
        over = 3 - own
        allowed = similarity.masked_fill(~masks[1 - own], -torch.inf)
        if temperature is None:
            best = allowed.max(dim=over).values  # among equal ones the first
        else:
            counts = masks[1 - own].sum(dim=over).double().log()
            best = temperature * ((allowed / temperature).logsumexp(dim=over) - counts)
        mask = masks[own].squeeze(over)
        return torch.where(mask, best, 0).sum(dim=2) / mask.sum(dim=2)

    i2t, t2i = direction(0), direction(1)
    weights = [weight.double() for weight in upstream(i2t.shape)]
    return i2t.detach(), t2i.detach(), *torch.autograd.grad((i2t, t2i), (image, text), weights)


def check(backend: str, dtype_name: str, temperature: float | None, seed: int, bound: Errors | None = None) -> None:
    dtype = getattr(torch, dtype_name)
    problem, bound = drawn(seed, dtype), bound or BOUNDS[backend, dtype_name]
    image, text = (side.clone().requires_grad_() for side in problem[:2])
    maximum = None if temperature is None else SmoothMaximum(temperature)
    result = late_interaction(
        image, text, problem.text_mask, image_mask=problem.image_mask, backend=backend, maximum=maximum
    )
    assert result.i2t.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    weights = [weight.to(result.i2t.dtype) for weight in upstream(result.i2t.shape)]
    everything = *result, *torch.autograd.grad(tuple(result), (image, text), weights)
    # An exponent of |s| / t has the rounding error of s, divided by t.
    steep = 1 if temperature is None else max(1.0, 0.014 / temperature)
    rounded = torch.finfo(dtype).eps / 2 if dtype in (torch.float16, torch.bfloat16) else 0.0
    allowed = [bound.similarities] * 2 + [steep * bound.gradients + rounded] * 2
    expected = exact(problem, temperature)
    for place, (a, b, most) in enumerate(zip(everything, expected, allowed, strict=True)):
        scale = float(b.abs().max()) + (temperature or 0.0) * (place < 2)
        difference = float((a.detach().double() - b).abs().max())
        assert difference <= most * scale, (seed, place, temperature, difference / scale)
    for gradient, mask in zip(everything[2:], (problem.image_mask, problem.text_mask), strict=True):
        assert not gradient[~mask].any()


@pytest.mark.parametrize(("backend", "dtype"), [key for key in BACKENDS if key[0] != "native"])
@pytest.mark.parametrize("smooth", [False, True])
def test_in_pytorch(backend: str, dtype: str, smooth: bool) -> None:
    for seed in range(PROBLEMS):
        check(backend, dtype, TEMPERATURES[seed % 5] if smooth else None, seed)


@pytest.mark.parametrize("dtype", [dtype for backend, dtype in BACKENDS if backend == "native"])
@pytest.mark.parametrize("smooth", [False, True])
def test_on_every_instruction_set(isa: str, dtype: str, smooth: bool) -> None:
    bound = BOUNDS["native", dtype]
    if smooth and dtype == "bfloat16" and isa in ("amx", "avx512_bf16"):  # weights of the gradients are rounded
        bound = BOUNDS["triton", dtype]
    for seed in range(PROBLEMS):
        check("native", dtype, TEMPERATURES[seed % 5] if smooth else None, seed, bound)
