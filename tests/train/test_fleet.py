"""The fleet on paper: its counts against what torch counts and what ranks send, its seconds against sums by hand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from filip.command import compose_config, run_command
from filip.errors import UserError
from filip.interaction import tiled
from filip.interaction.cost import Setting, fused
from filip.interaction.packing import Tokens
from filip.models import build_model, load_preset
from filip.train.counts import Message, encoder_flops, loss_messages, passes, zero_messages
from filip.train.fleet import FleetPlan, Links, simulate
from filip.train.hardware import GPUS, NETWORKS, FleetConfig, peak_flops
from filip.train.memory import interaction_setting
from filip.train.plan import Plan, main
from tests.support.launched_ranks import Ranks, environment

WORKER = str(Path(__file__).parent / "fleet_worker.py")
ONE_STEP = Links(16, 8, GPUS["h100"], NETWORKS["ndr_8"], 1.0)


@pytest.mark.parametrize("name", ["tiny", "demo"])
@pytest.mark.parametrize("interaction", ["token_wise", "pooled"])
def test_encoders_take_the_flops_that_torch_counts(name: str, interaction: str) -> None:
    config = load_preset(name)
    config.interaction = interaction
    model = build_model(config)
    side, words, columns = config.image.image_size, 6, 9
    lengths = torch.tensor([3, columns, 6])
    pixels, ids = torch.randn(3, 3, side, side), torch.ones(3, columns, dtype=torch.int64)
    # torch does not know how many flops its fused attention for the CPU takes
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        output = model(pixels, ids, lengths)
    planned = 3 * sum(encoder_flops(model, words, columns).values())
    assert forward.get_total_flops() == planned
    with FlopCounterMode(display=False) as backward:
        text = output.text if interaction == "pooled" else output.text.tokens
        (output.image.sum() + text.sum()).backward()
    patches = 3 * 2 * model.image.grid[0] * model.image.grid[1] * 3 * model.image.width
    no_gradient_of_pixels = patches * model.image.patch_size[0] * model.image.patch_size[1]
    assert backward.get_total_flops() == 2 * planned - no_gradient_of_pixels
    assert (passes(False, 1), passes(True, 1), passes(True, 4)) == (3, 4, 5)


def test_scoring_takes_the_flops_that_torch_counts() -> None:
    setting = Setting(global_batch=12, gpus=3, n1=5, n2=7, dim=16)
    image, text = torch.randn(4, 5, 16), torch.randn(12 * 7, 16)
    with FlopCounterMode(display=False) as counter:
        tiled.forward(Tokens(image, text, [7] * 12))
    winners = 4 * 4 * 12 * (5 + 7) * 16  # the backward's row sums, which are not products
    assert counter.get_total_flops() == fused(setting).flops - winners


def ranks_say(what: str, launch: list[str], log: Path) -> dict:
    done = subprocess.run(
        [*launch, WORKER, what], capture_output=True, text=True, timeout=240, env=environment()
    )
    log.write_text(done.stdout + done.stderr)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, log.read_text()[-3000:]
    return json.loads(lines[0].removeprefix("RESULT"))


@pytest.mark.slow
def test_ranks_receive_the_planned_bytes_at_every_zero_stage(tmp_path: Path) -> None:
    ranks = Ranks(2, [WORKER, "steps"], tmp_path / "log")
    assert ranks.wait() == [0, 0], ranks.text()[-3000:]
    line = next(line for line in ranks.text().splitlines() if line.startswith("RESULT"))
    for step, found in json.loads(line.removeprefix("RESULT")).items():
        assert found["received"] == pytest.approx(found["planned"], rel=0.002), step


@pytest.mark.slow
def test_the_wire_carries_the_planned_bytes_between_four_ranks(tmp_path: Path) -> None:
    alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("no network namespace can be made here (root and iproute2 are needed)")
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "4", "--master_port", "29511"]
    for exchange, found in ranks_say("wire", [*alone, *run], tmp_path / "log").items():
        assert found["carried"] == pytest.approx(found["planned"], rel=0.02), exchange


def test_a_collective_takes_as_long_as_its_slower_link() -> None:
    gather = Message("exchange", "all_gather", 16e9)
    assert ONE_STEP.node_bytes(gather) == 15e9  # every node takes in what the other ranks hold, once
    assert ONE_STEP.seconds(gather) == pytest.approx(15 / 400 + 4 * 5e-6)  # 8 cards of 50 GB/s
    assert replace(ONE_STEP, ranks=8).seconds(gather) == pytest.approx(
        14 / 450, rel=1e-3
    )  # within the node: NVLink
    ring = Message("exchange", "ring", 16e9)
    assert ONE_STEP.seconds(ring) == pytest.approx(
        15 / 50 + 16 * 5e-6
    )  # two neighbours talk through one card
    reduce = Message("gradients", "all_reduce", 16e9)
    assert ONE_STEP.node_bytes(reduce) == 30e9
    scores = Message("exchange", "all_to_all", 16e9)
    assert ONE_STEP.node_bytes(scores) == pytest.approx(
        8 * 15e9 * 8 / 15
    )  # 8 GPUs, half of it from the other node


def test_messages_of_a_step() -> None:
    setting = Setting(global_batch=32, gpus=4, n2=10, dim=8, token_bytes=2)
    gather = {m.kind: m.received(4) for m in loss_messages(setting, {"tokens"}, "gather", 8, 1)}
    assert gather == {"all_gather": 24 * 80 * 2, "reduce_scatter": 24 * 80 * 4, "all_to_all": 2 * 4 * 8 * 24}
    both = loss_messages(setting, {"tokens", "vectors"}, "ring", 8, 2)
    assert sum(m.received(4) for m in both if m.kind == "ring_and_back") == 2 * 32 * 80 * 4
    assert len(both) == 6 and all(m.times in (2, 4) for m in both)
    config = compose_config(Plan, ["model=tiny", "precision=fp16", "zero_stage=2"], "train")
    reduced, gathered = zero_messages(1000, config, 3)
    assert (reduced.received(4), gathered.received(4)) == (3 * 2 * 2000 * 0.75, 2000 * 0.75)


def plan_of(*overrides: str, gpus: int = 16, gpu: str = "h100", network: str = "ndr_8") -> FleetPlan:
    config = compose_config(Plan, list(overrides), "train").check()
    return simulate(config, gpus, gpu, network, config.fleet, config.price)


def test_a_plan_adds_up() -> None:
    plan = plan_of("model=tiny", "global_batch=256", "max_steps=1000", "epochs=null", "price=2")
    assert plan.step == pytest.approx(sum(plan.seconds.values())) and plan.steps == 1000
    text = "\n".join(plan.lines())
    hours = 1000 * plan.step / 3600 * 16
    assert f"{hours:,.0f} GPU hours" in text and f"{2 * hours:,.0f} USD" in text
    assert "2 nodes" in text and "fits" in text
    doubled = plan_of("model=tiny", "global_batch=256", "max_steps=1000", "fleet.encoder_efficiency=0.7")
    assert doubled.seconds["encoders"] == pytest.approx(plan.seconds["encoders"] / 2)


def test_without_triton_the_loss_waits_for_the_memory_of_its_tiles() -> None:
    """It has three products at half of 125 TFLOP/s; a tile is touched five times, with 12 bytes and 8, at 900 GB/s."""
    options = (
        "model=tiny",
        "global_batch=1024",
        "token_keep_ratio=1",
        "precision=fp16",
        "fleet.loss_efficiency=0.5",
    )
    plan = plan_of(*options, gpus=8, gpu="v100")
    setting = interaction_setting(build_model(plan.config.model), plan.config, plan.batching, 8)
    entries = 128 * 1024 * setting.n1 * setting.n2
    products = 3 * 2 * entries * setting.dim / (0.5 * 125e12)
    assert plan.seconds["loss"] == pytest.approx(products + 20 * entries / 900e9)


def test_what_is_asked_of_the_fleet_shows_in_its_own_part() -> None:
    usual = ("experiment=large", "global_batch=30720")
    base = plan_of(*usual, gpus=192)
    slow = plan_of(*usual, gpus=192, network="ethernet_25")
    assert slow.seconds["gradients"] > 5 * base.seconds["gradients"]
    assert slow.seconds["encoders"] == base.seconds["encoders"]
    ring = plan_of(*usual, "exchange=ring", gpus=192, network="ethernet_25")
    assert ring.seconds["exchange"] != slow.seconds["exchange"]
    starved = plan_of(*usual, "data.workers=1", "fleet.images_per_core=20", gpus=192)
    assert starved.step == pytest.approx(160 / 20, rel=1e-3)  # as long as one worker takes for 160 images
    assert "DOES NOT FIT" in "\n".join(
        plan_of("experiment=ablation", "model.gradient_checkpointing=false", gpus=8, gpu="v100").lines()
    )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["gpus=12"], "no whole nodes of fleet.gpus_per_node=8"),
        (["gpus=8", "gpu=v200"], "gpu=v200: gpu takes v100, a100"),
        (["gpus=8", "network=tin_cans"], "network=tin_cans: network takes ethernet_25"),
        (["gpus=8", "gpu=v100", "precision=bf16"], "has no bf16"),
        (["gpus=8", "fleet.network_efficiency=0"], "fleet.network_efficiency=0.0 must be positive"),
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


def test_a_fleet_has_positive_assumptions() -> None:
    with pytest.raises(UserError, match="pairs"):
        config = compose_config(Plan, ["model=tiny"], "train")
        simulate(config, 8, "h100", "ndr_8", FleetConfig(pairs=0))


def test_the_page_on_clusters_prints_what_the_command_prints() -> None:
    """Line by line; an ellipsis in the page stands for anything."""
    page = (Path(__file__).parents[2] / "docs/cluster.md").read_text(encoding="utf-8")
    command, *shown = page.partition("    $ filip train plan ")[2].partition("\n\n")[0].splitlines()
    experiment, gpus, gpu, network = (word.partition("=") for word in command.split())
    printed = plan_of("=".join(experiment[::2]), gpus=int(gpus[2]), gpu=gpu[2], network=network[2]).lines()
    for line, found in zip(shown, printed, strict=False):
        assert re.fullmatch(re.escape(line.strip()).replace("…", ".*"), found), found
    assert len(shown) == 8
