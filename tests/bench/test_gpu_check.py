"""``make gpu-check`` on a machine without a GPU: what it refuses, and the script itself at tiny sizes."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.gpu_check import GpuCheck, main
from filip.common.errors import UserError


def test_without_a_gpu_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="sees none"):
        main(GpuCheck(out=str(tmp_path)))


@pytest.mark.parametrize("built", [["sm_80", "sm_90", "compute_90"], ["sm_80", "compute_100"]])
def test_a_gpu_without_machine_code_is_refused(built: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """PTX of the card's own family or of an older one compiles at run time, and its times would be those of that."""
    card = SimpleNamespace(name="B200", major=10, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    with pytest.raises(UserError, match=r"no machine code for B200 \(10\.0\)"):
        main(GpuCheck(out="never written"))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_all_checks_run_on_a_cpu(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(GpuCheck(out=str(tmp_path), device="cpu", sizes="tiny"))
    said = "".join(capfd.readouterr())
    assert "tiled, 3 x 5, torch.bfloat16: values" in said and "products" in said and "ZeRO 1 on 1 ranks" in said
