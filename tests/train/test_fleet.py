"""The fleet on paper: its counts against what torch counts and what ranks send; its days from a log alone."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from filip.cli.command import compose_config, run_command
from filip.loading.config import DataConfig
from filip.models import build_model, load_preset
from filip.train.counts import Message, encoder_flops, loss_messages, zero_messages
from filip.train.engine import resolve_batching
from filip.train.hardware import GPUS, peak_flops
from filip.train.losses.term import SOFTMAX_BYTES, Setting
from filip.train.losses.token_wise import packed_memory
from filip.train.plan import Plan, images_per_second, loader_needs, main, node_bytes, planned_steps, report
from late_interaction import tiled
from late_interaction.packing import Tokens


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


def test_scoring_takes_one_product_of_all_tokens() -> None:
    image, text = torch.randn(4, 5, 16), torch.randn(12 * 7, 16)
    with FlopCounterMode(display=False) as counter:
        tiled.forward(Tokens(image, text, [7] * 12))
    assert counter.get_total_flops() == 2 * 4 * 12 * 5 * 7 * 16


def test_memory_of_the_loss() -> None:
    """Maps of one byte, the matrices of the soft-max, and the texts of all ranks or of two blocks of the ring."""
    eight_gpus = Setting(global_batch=8192, gpus=8, tile_bytes=0)
    pairs, texts = 1024 * 8192, 8192 * 18 * 256
    maps_and_matrices = pairs * (49 + 18) + SOFTMAX_BYTES * pairs
    assert packed_memory(eight_gpus) == maps_and_matrices + texts * (2 + 8)
    assert packed_memory(eight_gpus, "ring") == maps_and_matrices + texts / 8 * (2 * 2 + 3 * 4)


def test_what_crosses_the_network_enters_a_node_once() -> None:
    gather = Message("exchange", "all_gather", 16e9)  # two nodes of eight
    assert node_bytes(gather, 16, 8) == 15e9
    assert node_bytes(Message("gradients", "all_reduce", 16e9), 16, 8) == 30e9
    scores = Message("exchange", "all_to_all", 16e9)  # 8 GPUs, half of it from the other node
    assert node_bytes(scores, 16, 8) == pytest.approx(8 * 15e9 * 8 / 15)
    assert node_bytes(gather, 8, 8) == 0


def test_messages_of_a_step() -> None:
    setting = Setting(global_batch=32, gpus=4, n2=10, dim=8, token_bytes=2)
    gather = {m.kind: m.received(4) for m in loss_messages(setting, {"tokens"}, "gather", 8, 1)}
    assert gather == {"all_gather": 24 * 80 * 2, "reduce_scatter": 24 * 80 * 4, "all_to_all": 2 * 4 * 8 * 24}
    both = loss_messages(setting, {"tokens", "vectors"}, "ring", 8, 2)
    assert sum(m.received(4) for m in both if m.kind == "ring_and_back") == 2 * 32 * 80 * 4
    assert len(both) == 6 and all(m.times in (2, 4) for m in both)
    config = compose_config(Plan, ["model=tiny", "precision=fp16", "zero_stage=2"], "train")
    reduced, gathered = zero_messages(1000, config, 3)
    # in fp32, and fp16
    assert (reduced.received(4), gathered.received(4)) == (3 * 2 * 4000 * 0.75, 2000 * 0.75)


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


def test_the_cores_that_feed_a_gpu_follow_from_measured_images(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(images_per_second(DataConfig(augment_on=place), 64, 0.05) > 1 for place in ("worker", "device"))

    monkeypatch.setattr("filip.train.plan.images_per_second", lambda *_: 230.0)  # a core of Sapphire Rapids
    base = plan_of("experiment=base", "precision=bf16")
    text, enough = loader_needs(base, GPUS["h100"])
    # 31 GFLOP a pair: an H100 at 15 % of its peak takes 4,850 pairs a second
    assert text.startswith("needs 22 cores a GPU") and text.endswith("data.workers=6 feed 4%") and not enough
    assert loader_needs(base, GPUS["v100"])[0].startswith("needs 3 cores a GPU")
    assert f"loader      {text}" in report(base)
    base.data.workers = 22
    assert loader_needs(base, GPUS["h100"])[1]


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
