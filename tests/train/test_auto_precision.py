"""precision=auto: what the hardware multiplies, the same on all ranks, and kept by a run that continues."""

import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from filip import device
from filip.eval.precision import dtype_of, name_of
from filip.study import resolve
from filip.train.engine import settle_precision

ROOT = Path(__file__).parents[2]

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "FILIP_NATIVE_ISA": "avx2"}
ASK = "import torch; from filip.device import best_precision; print(best_precision(torch.device('cpu')))"


def ranks(*places: str) -> SimpleNamespace:
    """Return ranks on CPUs of which each would answer best_precision with one of ``places``."""
    return SimpleNamespace(device=torch.device("cpu"), gather=lambda own: list(places) or [own])


def test_a_cpu_that_is_told_to_be_avx2_has_no_bf16() -> None:
    found = subprocess.run(
        [sys.executable, "-c", ASK], env={**os.environ, **AVX2}, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "fp32"


def test_a_cpu_multiplies_bf16_only_with_the_instructions_for_it() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    if not {"avx512_bf16", "amx_bf16"} & set(flags):
        assert not device.multiplies_bf16(torch.device("cpu"))
    elif "ONEDNN_MAX_CPU_ISA" not in os.environ:
        assert device.multiplies_bf16(torch.device("cpu"))


@pytest.mark.parametrize(
    ("places", "saved", "settled"),
    [
        (("bf16", "bf16"), None, "bf16"),
        (("fp32", "fp32"), None, "fp32"),
        (("bf16", "fp32"), None, "fp32"),  # a cluster of two kinds of CPU trains in what all of them have
        (("bf16", "bf16"), "fp32", "fp32"),  # a run that continues keeps its precision
        (("fp32", "fp32"), "bf16", "bf16"),
    ],
)
def test_auto_is_settled_for_all_ranks(places: tuple[str, ...], saved: str | None, settled: str) -> None:
    config = deepcopy(resolve("experiment=demo"))
    sentence = settle_precision(config, ranks(*places), saved)  # type: ignore[arg-type]
    assert config.precision == settled and settled in sentence


def test_an_explicit_bf16_without_hardware_is_a_warning_with_a_measured_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_cpu_multiplies_bf16", lambda: False)
    config = deepcopy(resolve("experiment=demo", "precision=bf16"))
    sentence = settle_precision(config, ranks())  # type: ignore[arg-type]
    assert config.precision == "bf16"
    assert sentence.startswith("warning: precision=bf16") and "times as long as in fp32" in sentence


def test_an_evaluation_on_a_cpu_is_in_fp32_whatever_the_cpu() -> None:
    assert name_of(dtype_of("auto", "cpu")) == "fp32"
