"""``make gpu-check`` on a machine without a GPU: what it refuses, and the script itself at tiny sizes."""

from pathlib import Path

import pytest

from bench.gpu_check import GpuCheck, main


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_all_checks_run_on_a_cpu(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(GpuCheck(out=str(tmp_path), device="cpu", sizes="tiny"))
    said = "".join(capfd.readouterr())
    assert "tiled, 3 x 5, torch.bfloat16: values" in said and "products" in said and "ZeRO 1 on 1 ranks" in said
