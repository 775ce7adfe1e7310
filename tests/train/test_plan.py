"""The plan against what torch counts, autograd keeps, ranks hold and a loader holds."""

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from filip.cli.command import compose_config, run_command
from filip.loading.config import PREFETCH, DataConfig, StreamConfig, batches_ahead
from filip.models import build_model, load_preset
from filip.models.costs import activation_bytes, encoder_flops
from filip.train.costs import CAPTION_TOKENS, GPUS, interaction_flops, peak_flops, state_bytes
from filip.train.engine import resolve_batching
from filip.train.losses.similarity import saved_bytes
from filip.train.plan import Plan, main, planned_steps, report
from late_interaction import tiled
from late_interaction.packing import Tokens
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
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("interaction ")]
        assert "17.8 TFLOP a step and GPU" in line and f"backend={backend}" in line
    run_command(main, Plan, "train", ["experiment=base_ours", "gpus=128"])  # its share of tokens falls to a quarter
    assert "17.8 TFLOP in the first step, in the last 2.1 TFLOP a step and GPU, 21%" in capsys.readouterr().out


def test_the_interaction_takes_the_flops_that_torch_counts() -> None:
    """Of the tiled backend, which multiplies once forward and twice backward."""
    config = plan_of("model=tiny", "global_batch=32")
    with torch.device("meta"):
        model = build_model(config.model)
    image, text = torch.randn(32, 16, 16), torch.randn(32 * CAPTION_TOKENS, 16)
    tokens = Tokens(image, text, [CAPTION_TOKENS] * 32)
    with FlopCounterMode(display=False) as counted:
        _, kept = tiled.forward(tokens)
        tiled.backward(tokens, tuple(torch.randn(2, 32, 32)), kept)
    assert counted.get_total_flops() == interaction_flops(model, config, resolve_batching(config, 1), 1.0)


def test_the_plan_has_the_given_resolution(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    run_command(main, Plan, "train", ["experiment=finetune_coco", "model=large", "gpus=64"])
    positions = (28 * 28 - 16 * 16) * 1024  # at 392 px, beyond those of 224 px
    assert f"{426_699_009 + positions:,} parameters" in capsys.readouterr().out


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


@pytest.mark.parametrize("maximum", ["hard", "smooth"])
def test_triton_allocates_what_is_planned_for_the_backward(maximum: str) -> None:
    """On the meta device, for captions of 18 tokens on average."""
    pytest.importorskip("triton")
    from late_interaction import triton_backend, triton_smooth
    from late_interaction.triton_layout import lay_out

    lengths = [6 + n % 25 for n in range(8192)]
    image, text = (torch.empty(*shape, dtype=torch.bfloat16, device="meta") for shape in ((64, 49, 8), (1, 8)))
    allocate = (triton_backend if maximum == "hard" else triton_smooth).KERNELS.allocate
    held, _ = allocate(Tokens(image, text, lengths), lay_out(lengths, torch.device("cpu")), False, True)
    planned = saved_bytes(plan_of(f"token_maximum={maximum}", "backend=triton"), 77)
    entries = 64 * 8192 * (49 + sum(lengths) / len(lengths))
    assert sum(part.nbytes for part in held) == pytest.approx(entries * planned, rel=0.03)


def test_the_smooth_maximum_takes_its_memory_in_the_plan() -> None:
    """A batch of 32,768 on eight H100 took 87 of 80 GB, and the plan said that it fits."""
    node = plan_of("experiment=one_node", "precision=bf16")
    assert "fits in 80.0 GB" in "\n".join(report(node))
    node.global_batch = 32_768
    assert "DOES NOT FIT" in "\n".join(report(node))
    node.backend = "tiled"
    assert "DOES NOT FIT" not in "\n".join(report(node))


def plan_of(*overrides: str) -> Plan:
    return compose_config(Plan, ["precision=fp16", *overrides], "train")


def test_steps_are_those_of_the_study_s_own_pairs_or_unknown() -> None:
    """The plan of one data set had the number of pairs of another, and days that followed."""
    assert "pairs=N" in report(plan_of("experiment=ablation"))[-1]
    config = plan_of("experiment=ablation", "pairs=26e6")
    assert planned_steps(config, resolve_batching(config, 8)) == 30 * (26_000_000 // 8192)
    assert "1,000 steps" in report(plan_of("model=tiny", "global_batch=256", "max_steps=1000", "epochs=null"))[-2]
    large = plan_of("experiment=ablation", "model.gradient_checkpointing=false", "gpu=v100")
    assert "DOES NOT FIT" in "\n".join(report(large))


def test_the_price_is_arithmetic_over_a_share_of_the_peak_and_failures() -> None:
    """100 steps of 64 GPUs in bf16 at half of an H100's 989.5 TFLOP/s."""
    batch = ("experiment=base", "precision=bf16", "gpus=64", "max_steps=100", "epochs=null", "mfu=0.5", "euros=2")
    *lines, price = report(plan_of(*batch, "token_keep_ratio=1", "failure=1e-2", "checkpoint.every_minutes=40"))
    encoders, loss = (float(line.split()[1]) for line in lines if line.startswith(("encoders", "interaction")))
    hours = 64 * 100 * (encoders + loss) / (0.5 * 989.5) / 3600
    stops = hours / 1e-2
    paid = hours + 64 * stops * (20 + 10) / 60
    assert f"computed, not measured: {paid:,.0f} GPU hours at 50% of the peak, {2 * paid:,.0f} euros, " in price
    assert f"{stops:.1f} stops and a goodput of {hours / paid:.1%}" in price and "all tokens" not in price
    quarter = report(plan_of("experiment=base", "gpus=128", "pairs=340e6"))[-1]
    assert "with all tokens" in quarter


def test_the_ring_holds_one_block_where_it_scores_again() -> None:
    node = ("experiment=one_node", "precision=bf16", "global_batch=32768", "exchange=ring")
    assert "DOES NOT FIT" in "\n".join(report(plan_of(*node)))
    assert "fits in 80.0 GB" in "\n".join(report(plan_of(*node, "recompute=true")))


def test_workers_prepare_ahead_what_fits() -> None:
    """96 workers of a node with four batches of 2,048 crops each took 199 GB of shared memory."""
    node = DataConfig(workers=12, augment_on="device")
    assert 8 * 12 * batches_ahead(StreamConfig(node, 2048, 224)) * 2048 * 256e3 < 64e9
    assert batches_ahead(StreamConfig(DataConfig(workers=6, augment_on="device"), 320, 224)) == PREFETCH
    assert batches_ahead(StreamConfig(DataConfig(workers=12), 65536, 224)) == 1


def test_peaks_are_known_by_the_name_of_the_device() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == GPUS["h100"].half
    assert peak_flops("Tesla V100-SXM2-32GB", "fp32") == GPUS["v100"].single
    assert peak_flops("NVIDIA H100 PCIe", "bf16") is None and peak_flops("AMD EPYC", "fp32") is None
