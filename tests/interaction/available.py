"""The backends that run on this machine, as a parameter of tests."""

import pytest
import torch

from late_interaction import backends
from late_interaction.backends import choose_backend


def runs(backend: str) -> bool:
    try:
        choose_backend(torch.zeros(1, 1, 16), 1, backend)
    except ValueError:
        return False
    return True


BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(not runs(name), reason=f"{name} cannot run here"))
    for name in backends.BACKENDS
    if name != "triton"  # runs on GPUs, and in an interpreter that its own tests start
]
