"""The instruction sets of this CPU, as a parameter of tests."""

import pytest

from late_interaction import native


@pytest.fixture(params=[] if native.unavailable_reason() else native.isas())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of an instruction set; the kernels take it in this test."""
    monkeypatch.setenv(native.ISA_VARIABLE, request.param)
    return request.param
