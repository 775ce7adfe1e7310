"""The native smooth maximum on every instruction set of this CPU, against float64 by autograd."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from filip.interaction import Blockwise, SmoothMaximum, late_interaction, native, smooth_maximum
from tests.interaction.problems import Problem, Result, random_problem, upstream

PROBLEMS = 40

if native.unavailable_reason():
    pytest.skip(native.unavailable_reason(), allow_module_level=True)


def solve(problem: Problem, temperature: float, dtype: torch.dtype) -> Result:
    """Solve by the native kernels, or by autograd in float64."""
    exact = dtype == torch.float64
    backend = Blockwise(smooth_maximum(temperature)) if exact else SmoothMaximum(temperature)
    image, text = (tokens.detach().to(dtype).requires_grad_() for tokens in problem[:2])
    i2t, t2i = late_interaction(image, text, problem.text_lengths, backend=backend)
    weights = [weight.to(i2t.dtype) for weight in upstream(i2t.shape)]
    return Result(i2t.detach(), t2i.detach(), *torch.autograd.grad((i2t, t2i), (image, text), weights))


def drawn(seed: int) -> tuple[Problem, float, torch.dtype]:
    draw = random.Random(seed)
    lengths = [draw.choice([1, 2, 7, 20, 150]) for _ in range(draw.choice([1, 3, 17, 40]))]
    sizes = draw.choice([1, 2, 5, 9, 30]), draw.choice([1, 3, 16, 49, 64, 300])
    problem = random_problem(*sizes, lengths, draw.choice([1, 4, 16, 17, 100, 128, 256]), seed)
    dtype = draw.choice([torch.float32, torch.bfloat16, torch.float16])
    return problem, draw.choice([0.014, 0.02, 0.05, 0.3, 5.0]), dtype


@pytest.fixture
def no_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow only float64 to be computed in blocks: otherwise this would compare the fallback with itself."""
    forward = Blockwise.forward

    def exact_only(self: Blockwise, tokens: object, *rest: object) -> object:
        assert tokens.image.dtype == torch.float64  # type: ignore[attr-defined]
        return forward(self, tokens, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Blockwise, "forward", exact_only)


def test_values_and_gradients_are_those_of_float64(isa: str, no_blocks: None) -> None:
    for seed in range(PROBLEMS):
        problem, temperature, dtype = drawn(seed)
        rounded = problem._replace(
            image_tokens=problem.image_tokens.to(dtype), text_tokens=problem.text_tokens.to(dtype)
        )
        found, exact = solve(rounded, temperature, dtype), solve(rounded, temperature, torch.float64)
        for name, one, other in zip(Result._fields, found, exact, strict=True):
            scale = float(other.abs().max()) + (temperature if name in ("i2t", "t2i") else 0)
            allowed = (
                3e-6
                if name in ("i2t", "t2i")
                else 6e-6
                if dtype == torch.float32
                else 2 * torch.finfo(dtype).eps
            )
            assert float((one.double() - other).abs().max()) <= allowed * scale, (
                seed,
                name,
                temperature,
                dtype,
            )


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_the_bits_do_not_depend_on_the_number_of_threads(threads: int, no_blocks: None) -> None:
    problem = random_problem(70, 16, [20, 3, 9] * 60, 32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = solve(problem, 0.05, torch.float32)
        torch.set_num_threads(threads)
        assert all(map(torch.equal, alone, solve(problem, 0.05, torch.float32)))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("side", [0, 1])
def test_a_side_that_needs_no_gradient_gets_none_and_changes_nothing(side: int, no_blocks: None) -> None:
    problem = random_problem(5, 7, [3, 4], 16)
    whole = solve(problem, 0.1, torch.float32)
    tokens = [one.detach().requires_grad_(n == side) for n, one in enumerate(problem[:2])]
    i2t, t2i = late_interaction(*tokens, problem.text_lengths, backend=SmoothMaximum(0.1))
    (found,) = torch.autograd.grad((i2t, t2i), tokens[side], upstream(i2t.shape))
    assert torch.equal(found, whole[2 + side])


def scaled(problem: Problem, factor: float) -> Problem:
    return problem._replace(image_tokens=problem.image_tokens * factor)


@pytest.mark.parametrize("factor", [1.0, 30.0, 1e4])
def test_it_lies_between_the_mean_and_the_maximum_whatever_the_range(factor: float) -> None:
    """Beyond the range of float32's exponential it is computed in blocks."""
    problem = scaled(random_problem(6, 9, [4, 1, 8], 16), factor)
    hard = late_interaction(*problem, backend="reference")
    smooth = late_interaction(*problem, backend=SmoothMaximum(0.05))
    nearly_mean = late_interaction(*problem, backend=SmoothMaximum(1e3 * factor))
    for high, middle, low in zip(hard, smooth, nearly_mean, strict=True):
        assert (middle <= high + 1e-5 * factor).all() and (low <= middle + 1e-3 * factor).all()
        longest = torch.tensor(9.0).log()
        assert (high - middle <= 0.05 * longest + 1e-5 * factor).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_shows(value: float) -> None:
    problem = random_problem(3, 4, [2, 3], 8)
    problem.image_tokens[1, 2, 3] = value
    found = late_interaction(*problem, backend=SmoothMaximum(0.05))
    assert not found.i2t[1].isfinite().any() and found.i2t[[0, 2]].isfinite().all()


def test_a_mask_is_refused() -> None:
    """It repeats tokens where there are none, which changes a mean."""
    problem = random_problem(2, 4, [2, 3], 8)
    with pytest.raises(ValueError, match="image_mask is for the maximum"):
        late_interaction(*problem, image_mask=torch.ones(2, 4).bool(), backend=SmoothMaximum(0.05))


def test_a_temperature_has_to_be_positive() -> None:
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature must be positive"):
            SmoothMaximum(wrong)


def test_collapsed_and_opposite_tokens_keep_their_digits(isa: str, no_blocks: None) -> None:
    """All tokens equal: the smooth maximum is their cosine itself. All opposite: it is as exact."""
    one = F.normalize(torch.ones(1, 64), dim=-1)

    def tokens(count: int, sign: float = 1.0) -> Tensor:
        return sign * one.expand(count, 64).contiguous()

    for sign in (1.0, -1.0):
        problem = Problem(tokens(6).view(2, 3, 64), tokens(9, sign), torch.tensor([4, 5]))
        found = solve(problem, 0.02, torch.float32)
        assert (found.i2t - sign).abs().max() < 1e-6 and (found.t2i - sign).abs().max() < 1e-6
        assert found.grad_image.isfinite().all() and found.grad_text.isfinite().all()
