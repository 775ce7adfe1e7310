"""Gather and ring on two, three and four gloo ranks equal one process, and ranks agree before they begin."""

import functools
from collections.abc import Callable

import pytest
import torch

from late_interaction import (
    agreement,
    distributed_late_interaction,
    distributed_pooled_similarity,
    gather_ids,
    late_interaction,
    pooled_similarity,
    reference,
)
from tests.interaction.problems import random_problem
from tests.interaction.ranks import cases
from tests.support.ranks import run_cases


def test_without_ranks_it_is_the_plain_function() -> None:
    problem = random_problem(3, 5, [2, 7, 4], 16)
    plain = late_interaction(*problem, backend="tiled")
    for exchange in ("gather", "ring"):
        result = distributed_late_interaction(*problem, exchange=exchange, backend="tiled")
        assert torch.equal(result.i2t, plain.i2t) and torch.equal(result.t2i, plain.t2i)
    rounded = distributed_late_interaction(*problem, transport_dtype=torch.float16, backend="tiled")
    expected = late_interaction(problem[0].half(), problem[1].half(), problem[2], backend="tiled")
    assert torch.equal(rounded.i2t, expected.i2t)
    image, text = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.equal(distributed_pooled_similarity(image, text).i2t, pooled_similarity(image, text).i2t)
    assert gather_ids(torch.tensor([4, 2]))[1] == 0


@pytest.mark.parametrize("transport", [torch.float16, torch.bfloat16])
def test_gradients_are_not_rounded_with_the_tokens(transport: torch.dtype) -> None:
    """The tokens are rounded; upstream gradients are 1e-9, as of a loss that is nearly learned."""
    problem = random_problem(3, 5, [2, 7, 4], 16)
    tokens = [tensor.clone().requires_grad_() for tensor in problem[:2]]
    result = distributed_late_interaction(*tokens, problem.text_lengths, transport_dtype=transport)
    (1e-9 * (result.i2t.sum() + result.t2i.square().sum())).backward()
    rounded = [tensor.to(transport).float().requires_grad_() for tensor in problem[:2]]
    i2t, t2i = reference.late_interaction(*rounded, problem.text_lengths.tolist())  # differentiated by PyTorch
    (1e-9 * (i2t.sum() + t2i.square().sum())).backward()
    for a, b in zip(tokens, rounded, strict=True):
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-15)


def test_an_unknown_exchange_is_named() -> None:
    with pytest.raises(ValueError, match="exchange='rign' is not one of gather, ring"):
        distributed_late_interaction(*random_problem(1, 2, [2], 16), exchange="rign")


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, str]]:
    """Return the failures of all cases on that many ranks, which are spawned once."""
    return functools.cache(lambda ranks: run_cases(cases, ranks, tmp_path_factory.mktemp(f"{ranks}-ranks")))


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "case"), [(ranks, case) for ranks in (2, 3, 4) for case in cases(ranks)])
def test_ranks_equal_one_process(failures: Callable[[int], dict[str, str]], ranks: int, case: str) -> None:
    assert not failures(ranks)[case], failures(ranks)[case]


def calls(**changes: object) -> list[agreement.Call]:
    """Return the calls of three ranks with unequal batches, the last of which does something else."""
    tokens = torch.zeros(2, 3, 4), torch.zeros(5, 4)
    first, second = (agreement.describe("distributed_late_interaction", *tokens, texts) for texts in (2, 3))
    return [first, second, first._replace(**changes)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": 5}, "disagree on the number of features: 4 on rank 0, 5 on rank 2; use one width"),
        ({"image_dtype": 0}, "the dtype of the image tokens: torch.float32 on rank 0, torch.float16 on rank 2"),
        ({"text_dtype": 1}, "the dtype of the text tokens: torch.float32 on rank 0, torch.bfloat16 on rank 2"),
        ({"exchange": 1}, "exchange: 'gather' on rank 0, 'ring' on rank 2; pass the same one"),
        ({"image_gradient": 1}, "image tokens need a gradient: no on rank 0, yes on rank 2; freeze a tower"),
        ({"text_gradient": 1}, "text tokens need a gradient: no on rank 0, yes on rank 2; freeze a tower"),
        ({"function": 2}, "different functions: distributed_late_interaction on rank 0, .* gather_ids on rank 2"),
    ],
)
def test_each_disagreement_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        agreement._compare(calls(**changes))


def test_counts_may_differ() -> None:
    agreement._compare(calls(images=9, texts=1))
    assert len(agreement._MUST_AGREE) + len(("function", "valid", "images", "texts")) == len(agreement.Call())
