"""Run by test_triton.py in a process of its own with TRITON_INTERPRET=1: the kernels against the reference."""

from __future__ import annotations

import contextlib

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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_any_size_keep_their_digits(dtype: torch.dtype) -> None:
    """Upstream gradients over seven decades, as of a soft-max; an item's gradient may rest on the small ones alone.

    A single 16-bit factor would be off by 2^-9 (bfloat16) or 2^-12 (float16), and float16's small numbers vanish.
    """
    problem = random_problem(5, 9, [3, 5, 2, 4, 3], 16)
    image, text = problem.image_tokens.to(dtype), problem.text_tokens.to(dtype)
    lengths = problem.text_lengths.tolist()
    maps = triton_kernel.forward(image, text, lengths)[2]
    weight = torch.logspace(0, -7, 5)[:, None] * (1 + torch.rand(5, 5)) * 1e-3
    for upstream in ((weight, weight), (weight.T.contiguous(), weight.T.contiguous())):
        found = triton_kernel.backward(*upstream, image, text, lengths, maps)
        wanted = triton_kernel.backward(*upstream, image.float(), text.float(), lengths, maps)
        rows = [(found[0][i], wanted[0][i]) for i in range(5)]
        rows += zip(found[1].split(lengths), wanted[1].split(lengths), strict=True)
        for a, b in rows:
            assert float((a - b).norm() / b.norm()) < 7e-5


def test_gradients_far_below_float16_do_not_underflow() -> None:
    problem = random_problem(2, 9, [3, 5], 16)
    image, text = problem.image_tokens.half(), problem.text_tokens.half()
    lengths = problem.text_lengths.tolist()
    maps = triton_kernel.forward(image, text, lengths)[2]
    small, one = torch.full((2, 2), 1e-9), torch.ones(2, 2)
    found = triton_kernel.backward(small, small, image, text, lengths, maps)
    whole = triton_kernel.backward(one, one, image, text, lengths, maps)
    for a, b in zip(found, whole, strict=True):
        torch.testing.assert_close(a * 1e9, b, rtol=1e-5, atol=1e-6)


def test_only_what_is_asked_for() -> None:
    """No maps without a backward, no gradient of a frozen side; the rest is the same."""
    problem = random_problem(2, 9, [3, 20], 16)
    tokens, lengths = problem[:2], problem.text_lengths.tolist()
    i2t, t2i, maps = triton_kernel.forward(*tokens, lengths)
    bare = triton_kernel.forward(*tokens, lengths, save_for_backward=False)
    assert torch.equal(bare[0], i2t) and torch.equal(bare[1], t2i) and bare[2] == ()
    both = triton_kernel.backward(i2t, t2i, *tokens, lengths, maps)
    for side, needs in enumerate(((True, False), (False, True))):
        found = triton_kernel.backward(i2t, t2i, *tokens, lengths, maps, needs)
        assert torch.equal(found[side], both[side]) and found[1 - side].numel() == 0


def test_kernels_are_launched_on_the_device_of_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no second device here: what is watched is that the tokens' is made the current one."""
    problem = random_problem(1, 3, [2], 16)
    devices: list[torch.Tensor] = []

    def device_of(tensor: torch.Tensor) -> contextlib.nullcontext[None]:
        devices.append(tensor)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    solve(problem, "triton")
    assert len(devices) == 2 and all(tensor.shape == problem.image_tokens.shape for tensor in devices)


def test_captions_are_laid_out_in_their_classes() -> None:
    lengths = [3, 40, 16, 17, 128, 1]
    starts = [0, 3, 43, 59, 76, 204]
    classes = triton_kernel._classes(lengths, torch.device("cpu"))
    assert [c.size for c in classes] == [16, 32, 64, 128]
    assert classes[0].text[::16].tolist() == [0, 2, 5, -1] and classes[0].tiles == 1
    for c in classes:
        for column, (row, length, text) in enumerate(zip(c.row, c.length, c.text, strict=True)):
            position = column % c.size
            if text < 0:
                assert int(length) == 0
                continue
            assert int(length) == (lengths[text] if position < lengths[text] else 0)
            assert int(row) == starts[text] + min(position, lengths[text] - 1)


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
