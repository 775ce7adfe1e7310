"""Run by test_triton.py in a separate process with TRITON_INTERPRET=1: the kernels against the reference."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from late_interaction import SmoothMaximum, late_interaction, reference, triton_backend, triton_launch, triton_smooth
from late_interaction.packing import Tokens
from tests.interaction.problems import (
    BOUNDS,
    Problem,
    Result,
    assert_close,
    by_definition,
    measure,
    random_problem,
    solve,
    tied_problem,
    upstream,
)

SHAPES = [
    (3, 5, [1, 3, 9, 12], 16),  # images next to one another in a block, the last of them missing
    (3, 1, [1], 16),
    (1, 49, [8, 5], 40),
    (1, 130, [2, 5], 20),  # two launches for the rows of an image, odd features
    (1, 260, [2], 16),  # 16-bit maps of rows
    (2, 5, [1] * 63 + [2, 3, 2], 16),  # two groups of captions, whose tiles are odd in number
]


@pytest.mark.parametrize("shape", SHAPES)
def test_float32(shape: tuple[int, int, list[int], int]) -> None:
    problem = random_problem(*shape)
    assert_close(solve(problem, "triton"), solve(problem, "reference", torch.float64), 1e-5)


def test_captions_of_more_than_128_tokens() -> None:
    problem = random_problem(1, 3, [130], 16)
    result = late_interaction(*problem, backend="triton")
    torch.testing.assert_close(result, late_interaction(*problem, backend="reference"), rtol=1e-5, atol=1e-6)
    maps = [triton_backend.forward(random_problem(1, 1, [n], 16).tokens())[1] for n in (255, 256)]
    assert [of_images.dtype for of_images, _ in maps] == [torch.uint8, torch.int16]


@pytest.mark.parametrize("dtype", [dtype for backend, dtype in BOUNDS if backend == "triton"])
def test_errors_stay_within_their_bounds(dtype: str) -> None:
    # Shorter captions than the other backends', of as many different lengths: the interpreter is slow.
    result, bound = measure("triton", dtype, lengths=(4, 9, 2)), BOUNDS["triton", dtype]
    assert result.similarities <= bound.similarities and result.gradients <= bound.gradients, result


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("capability", [80, 90])
def test_16_bit(dtype: torch.dtype, capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On 9.0 the image tokens stay in shared memory, on 8.0 they are read in pieces."""
    monkeypatch.setattr(triton_launch, "capability_of", lambda device: capability)
    problem = random_problem(2, 49, [2, 7, 7, 10], 80)
    rounded = Problem(problem.image_tokens.to(dtype), problem.text_tokens.to(dtype), problem.text_lengths)
    expected = solve(rounded, "reference", torch.float64)
    assert_close(solve(rounded, "triton"), expected, 2e-6, 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_any_size_keep_their_digits(dtype: torch.dtype) -> None:
    """Upstream gradients span nine decades, as a soft-max's do; an item's gradient may rest on the small ones alone.

    Each is rounded, and once more where two are added.
    """
    tokens = random_problem(5, 9, [3, 5, 2, 4, 3], 16).tokens(dtype)
    widened = tokens._replace(image=tokens.image.float(), text=tokens.text.float())
    maps = triton_backend.forward(tokens)[1]
    weight = torch.logspace(0, -9, 5)[:, None] * (1 + torch.rand(5, 5)) * 1e-3
    for weights in ((weight, weight), (weight.T.contiguous(), weight.T.contiguous())):
        result = triton_backend.backward(tokens, weights, maps)
        expected = triton_backend.backward(widened, weights, maps)
        rows = [(result[0][i], expected[0][i]) for i in range(5)]
        rows += zip(*(gradient.split(tokens.lengths) for gradient in (result[1], expected[1])), strict=True)
        for a, b in rows:
            assert float((a - b).norm() / b.norm()) < torch.finfo(dtype).eps


@pytest.mark.parametrize("temperature", [0.0, 0.05])
def test_only_what_is_asked_for(temperature: float) -> None:
    """No maps or sums without a backward, no gradient of a frozen side; the rest is the same."""
    backend, tokens = triton_backend, random_problem(2, 9, [3, 8], 16).tokens()._replace(temperature=temperature)
    result, saved = backend.forward(tokens)
    bare, none = backend.forward(tokens, False)
    assert all(torch.equal(a, b) for a, b in zip(bare, result, strict=True)) and none == ()
    both = backend.backward(tokens, result, saved)
    for side, needs in enumerate(((True, False), (False, True))):
        one = backend.backward(tokens, result, saved, needs)
        assert torch.equal(one[side], both[side]) and one[1 - side].numel() == 0


def test_ties_go_to_the_lowest_index() -> None:
    problem = tied_problem(2, 70, [1, 4, 7], 4)
    assert_close(solve(problem, "triton"), by_definition(problem), 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_smooth_maximum_in_float32(shape: tuple[int, int, list[int], int]) -> None:
    problem = random_problem(*shape)
    result = solve(problem, "triton", maximum=SmoothMaximum(0.05))
    assert_close(result, solve(problem, "tiled", dtype=torch.float64, maximum=SmoothMaximum(0.05)), 2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_smooth_maximum_in_16_bits(dtype: torch.dtype) -> None:
    problem = random_problem(2, 49, [2, 7, 7, 10], 80)
    rounded = Problem(problem.image_tokens.to(dtype), problem.text_tokens.to(dtype), problem.text_lengths)
    expected = solve(rounded, "tiled", dtype=torch.float64, maximum=SmoothMaximum(0.02))
    result = solve(rounded, "triton", maximum=SmoothMaximum(0.02))
    assert_close(result, expected, 2e-6, 2 * torch.finfo(dtype).eps)


def test_what_float32_does_not_hold_is_computed_in_tiles() -> None:
    problem = random_problem(2, 9, [3, 8], 16)
    assert not triton_smooth.beyond_range(problem.tokens()._replace(temperature=0.05))
    assert triton_smooth.beyond_range(problem.tokens()._replace(temperature=0.01))
    result, expected = (solve(problem, backend, maximum=SmoothMaximum(0.01)) for backend in ("triton", "tiled"))
    assert all(map(torch.equal, result, expected))


@pytest.mark.parametrize("temperature", [0.05, 0.013])
def test_no_norm_is_waited_for_where_tokens_are_known_to_be_unit(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = random_problem(2, 9, [3, 8], 16)
    expected = solve(problem, triton_backend, maximum=SmoothMaximum(temperature))
    monkeypatch.delattr(triton_smooth, "_longest")
    assert all(
        map(torch.equal, solve(problem, triton_backend, maximum=SmoothMaximum(temperature, unit=True)), expected)
    )


def ragged_tokens(seed: int, dtype: torch.dtype) -> Tokens:
    """Make images of one launch for all, of several launches for one and with a launch alone, in any order."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    sizes = [1, drawn(2, 16), drawn(2, 16), drawn(17, 32), drawn(33, 64), drawn(65, 128), drawn(129, 192)]
    images = [sizes[n] for n in torch.randperm(len(sizes), generator=generator).tolist()]
    texts, d = [drawn(1, 4) for _ in range(3)], drawn(5, 20)
    image, text = (F.normalize(torch.randn(sum(n), d, generator=generator), dim=-1) for n in (images, texts))
    return Tokens(image.to(dtype), text.to(dtype), texts, images)


@pytest.mark.parametrize(("seed", "dtype"), [(0, "float32"), (1, "float32"), (2, "bfloat16")])
@pytest.mark.parametrize("smooth", [False, True])
def test_ragged_images(seed: int, dtype: str, smooth: bool) -> None:
    """Also the upstream gradients of a loss in which some images, of all sizes, meet some texts only."""
    backend, oracle = triton_backend, reference
    tokens = ragged_tokens(seed, getattr(torch, dtype))._replace(temperature=0.05 if smooth else 0.0)
    exact = tokens._replace(image=tokens.image.double(), text=tokens.text.double())
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(2, *tokens.shape, generator=generator)
    weights *= torch.rand(weights.shape[1:], generator=generator) < 0.6
    result, kept = backend.forward(tokens, True)
    expected = Result(*oracle.forward(exact)[0], *oracle.backward(exact, tuple(weights.double()), ()))
    bound = BOUNDS["triton", dtype]
    assert_close(
        Result(*result, *backend.backward(tokens, tuple(weights), kept)), expected, bound.similarities, bound.gradients
    )


@pytest.mark.parametrize("smooth", [False, True])
def test_a_mask_is_the_padded_form_of_ragged_images(smooth: bool) -> None:
    """Padding is NaN, and may be anywhere. The sides exchanged give the same in the other direction."""
    how: Any = {"backend": "triton", "maximum": SmoothMaximum(0.05) if smooth else None}
    problem = random_problem(3, 20, [3, 1, 4], 16)
    mask = torch.rand(3, 20, generator=torch.Generator().manual_seed(3)) < torch.tensor([[0.9], [0.1], [0.5]])
    mask[1, 7] = True
    images = torch.where(mask[..., None], problem.image_tokens, float("nan")).requires_grad_()
    texts, packed = problem.text_tokens.requires_grad_(), images.detach()[mask].requires_grad_()
    lengths = {"image_lengths": mask.sum(dim=1)}
    padded = late_interaction(images, *problem[1:], image_mask=mask, **how)
    ragged = late_interaction(packed, *problem[1:], **lengths, **how)
    exchanged = late_interaction(texts, packed, mask.sum(1), image_lengths=problem.text_lengths, **how)
    weights = upstream(padded.i2t.shape)
    of_padded = torch.autograd.grad(tuple(padded), (images, texts), weights)
    of_ragged = torch.autograd.grad(tuple(ragged), (packed, texts), weights)
    of_exchanged = torch.autograd.grad((exchanged.t2i.T, exchanged.i2t.T), (packed, texts), weights)
    assert not of_padded[0][~mask].any()
    result = *padded, of_padded[0][mask], of_padded[1]
    assert all(map(torch.equal, result, (*ragged, *of_ragged)))
    torch.testing.assert_close((exchanged.t2i.T, exchanged.i2t.T, *of_exchanged), result, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="every image needs at least one token"):
        late_interaction(packed, *problem[1:], image_lengths=torch.tensor([0, len(packed), 0]), **how)
