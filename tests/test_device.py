"""``device=`` names a device of this machine, or the message names those that there are."""

import pytest
import torch

from filip.common import device
from filip.common.device import best_device, evaluation_precision, machine, own_device, resolve
from filip.common.errors import UserError


def test_auto_is_the_best_device_and_the_cpu_is_always_there() -> None:
    assert resolve("auto") == best_device()
    assert resolve("cpu") == torch.device("cpu")


ABSENT = ["gpu", "cuda:99", "xpu:99", "cpu:7", "cuda:x", "cuda:", "cuda:-1", "meta", "0", ""]


@pytest.mark.parametrize("wanted", [*ABSENT, *([] if torch.cuda.is_available() else ["cuda"])])
def test_a_device_that_is_not_here_is_answered_with_those_that_are(wanted: str) -> None:
    with pytest.raises(
        UserError, match=rf"^device={wanted}: this machine has no such device.*choose one of auto, .*cpu"
    ):
        resolve(wanted)


def test_an_accelerator_is_what_torch_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("xpu"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda _: "New GPU")
    assert machine() == "2 x New GPU"
    assert [own_device(rank).index for rank in (0, 1, 2)] == [0, 1, 0]
    assert resolve("xpu:1") == torch.device("xpu:1")
    assert evaluation_precision(best_device()) == "bf16"


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((7, 0), "sm_75 sm_80 sm_90 sm_120 compute_120", False),  # PyTorch 2.11 and later on a V100
        ((7, 0), "sm_70 sm_80", True),
        ((8, 6), "sm_80", True),
        ((8, 0), "sm_86", False),
        ((9, 0), "sm_80 compute_80", True),
        ((12, 1), "sm_120f", True),
        ((9, 1), "sm_90a", False),
    ],
)
def test_a_pytorch_without_code_for_a_gpu_is_told_first(capability: tuple[int, int], built: str, runs: bool) -> None:
    assert device.runs_on(capability, built.split()) == runs
