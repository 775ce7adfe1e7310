"""Values and gradients of every backend that runs here, against the definition and the float64 reference."""

import pytest
import torch

from late_interaction import late_interaction, native
from tests.interaction.available import BACKENDS
from tests.interaction.problems import (
    BOUNDS,
    Problem,
    assert_close,
    by_definition,
    measure,
    random_lengths,
    random_problem,
    solve,
    tied_problem,
)

SHAPES = {
    "one image token": (5, 1, [2, 7, 3], 16),
    "one text token": (4, 9, [1, 1, 1], 16),
    "one of each": (1, 1, [1], 16),
    "one pair": (1, 49, [18], 32),
    "all lengths": (2, 10, list(range(2, 78, 3)), 24),
    "rectangular": (11, 7, [5, 77, 2], 20),
    "odd features": (6, 49, random_lengths(9, 2, 20, seed=1), 37),
    "more than 256 image tokens": (2, 300, [4, 9], 16),
    "more than 256 text tokens": (2, 5, [300, 3], 16),
    "paper's geometry": (8, 49, random_lengths(8, 5, 30, seed=2), 256),
    "several tiles": (70, 50, random_lengths(40, 9, 12, seed=3) + [2, 40], 16),
}


def test_reference_is_the_definition() -> None:
    for problem in (random_problem(3, 4, [1, 5, 2], 6), tied_problem(3, 5, [4, 1, 6], 3)):
        assert_close(solve(problem, "reference", torch.float64), by_definition(problem), 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SHAPES)
def test_float32(backend: str, name: str) -> None:
    problem = random_problem(*SHAPES[name])
    assert_close(solve(problem, backend), solve(problem, "reference", torch.float64), 1e-5)


def test_a_weight_of_a_word_passes_through_the_maximum() -> None:  # docs/interaction.md
    image, text, lengths = random_problem(3, 4, [1, 5, 2], 6)
    weights = torch.rand(len(text), 1)
    t2i = late_interaction(image, text * weights, lengths).t2i
    best = weights * torch.einsum("ird,kd->kir", image, text).amax(2)  # [words, images]
    torch.testing.assert_close(t2i.T, torch.stack([part.mean(0) for part in best.split(lengths.tolist())]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_lowest_index(backend: str) -> None:
    problem = tied_problem(6, 12, [1, 9, 20, 3, 9], 4)
    expected = by_definition(problem)
    assert_close(solve(problem, backend), expected, 1e-6)
    identical = Problem(problem.image_tokens[:1].expand(6, -1, -1), problem.text_tokens, problem.text_lengths)
    assert_close(solve(identical, backend), by_definition(identical), 1e-6)


@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_gradcheck_in_float64(backend: str) -> None:
    image, text, lengths = random_problem(2, 3, [1, 3], 4, seed=5)
    inputs = (image.double().requires_grad_(), text.double().requires_grad_())
    assert torch.autograd.gradcheck(lambda x, y: late_interaction(x, y, lengths, backend=backend), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_rounds_nothing(backend: str) -> None:
    problem = random_problem(6, 9, [4, 7, 2], 32)
    plain = solve(problem, backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = solve(problem, backend)
    for a, b in zip(plain, inside, strict=True):
        assert a.dtype == b.dtype == torch.float32 and torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("setting", ["high", "medium"])
def test_float32_is_multiplied_as_such_always(backend: str, setting: str) -> None:
    """PyTorch may round factors to TF32 or bfloat16 if asked to; nearly equal tokens would lose their winners."""
    if backend == "reference":
        pytest.skip("plain PyTorch, as the user has set it")
    problem = random_problem(6, 9, [4, 7, 2], 32)
    before = torch.get_float32_matmul_precision()
    plain = solve(problem, backend)
    try:
        torch.set_float32_matmul_precision(setting)
        result = solve(problem, backend)
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(result, plain, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["reference", "tiled", "auto"])
def test_a_nan_is_not_hidden(backend: str) -> None:
    """A model that has diverged must show it: the loss scaler of fp16 training watches for it."""
    image, text, lengths = random_problem(3, 4, [2, 5], 16)
    image[1] = float("nan")
    similarity = late_interaction(image, text, lengths, backend=backend)
    assert bool(similarity.i2t[1].isnan().all()) and bool(similarity.t2i[1].isnan().all())
    assert not bool(similarity.i2t[[0, 2]].isnan().any())


@pytest.mark.parametrize(("backend", "dtype"), [key for key in BOUNDS if key[0] != "triton"])
def test_errors_stay_within_their_bounds(backend: str, dtype: str) -> None:
    if backend == "native" and native.unavailable_reason():
        pytest.skip(native.unavailable_reason())
    result, bound = measure(backend, dtype), BOUNDS[backend, dtype]
    assert result.similarities <= bound.similarities and result.gradients <= bound.gradients, result
