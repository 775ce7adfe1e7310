"""precision=auto, the fp16 block's loss scale, and numbers that are no longer finite."""

import json
import math
import os
import re
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from filip.common import device
from filip.eval.encoders import dtype_of, name_of
from filip.resources import shipped
from filip.study import resolve
from filip.train.engine import settle_precision
from filip.train.optimizers import make_schedule
from tests.support.launched_ranks import Ranks
from tests.support.processes import run_python
from tests.support.training import largest_difference, losses, records, run_many, series, train_arguments


@pytest.mark.slow
def test_loss_scale_and_non_finite_numbers(squares: Path, tmp_path: Path) -> None:
    settings = json.loads((shipped("ds_configs") / "zero2_fp16.json").read_text())
    settings["fp16"] |= {"initial_scale_power": 16, "hysteresis": 1, "loss_scale_window": 4}
    (tmp_path / "fp16.json").write_text(json.dumps(settings))
    fp16 = ("precision=fp16", "zero_stage=2", f"deepspeed={tmp_path}/fp16.json")
    settings["fp16"] |= {"initial_scale_power": 24, "min_loss_scale": 2**24}  # overflows, and cannot go down
    (tmp_path / "floor.json").write_text(json.dumps(settings))
    saving = ("max_steps=14", "checkpoint.every_steps=4", "poison_at=7")
    runs = [
        train_arguments(squares, tmp_path / "fp16", *fp16, "max_steps=22"),
        train_arguments(squares, tmp_path / "stops", *saving),
        train_arguments(squares, tmp_path / "diverges", "optimizer.base_lr=1e30", "max_steps=14"),
        train_arguments(squares, tmp_path / "stops3", *saving, "zero_stage=3"),
        train_arguments(squares, tmp_path / "floor", *fp16[:2], f"deepspeed={tmp_path}/floor.json"),
    ]
    assert run_many(2, runs, tmp_path / "log") == [0, 70, 70, 70, 70]

    scale, skipped = (
        series(tmp_path / "fp16", "optimizer/loss_scale"),
        series(tmp_path / "fp16", "optimizer/skipped_steps"),
    )
    rates, taken = series(tmp_path / "fp16", "optimizer/lr"), [0, *(n - int(s) for n, s in enumerate(skipped[:-1], 1))]
    schedule = make_schedule(1.3e-2, 24, 4, 22)
    assert rates == pytest.approx([schedule.at(step) for step in taken])  # a skipped step does not count in it
    lowest = scale.index(min(scale))
    assert skipped[0] >= 1 and scale[lowest] < 2**15  # overflows are skipped, each halves the scale
    assert max(scale[lowest:]) >= 2 * scale[lowest]  # and it grows again after four good steps
    loss = series(tmp_path / "fp16", "loss/total")
    assert sum(loss[-5:]) < sum(loss[:5])

    text = (tmp_path / "log").read_text()
    assert text.count("non-finite in steps 7 to 9") >= 2
    last_good = tmp_path / "stops" / "checkpoints" / "step00000004"
    assert f"the last good checkpoint is {last_good}" in text and last_good.is_dir()
    assert "non-finite" in text.split("run 1 exit")[-1].split("run 2 exit")[0] and "there is no checkpoint yet" in text
    findings = [r["text"] for r in records(tmp_path / "floor") if r.get("event") == "watchdog"]
    assert [f.split(": ")[1] for f in findings] == [
        "loss scale collapsed in steps 1 to 1",
        "non-finite in steps 1 to 3",
    ]
    board = EventAccumulator(str(tmp_path / "stops" / "tensorboard")).Reload()
    assert any("watchdog" in tag for tag in board.Tags()["tensors"])


@pytest.mark.slow
def test_one_nan_on_one_rank_costs_one_step_under_every_engine(squares: Path, tmp_path: Path) -> None:
    engines = {
        "ddp_lamb": ("engine=ddp",),
        "zero1_lamb": ("zero_stage=1",),
        "ddp_adamw": ("engine=ddp", "optimizer.name=adamw", "optimizer.base_lr=1e-3"),
        "zero2_adamw": ("zero_stage=2", "optimizer.name=adamw", "optimizer.base_lr=1e-3"),
        "ddp_momentum": ("engine=ddp", "optimizer.name=momentum", "optimizer.base_lr=1e-3", "gradient_cache=6"),
        "ddp_bf16": ("engine=ddp", "precision=bf16", "gradient_accumulation=2"),
    }
    common = ("nan_at=6", "max_steps=10", "log_every=4")
    runs = [[*train_arguments(squares, tmp_path / name, *common, *of_engine)] for name, of_engine in engines.items()]
    assert run_many(2, runs, tmp_path / "log") == [0] * len(engines)
    for name in engines:
        digests = json.loads((tmp_path / name / "digests.json").read_text())
        same = [number for number in range(2, 11) if digests[number - 1] == digests[number - 2]]
        assert same == [6], name
        assert series(tmp_path / name, "optimizer/skipped_steps") == [0, 1, 1], name
        assert math.isnan(losses(tmp_path / name)[1]) and math.isfinite(losses(tmp_path / name)[2]), name
    for one, other in (("ddp_lamb", "zero1_lamb"), ("ddp_adamw", "zero2_adamw")):
        # Norms add up in another order: 6e-6 on Zen 4. One LAMB step moves a weight by about its rate, 1e-2.
        assert largest_difference(tmp_path / one, tmp_path / other) < 2e-5, one


@pytest.mark.slow
def test_the_smallest_gradient_of_fp16_reaches_the_optimiser(tmp_path: Path) -> None:
    """DeepSpeed divides gradients by the number of ranks before it sums them, by default in fp16."""
    ranks = Ranks(2, [str(Path(__file__).parent / "fp16_reduction.py")], tmp_path / "log")
    assert ranks.result() == {"1": 1.0, "3": 1.0}


def test_fp16_is_multiplied_in_float32_and_rounded_once() -> None:
    """A tensor core does so. Convolution, attention, linear layers and batched products, forwards and backwards."""
    half_products = Counter[str]()

    class Count(TorchDispatchMode):  # sees what reaches the kernels
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if any(isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float16 for tensor in args):
                half_products[func.overloadpacket.__name__] += 1
            return func(*args, **(kwargs or {}))

    torch.manual_seed(1)
    patches, layer = torch.nn.Conv2d(3, 16, 4, 4), torch.nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
    pixels = torch.randn(3, 3, 16, 16)

    def gradients(dtype: torch.dtype, mode: AbstractContextManager) -> list[torch.Tensor]:
        layers = [deepcopy(part).to(dtype) for part in (patches, layer)]
        with Count(), mode:
            tokens = layers[1](layers[0](pixels.to(dtype)).flatten(2).mT)
            torch.bmm(tokens, tokens.mT).float().square().mean().backward()
        return [weight.grad.float() for part in layers for weight in part.parameters()]

    exact = gradients(torch.float32, nullcontext())
    torch_own, in_mode = gradients(torch.float16, nullcontext()), []
    assert half_products["bmm"] and half_products["convolution_backward"]
    half_products.clear()
    with sdpa_kernel(SDPBackend.MATH):  # as choose_attention has it
        in_mode = gradients(torch.float16, device.Fp16Products())
    # "to" is the conversion itself; nothing that multiplies matrices is left
    assert not {name for name in half_products if re.search("mm|conv|attention", name)}
    for one, own, ours in zip(exact, torch_own, in_mode, strict=True):
        scale = one.abs().max()
        assert (ours - one).abs().max() <= 2 * (own - one).abs().max() + 1e-3 * scale
        assert (ours - one).abs().max() < 2e-2 * scale


ROOT = Path(__file__).parents[2]

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "LATE_INTERACTION_ISA": "avx2"}
ASK = "import torch; from filip.common.device import best_precision; print(best_precision(torch.device('cpu')))"


def ranks(*places: str) -> SimpleNamespace:
    """Return ranks on CPUs of which each would answer best_precision with one of ``places``."""
    return SimpleNamespace(device=torch.device("cpu"), gather=lambda own: list(places) or [own])


@pytest.mark.slow
def test_a_cpu_that_is_told_to_be_avx2_has_no_bf16() -> None:
    result = run_python("-c", ASK, variables={**os.environ, **AVX2}, cwd=ROOT)
    assert result.stdout.strip() == "fp32"


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
    config = deepcopy(resolve("experiment=demo_from_scratch"))
    sentence = settle_precision(config, ranks(*places), saved)  # type: ignore[arg-type]
    assert config.precision == settled and settled in sentence


def test_an_explicit_bf16_without_hardware_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_cpu_multiplies_bf16", lambda: False)
    config = deepcopy(resolve("experiment=demo_from_scratch", "precision=bf16"))
    sentence = settle_precision(config, ranks())  # type: ignore[arg-type]
    assert config.precision == "bf16"
    assert sentence.startswith("warning: precision=bf16") and "times as long as in fp32" in sentence


def test_an_evaluation_on_a_cpu_is_in_fp32_whatever_the_cpu() -> None:
    assert name_of(dtype_of("auto", "cpu")) == "fp32"
