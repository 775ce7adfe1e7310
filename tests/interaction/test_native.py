"""The native kernels on every instruction set of this CPU, against the float64 reference."""

import functools
import multiprocessing
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from late_interaction import SmoothMaximum, late_interaction, native
from late_interaction.packing import Tokens
from tests.interaction.problems import (
    Problem,
    Result,
    assert_close,
    by_definition,
    random_lengths,
    random_problem,
    solve,
    tied_problem,
    upstream,
)

EPS = torch.finfo(torch.bfloat16).eps

if native.unavailable_reason():
    pytest.skip(native.unavailable_reason(), allow_module_level=True)


def exact(problem: Problem) -> Result:
    return solve(problem, "reference", torch.float64)


def shortfalls(problem: Problem, maps: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each text how far the similarities of its winners are below the largest: of patches and of words."""
    starts = problem.text_lengths.cumsum(0) - problem.text_lengths
    for j, rows in enumerate(problem.text_tokens.double().split(problem.text_lengths.tolist())):
        similarity = problem.image_tokens.double() @ rows.T
        of_patches = similarity.gather(2, maps[0][:, j, :, None].long())[..., 0]
        of_words = similarity.gather(1, maps[1][:, None, starts[j] : starts[j] + len(rows)].long())[:, 0]
        yield similarity.amax(2) - of_patches, similarity.amax(1) - of_words


def by_winners(problem: Problem, maps: tuple[Tensor, ...]) -> Result:
    """Return the result in float64 if the given tokens win."""
    image = problem.image_tokens.double().requires_grad_()
    text = problem.text_tokens.double().requires_grad_()
    columns: list[tuple[Tensor, Tensor]] = []
    for j, (rows, winners) in enumerate(
        zip(*(side.split(problem.text_lengths.tolist(), dim) for side, dim in ((text, 0), (maps[1], 1))), strict=True)
    ):
        similarity = image @ rows.T
        of_patches = similarity.gather(2, maps[0][:, j, :, None].long())[..., 0]
        columns.append((of_patches.mean(1), similarity.gather(1, winners[:, None].long())[:, 0].mean(1)))
    i2t, t2i = (torch.stack(column, 1) for column in zip(*columns, strict=True))
    weights = tuple(weight.double() for weight in upstream(i2t.shape))
    return Result(i2t.detach(), t2i.detach(), *torch.autograd.grad((i2t, t2i), (image, text), weights))


@functools.cache
def problem_and_expected(name: str, dtype: torch.dtype) -> tuple[Problem, Result]:
    image, text, lengths = random_problem(*SHAPES[name])
    problem = Problem(image.to(dtype), text.to(dtype), lengths)
    return problem, exact(problem)


SHAPES = {
    "paper's geometry": (20, 49, random_lengths(40, 4, 30, seed=2), 256),
    "one image token": (30, 1, [2, 7, 3], 32),
    "one text token": (4, 9, [1, 1, 1, 1, 1, 1, 1, 1], 16),
    "one of each, one feature": (1, 1, [1], 1),
    "all lengths": (3, 10, list(range(1, 78)), 24),
    "odd features": (9, 50, random_lengths(9, 2, 20, seed=1), 129),
    "fewer features than a vector": (5, 17, [3, 8, 2], 7),
    "many features": (2, 6, [4, 5], 1030),
    "large model": (3, 256, random_lengths(10, 5, 30, seed=3), 64),
    "more than 256 image tokens": (3, 300, [4, 9, 77], 40),
    "more than 256 text tokens": (2, 5, [300, 3], 16),
    "more image tokens than a block": (2, 577, [9, 12], 32),
    "many texts": (3, 7, random_lengths(600, 1, 4, seed=4), 16),
    "many images": (400, 3, [2, 9], 16),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SHAPES)
def test_values_winners_and_gradients(isa: str, name: str, dtype: torch.dtype) -> None:
    """They are those of the same tokens in float64; gradients of bfloat16 are rounded once, to the tokens' dtype."""
    problem, expected = problem_and_expected(name, dtype)
    result = solve(problem, "native")
    assert result.i2t.dtype == torch.float32 and result.grad_text.dtype == dtype
    maps = native.forward(problem.tokens())[1]
    assert max(float(side.max()) for sides in shortfalls(problem, maps) for side in sides) <= 5e-7
    routed = by_winners(problem, maps)
    expected = expected._replace(grad_image=routed.grad_image, grad_text=routed.grad_text)
    assert_close(result, expected, 5e-6, 2e-6 if dtype == torch.float32 else EPS / 2)


@pytest.mark.skipif("amx" not in native.isas(), reason="this CPU has no amx")
def test_amx_finds_the_same_winners(monkeypatch: pytest.MonkeyPatch) -> None:
    """AMX sums in another order than AVX-512, which changes the last bit of a similarity, and no winner here."""
    for name in SHAPES:
        tokens, maps = problem_and_expected(name, torch.bfloat16)[0].tokens(), []
        for isa in ("amx", "avx512"):
            monkeypatch.setenv(native.ISA_VARIABLE, isa)
            maps.append(native.forward(tokens)[1])
        assert all(map(torch.equal, *maps)), name


@pytest.mark.parametrize("norm", [10.0, 100.0, 10_000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_token_far_longer_than_the_others_costs_them_nothing(isa: str, dtype: torch.dtype, norm: float) -> None:
    """It is a register or an attention sink: fixed point scaled by the longest token lost the winners of all others."""
    image, text, lengths = random_problem(8, 49, [18] * 8, 64, seed=4)
    image[:, 7] = -norm * F.normalize(text.mean(dim=0), dim=-1)
    problem = Problem(image.to(dtype), text.to(dtype), lengths)
    (_, t2i), maps = native.forward(problem.tokens())
    expected = exact(problem)
    torch.testing.assert_close(t2i.double(), expected.t2i, rtol=2e-5, atol=1e-6)
    for of_patches, _ in shortfalls(problem, maps):
        assert float(of_patches[:, torch.arange(49) != 7].max()) < 5e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_that_are_all_zero_give_exactly_zero(isa: str, dtype: torch.dtype) -> None:
    image, text, lengths = random_problem(5, 49, [3, 9, 14], 48)
    image[2], text[3:12] = 0, 0
    i2t, t2i = native.forward(Problem(image, text, lengths).tokens(dtype))[0]
    assert not i2t[2].any() and not t2i[2].any() and not i2t[:, 1].any() and not t2i[:, 1].any()


@pytest.mark.parametrize("spread", [0.1, 0.01])
def test_bfloat16_gradients_of_a_mean_are_summed_in_float32(isa: str, spread: float) -> None:
    """Equal weights of one sign are on nearly equal tokens, where rounding errors of the terms would all point one
    way."""
    image, text, lengths = random_problem(2, 1, [77] * 300, 64, seed=9)
    text = F.normalize((1 - spread) * text[:1] + spread * text, dim=-1).bfloat16()
    image = image.bfloat16()
    problem = Problem(image, text, lengths)
    maps = native.forward(problem.tokens())[1]
    equal = torch.full((2, 300), 1 / 600)
    result = native.backward(problem.tokens(), (equal, equal), maps)
    expected = native.backward(problem.tokens(torch.float32), (equal, equal), maps)
    for a, b in zip(result, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("spread", [1.0, 0.01])
def test_bfloat16_gradients_of_a_softmax_are_summed_in_float32(isa: str, spread: float) -> None:
    """Between tokens that hardly differ the terms cancel: of a row or column one weight is nearly -1, the others small
    and positive."""
    image, text, lengths = random_problem(40, 49, random_lengths(60, 4, 30, seed=5), 96, seed=6)
    image = F.normalize((1 - spread) * image[:1, :1] + spread * image, dim=-1).bfloat16()
    text = F.normalize((1 - spread) * text[:1] + spread * text, dim=-1).bfloat16()
    problem = Problem(image, text, lengths)
    (i2t, t2i), maps = native.forward(problem.tokens())
    own = torch.eye(*i2t.shape)
    upstream = [1e-6 * (weight - own) for weight in ((100 * i2t).softmax(1), (100 * t2i).softmax(0))]
    result = native.backward(problem.tokens(), upstream, maps)
    expected = native.backward(problem.tokens(torch.float32), upstream, maps)
    assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


def test_bfloat16_gradients_of_nothing_and_of_what_is_no_number(isa: str) -> None:
    image, text, lengths = random_problem(5, 9, [4, 5, 11], 40)
    tokens = Problem(image, text, lengths).tokens(torch.bfloat16)
    (i2t, _), maps = native.forward(tokens)
    nothing = torch.zeros_like(i2t)
    assert all(not g.any() for g in native.backward(tokens, (nothing, nothing), maps))
    one = nothing.clone()
    one[2, 1] = 1e-25  # far below what the sums of the others would notice
    grad_image, grad_text = native.backward(tokens, (one, nothing), maps)
    assert float(grad_image[2].abs().max()) > 1e-28 and not grad_image[[0, 1, 3, 4]].any()
    assert float(grad_text[4:9].abs().max()) > 1e-28 and not grad_text[:4].any()
    one[2, 1] = float("nan")
    grad_image, grad_text = native.backward(tokens, (one, nothing), maps)
    assert bool(grad_image[2].isnan().all()) and not grad_image[[0, 1, 3, 4]].any()
    tokens.image[2, 3] = float("inf")
    one[2, 1] = 1
    assert not bool(native.backward(tokens, (one, nothing), maps)[1][4:9].isfinite().all())


def test_bfloat16_sums_too_small_to_count_leave_nothing_behind(isa: str) -> None:
    """The first texts' contributions underflow; the others must not notice."""
    image, text, lengths = random_problem(3, 49, [16] * 220, 64, seed=8)
    problem = Problem((1e-29 * image).bfloat16(), (1e-29 * text).bfloat16(), lengths)
    maps = native.forward(problem.tokens(torch.float32))[1]
    weight = torch.full((3, 220), 1e-5)
    weight[:, :12] = 1e-29
    result = native.backward(problem.tokens(), (weight, weight), maps)
    expected = native.backward(problem.tokens(torch.float32), (weight, weight), maps)
    loss = (result[0].double() - expected[0].double()).norm() / expected[0].double().norm()
    assert float(expected[0].abs().max()) > 1e-35 and float(loss) < 2**-8


def test_ties_go_to_the_lowest_index(isa: str) -> None:
    for problem in (tied_problem(6, 12, [1, 9, 20, 3, 9], 4), tied_problem(5, 49, [30, 2, 7], 16, seed=1)):
        assert_close(solve(problem, "native"), by_definition(problem), 1e-6)
    image, text, lengths = random_problem(4, 10, [6, 6], 32)
    doubled = Problem(torch.cat([image, image], 1), text[[0, 0, 1, 1, 0, 1] * 2], lengths)
    i2t_map, t2i_map = native.forward(doubled.tokens())[1]
    assert int(i2t_map.max()) <= 2 and int(t2i_map.max()) < 10
    one_token = Problem(image[:, :1].expand(-1, 49, -1), text, lengths)
    assert int(native.forward(one_token.tokens())[1][1].max()) == 0


@pytest.mark.parametrize(
    ("images", "lengths", "d", "spread", "most"),
    [(16, random_lengths(60, 10, 30), 64, 1e-3, 5e-7), (32, [18] * 48, 256, 1.0, 2e-7)],
    ids=["nearly equal tokens", "random tokens"],
)
def test_winners_are_those_of_float64(
    isa: str, images: int, lengths: list[int], d: int, spread: float, most: float
) -> None:
    """In an untrained model tokens hardly differ: 16 bits cannot tell them apart, float32 can.

    Winners may differ from float64's only where the two similarities agree to float32 rounding.
    """
    image, text, counts = random_problem(images, 49, lengths, d, seed=3)
    image = F.normalize((1 - spread) * image[:1, :1] + spread * image, dim=-1)
    text = F.normalize((1 - spread) * text[:1] + spread * text, dim=-1)
    problem = Problem(image, text, counts)
    result, maps = native.forward(problem.tokens())
    assert max(float(side.max()) for sides in shortfalls(problem, maps) for side in sides) < most
    expected = exact(problem)
    torch.testing.assert_close([side.double() for side in result], [expected.i2t, expected.t2i], rtol=0, atol=5e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_whatever_the_threads(isa: str, dtype: torch.dtype, threads: None) -> None:
    image, text, lengths = random_problem(70, 49, random_lengths(300, 2, 30), 64)
    problem = Problem(image.to(dtype), text.to(dtype), lengths)
    results = []
    for count in (1, 2, 3, 5, 2):
        torch.set_num_threads(count)
        results.append(solve(problem, "native"))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_non_contiguous_and_unaligned_inputs(isa: str) -> None:
    problem = random_problem(5, 8, [3, 6, 6], 33)
    transposed = problem.image_tokens.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    wide = torch.zeros(15, 70)
    wide[:, 1:34] = problem.text_tokens
    storage = torch.zeros(1 + 15 * 33)
    storage[1:] = problem.text_tokens.flatten()
    expected = exact(problem)
    for text in (wide[:, 1:34], storage[1:].view(15, 33)):
        result = solve(Problem(transposed, text, problem.text_lengths), "native")
        assert_close(result, expected, 2e-6, 2e-6)


def test_upstream_gradients_that_are_zero_expanded_or_large(isa: str) -> None:
    problem = random_problem(6, 9, [4, 5, 11], 32)
    for weight in (torch.zeros(()), torch.tensor(3.0), torch.tensor(1e20)):
        grads: list[tuple[Tensor, Tensor]] = []
        for dtype, backend in ((torch.float32, "native"), (torch.float64, "reference")):
            image = problem.image_tokens.to(dtype).requires_grad_()
            text = problem.text_tokens.to(dtype).requires_grad_()
            i2t, t2i = late_interaction(image, text, problem.text_lengths, backend=backend)
            grads.append(torch.autograd.grad(i2t.sum() * weight.to(dtype) + 0 * t2i.sum(), (image, text)))
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6 * float(weight))


def test_tokens_whose_squares_overflow(isa: str) -> None:
    image, text, lengths = random_problem(3, 7, [4, 5], 32)
    huge = Problem(image * 2.0**70, text * 2.0**-70, lengths)
    assert_close(
        solve(huge, "native")._replace(grad_image=torch.ones(1), grad_text=torch.ones(1)),
        exact(huge)._replace(grad_image=torch.ones(1), grad_text=torch.ones(1)),
        5e-6,
    )
    text[4:] *= 2.0**70
    problem = Problem(image, text, lengths)
    result, expected = native.forward(problem.tokens())[0], exact(problem)
    for column in (0, 1):
        torch.testing.assert_close(result[0][:, column].double(), expected.i2t[:, column], rtol=1e-5, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_number_that_is_none_shows(isa: str, dtype: torch.dtype, bad: float) -> None:
    image, text, lengths = random_problem(3, 4, [2, 5], 16)
    image[1, 2, 3] = bad
    result = solve(Problem(image.to(dtype), text.to(dtype), lengths), "native")
    assert not bool(result.i2t[1].isfinite().any()) and bool(result.i2t[[0, 2]].isfinite().all())
    if bad != bad:
        assert bool(result.t2i[1].isnan().all())
    text[1, 0] = bad
    result = solve(Problem(image.to(dtype), text.to(dtype), lengths), "native")
    assert not bool(result.t2i[:, 0].isfinite().any()) and bool(result.t2i[[0, 2], 1].isfinite().all())


def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    image, text, _ = random_problem(2, 3, [2, 4], 16)
    assert "float32, bfloat16 and float16, not torch.float64" in native.unavailable_reason(image.double())
    monkeypatch.setenv(native.ISA_VARIABLE, "avx3")
    with pytest.raises(ValueError, match="LATE_INTERACTION_ISA='avx3' is not an instruction set of this CPU"):
        native.forward(Tokens(image, text, [2, 4]))


def test_terms_below_the_normal_range_are_zero(isa: str) -> None:
    """On an Intel core an operation on a denormal number takes as long as 50 others."""
    problem = random_problem(4, 8, [3, 5], 16)
    image, text = (tokens.detach().requires_grad_() for tokens in problem[:2])
    for maximum in (None, SmoothMaximum(0.05)):
        i2t, t2i = late_interaction(image, text, problem.text_lengths, backend="native", maximum=maximum)
        tiny = torch.full_like(i2t, 1e-40)
        gradients = torch.autograd.grad((i2t, t2i), (image, text), (tiny, tiny))
        assert all(not gradient.any() for gradient in gradients)
    assert (torch.tensor(1e-38) / 8).item() > 0, "the caller's own arithmetic is as it was"


def test_amx_takes_bfloat16_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "isas", lambda: ["amx", "avx512", "scalar"])
    tokens = torch.ones(1)
    for named in ("", "amx"):
        monkeypatch.setenv(native.ISA_VARIABLE, named)
        assert native.isa_for(tokens) == native.isa_for(tokens.half()) == "avx512"
        assert native.isa_for(tokens.bfloat16()) == "amx"
    monkeypatch.setenv(native.ISA_VARIABLE, "scalar")
    assert native.isa_for(tokens.bfloat16()) == "scalar"


def test_a_forked_process_scores_alone(threads: None) -> None:
    torch.set_num_threads(2)
    problem = random_problem(300, 36, [3] * 1000, 64)  # more than one unit of work, or no thread is started
    expected = late_interaction(*problem, backend="native").i2t
    fork = multiprocessing.get_context("fork")
    receiving, sending = fork.Pipe()
    child = fork.Process(target=lambda: sending.send(late_interaction(*problem, backend="native").i2t[7].tolist()))
    child.start()
    try:
        assert receiving.poll(60), "it waits for threads that it does not have"
        assert receiving.recv() == expected[7].tolist()
    finally:
        child.kill()
