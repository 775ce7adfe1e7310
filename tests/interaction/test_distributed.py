"""Gather and ring on two, three and four gloo ranks equal one process, and ranks agree before they begin."""

import functools
from collections.abc import Callable

import pytest
import torch

from late_interaction import (
    distributed_late_interaction,
    distributed_pooled_similarity,
    gather_ids,
    late_interaction,
    pooled_similarity,
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
    with pytest.raises(ValueError, match="exchange='rign' is not one of gather, ring"):
        distributed_late_interaction(*problem, exchange="rign")


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, str]]:
    """Return the failures of all cases on that many ranks, which are spawned once."""
    return functools.cache(lambda ranks: run_cases(cases, ranks, tmp_path_factory.mktemp(f"{ranks}-ranks")))


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "case"), [(ranks, case) for ranks in (2, 3, 4) for case in cases(ranks)])
def test_ranks_equal_one_process(failures: Callable[[int], dict[str, str]], ranks: int, case: str) -> None:
    assert not failures(ranks)[case], failures(ranks)[case]
