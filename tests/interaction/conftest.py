"""The instruction sets of this CPU, as a parameter of tests."""

from collections.abc import Iterator

import pytest
import torch

from late_interaction import native


@pytest.fixture
def threads() -> Iterator[None]:
    """Let a test set the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[] if native.unavailable_reason() else native.isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of an instruction set, which the kernels take in this test."""
    monkeypatch.setenv(native.ISA_VARIABLE, request.param)
    return str(request.param)
