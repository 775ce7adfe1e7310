"""Under DeepSpeed ZeRO 1, 2 and 3 on two ranks, a step equals the step of one process (see zero_ranks.py)."""

import pytest

from tests.interaction.zero_ranks import cases
from tests.support.ranks import run_cases


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the failures of all cases; the ranks are spawned once."""
    return run_cases(cases, 2, tmp_path_factory.mktemp("zero"))


@pytest.mark.slow
@pytest.mark.parametrize("case", cases(2))
def test_a_step_equals_that_of_one_process(failures: dict[str, str], case: str) -> None:
    assert not failures[case], failures[case]
