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
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the name of an instruction set; the kernels take it in this test, AMX's for float32, too."""
    monkeypatch.setenv(native.ISA_VARIABLE, request.param)
    torch.set_float32_matmul_precision("high" if request.param == "amx" else "highest")
    yield request.param
    torch.set_float32_matmul_precision("highest")
