"""``device=`` names a device of this machine, or the message names those that there are."""

import pytest
import torch

from filip.device import best_device, resolve
from filip.errors import UserError


def test_auto_is_the_best_device_and_the_cpu_is_always_there() -> None:
    assert resolve("auto") == best_device()
    assert resolve("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    "wanted", ["gpu", "cuda:99", "xpu:99", "cpu:7", "cuda:x", "cuda:", "cuda:-1", "meta", "0", ""]
)
def test_a_device_that_is_not_here_is_answered_with_those_that_are(wanted: str) -> None:
    with pytest.raises(
        UserError, match=rf"^device={wanted}: there is no such device here.*there are auto, .*cpu"
    ):
        resolve(wanted)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without CUDA")
def test_cuda_without_cuda_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"^device=cuda: there is no such device here"):
        resolve("cuda")
