"""The plan against what torch counts, autograd keeps, ranks hold and a loader holds."""

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from filip.cli.command import compose_config, run_command
from filip.models import build_model, load_preset
from filip.train.engine import resolve_batching
from filip.train.losses.similarity import packed_memory
from filip.train.losses.term import SOFTMAX_BYTES, Setting
from filip.train.plan import (
    GPUS,
    Plan,
    activation_bytes,
    encoder_flops,
    main,
    peak_flops,
    planned_steps,
    report,
    state_bytes,
)
from tests.support.launched_ranks import Ranks
from tests.support.training import kept_by_autograd

HERE = Path(__file__).parent


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["tiny", "demo", "small"])
def test_activations_are_what_autograd_keeps(name: str, precision: str, checkpointing: bool) -> None:
    config = load_preset(name)
    config.gradient_checkpointing = checkpointing
    # bfloat16 stands in for float16: the same bytes, and this CPU is not asked for fp16 kernels
    model = build_model(config).to(torch.float32 if precision == "fp32" else torch.bfloat16)
    measured, planned = kept_by_autograd(model, 2), activation_bytes(model, precision, 2)
    if checkpointing:  # the plan adds the block that is being recomputed
        assert measured < planned < 3.5 * measured
    else:
        assert planned == pytest.approx(measured, rel=0.2)


def test_states_of_the_zero_paper() -> None:
    # 7.5 billion parameters on 64 ranks, fp16 with Adam: the paper's 31.4, 16.6 and 1.9 GB (its figure 1)
    for stage, expected in ((1, 31.4), (2, 16.6), (3, 1.9)):
        states = state_bytes(7_500_000_000, "fp16", stage, 64)
        assert (sum(states.values()) - states["reduction buffer"]) / 1e9 == pytest.approx(expected, abs=0.06)


def test_the_plan_names_the_loss_s_share_and_its_backend(capsys: pytest.CaptureFixture[str]) -> None:
    """Three products of 320 images of 49 tokens with 40,960 captions of 18, of 256 features, are 17.8 TFLOP."""
    for gpu, backend in (("v100", "tiled, since Triton"), ("h100", "triton")):
        run_command(main, Plan, "train", ["experiment=base", "gpus=128", f"gpu={gpu}", "token_keep_ratio=1"])
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("loss ")]
        assert "17.8 TFLOP a step and GPU" in line and f"backend={backend}" in line


def test_the_plan_has_the_given_resolution(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    run_command(main, Plan, "train", ["experiment=finetune_coco", "model=large", "gpus=64"])
    positions = (28 * 28 - 16 * 16) * 1024  # at 392 px, beyond those of 224 px
    assert f"{426_699_009 + positions:,} parameters" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_command(main, Plan, "train", ["experiment=finetune_coco"])
    assert "not a multiple of the patch size 32" in capsys.readouterr().err


@pytest.mark.slow
def test_ranks_hold_what_was_planned(tmp_path: Path) -> None:
    measured = Ranks(2, [str(HERE / "planned_ranks.py")], tmp_path / "log").result()
    for stage, result in measured.items():
        for purpose, size in result["held"].items():
            assert size == pytest.approx(result["planned"][purpose], rel=0.02, abs=20_000), (stage, purpose)


@pytest.mark.parametrize("name", ["tiny", "demo"])
@pytest.mark.parametrize("interaction", ["token_wise", "pooled"])
def test_encoders_take_the_flops_that_torch_counts(name: str, interaction: str) -> None:
    config = load_preset(name)
    config.interaction = interaction
    model = build_model(config)
    side, words = config.image.image_size, 6
    pixels, ids, lengths = (
        torch.randn(3, 3, side, side),
        torch.ones(3, words, dtype=torch.int64),
        torch.tensor([words] * 3),
    )
    # torch does not know how many flops its fused attention for the CPU takes
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        output = model(pixels, ids, lengths)
    planned = 3 * encoder_flops(config, words)
    assert forward.get_total_flops() == planned
    with FlopCounterMode(display=False) as backward:
        text = output.text if interaction == "pooled" else output.text.tokens
        (output.image.sum() + text.sum()).backward()
    patches = 3 * 2 * model.image.grid[0] * model.image.grid[1] * 3 * model.image.width
    no_gradient_of_pixels = patches * model.image.patch_size[0] * model.image.patch_size[1]
    assert backward.get_total_flops() == 2 * planned - no_gradient_of_pixels


def test_memory_of_the_loss() -> None:
    """Maps of one byte, the matrices of the soft-max, and the texts of all ranks or of two blocks of the ring."""
    eight_gpus = Setting(global_batch=8192, gpus=8, tile_bytes=0)
    pairs, texts = 1024 * 8192, 8192 * 18 * 256
    maps_and_matrices = pairs * (49 + 18) + SOFTMAX_BYTES * pairs
    assert packed_memory(eight_gpus) == maps_and_matrices + texts * (2 + 8)
    assert packed_memory(eight_gpus, "ring") == maps_and_matrices + texts / 8 * (2 * 2 + 3 * 4)


def plan_of(*overrides: str) -> Plan:
    return compose_config(Plan, ["precision=fp16", *overrides], "train")


def test_steps_are_those_of_the_study_s_own_pairs_or_unknown() -> None:
    """The plan of one data set had the number of pairs of another, and days that followed."""
    assert "pairs=N" in report(plan_of("experiment=ablation"))[-1]
    config = plan_of("experiment=ablation", "pairs=26e6")
    assert planned_steps(config, resolve_batching(config, 8)) == 30 * (26_000_000 // 8192)
    assert "1,000 steps" in report(plan_of("model=tiny", "global_batch=256", "max_steps=1000", "epochs=null"))[-1]
    large = plan_of("experiment=ablation", "model.gradient_checkpointing=false", "gpu=v100")
    assert "DOES NOT FIT" in "\n".join(report(large))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["gpus=12"], "not a whole number of nodes of gpus_per_node=8"),
        (["gpus=8", "gpu=v200"], "gpu=v200 must be one of v100, a100"),
        (["gpus=8", "gpu=v100", "precision=bf16"], "has no bf16"),
        (["gpus=8", "pairs=0"], "pairs=0"),
    ],
)
def test_what_cannot_be_planned_is_named(
    overrides: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with pytest.raises(SystemExit):
        run_command(main, Plan, "train", overrides)
    assert words in capsys.readouterr().err


def test_peaks_are_known_by_the_name_of_the_device() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == GPUS["h100"].half
    assert peak_flops("Tesla V100-SXM2-32GB", "fp32") == GPUS["v100"].single
    assert peak_flops("NVIDIA H100 PCIe", "bf16") is None and peak_flops("AMD EPYC", "fp32") is None
