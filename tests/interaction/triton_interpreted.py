"""Run by test_triton.py in a process of its own with TRITON_INTERPRET=1: the kernels against the reference."""

from __future__ import annotations

import pytest
import torch

from filip.interaction import late_interaction, triton_kernel
from tests.interaction.problems import (
    Problem,
    assert_close,
    by_definition,
    random_problem,
    solve,
    tied_problem,
)


@pytest.mark.parametrize(
    "shape",
    [
        (2, 5, [1, 3, 20, 40, 16, 77], 16),  # every length class
        (3, 1, [1], 16),
        (1, 49, [18, 30], 40),
        (1, 130, [5, 128], 20),  # three chunks of rows, the longest caption, odd features
        (1, 260, [4], 16),  # 16-bit maps
    ],
)
def test_float32(shape: tuple[int, int, list[int], int]) -> None:
    problem = random_problem(*shape)
    assert_close(solve(problem, "triton"), solve(problem, "reference", torch.float64), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit(dtype: torch.dtype) -> None:
    problem = random_problem(2, 49, [2, 18, 18, 40], 32)
    rounded = Problem(*(t.to(dtype) for t in problem[:2]), problem.text_lengths)
    expected = solve(rounded, "reference", torch.float64)
    assert_close(solve(rounded, "triton"), expected, 2e-6, 2 * torch.finfo(dtype).eps)


def test_small_gradients_do_not_underflow_in_float16() -> None:
    problem = random_problem(2, 9, [3, 5], 16)
    image, text = problem.image_tokens.half(), problem.text_tokens.half()
    lengths = problem.text_lengths.tolist()
    _, _, kept = triton_kernel.forward(image, text, lengths)
    small = torch.full((2, 2), 1e-9)
    found = triton_kernel.backward(small, small, image, text, lengths, kept)
    whole = triton_kernel.backward(torch.ones(2, 2), torch.ones(2, 2), image, text, lengths, kept)
    for a, b in zip(found, whole, strict=True):
        torch.testing.assert_close(a * 1e9, b, rtol=1e-5, atol=1e-6)


def test_ties_go_to_the_lowest_index() -> None:
    problem = tied_problem(2, 70, [1, 9, 20], 4)
    assert_close(solve(problem, "triton"), by_definition(problem), 1e-6)


def test_negative_similarities() -> None:
    problem = random_problem(2, 6, [2, 31], 16)
    opposite = Problem(problem.image_tokens.abs(), -problem.text_tokens.abs(), problem.text_lengths)
    assert_close(solve(opposite, "triton"), solve(opposite, "reference", torch.float64), 1e-5)


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(ValueError, match="at most 128 tokens, not 129"):
        late_interaction(torch.zeros(1, 2, 8), torch.zeros(129, 8), torch.tensor([129]), backend="triton")
    with pytest.raises(ValueError, match="float32, not"):
        late_interaction(
            torch.zeros(1, 2, 8).double(), torch.zeros(2, 8).double(), torch.tensor([2]), backend="triton"
        )
