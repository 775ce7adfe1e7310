"""Check what only a GPU can show, on however many cards this machine has: ``make gpu-check``, some twenty minutes.

Every backend against float64, the time of the loss in units of the three products that no exact loss avoids, and a
training in DeepSpeed's fp16 block at ZeRO 1 to 3 with a loss scale that overflows at first. ``python -m
bench.gpu_check out=try device=cpu sizes=tiny`` tries the script itself.
"""

import json
import math
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from bench.interaction import random_problem
from filip.cli.command import MISSING, option, run_command
from filip.common import device as devices
from filip.common.errors import UserError
from filip.common.progress import say
from filip.resources import shipped
from filip.train.plan import peak_flops
from late_interaction import late_interaction
from late_interaction.backends import choose_backend
from tests.support.squares import write_shards
from tests.support.training import losses, series, train_arguments

# Bounds of values and of gradients, relative to the largest. Sums over 256 features in another order are within 1e-5 in
# float32; gradients are returned in the tokens' dtype, and Triton rounds the winners' weights to 16 bits before.
TOLERANCES = {torch.float32: (1e-5, 1e-5), torch.float16: (1e-5, 2e-3), torch.bfloat16: (1e-5, 1.6e-2)}
SHAPES = [(3, 5), (16, 49), (6, 197), (4, 256)]  # images and their tokens, with as many captions
# Images, their tokens, texts: whole batches, and what one GPU of the paper's 128 and 192 does
TIMED = [(256, 49, 256), (1024, 49, 1024), (4096, 49, 4096), (320, 49, 40_960), (160, 256, 30_720)]
GOAL = 1.5  # times three products of all tokens: one forward, one for each side's gradient
SCALE_POWER = 24  # a loss scale that overflows at first, and comes down


@dataclass
class GpuCheck:
    """The options of the command."""

    out: str = option(MISSING, "folder of the trainings and their logs")
    device: str = option("cuda", "torch device; cpu only to try the script itself")
    sizes: str = option("full", "tiny = seconds instead of minutes, and figures that mean nothing",
                        choices=("full", "tiny"))  # fmt: skip


def main(config: GpuCheck) -> None:
    """Run the checks; exit with 1 if one fails."""
    device, tiny = torch.device(config.device), config.sizes == "tiny"
    if device.type == "cuda":
        _check_cards()
    say(f"{devices.name(device)}, torch {torch.__version__}, {platform.platform()}")
    wrong = agreement(device, SHAPES[:1] if tiny else SHAPES)
    wrong += speed(device, [(8, 5, 12)] if tiny else TIMED)
    wrong += trainings(device, Path(config.out).absolute(), 12 if tiny else 40)
    for line in wrong:
        say(f"FAIL: {line}")
    if wrong:
        sys.exit(1)


def _check_cards() -> None:
    if not torch.cuda.is_available():
        raise UserError(f"no GPU: torch {torch.__version__} sees none (device=cpu sizes=tiny tries the script itself)")
    built = torch.cuda.get_arch_list()
    machine_code = [name for name in built if name.startswith("sm_")]  # PTX compiles at run time: times of that
    for card in map(torch.cuda.get_device_properties, range(torch.cuda.device_count())):
        if not devices.runs_on((card.major, card.minor), machine_code):
            raise UserError(
                f"torch {torch.__version__} has no machine code for {card.name} ({card.major}.{card.minor}), only for "
                f"{' '.join(built)}: install a build that has (V100: make setup GPU=v100)"
            )


def agreement(device: torch.device, shapes: list[tuple[int, int]]) -> list[str]:
    """Compare both matrices and both gradients of each backend with those of the reference in float64."""
    wrong = []
    for (images, patches), dtype in ((shape, dtype) for shape in shapes for dtype in TOLERANCES):
        problem = random_problem(images, patches)
        for backend in ("tiled", "native", "triton"):
            image, text = problem.image.to(device, dtype), problem.text.to(device, dtype)
            try:
                choose_backend(image, images, backend)
            except ValueError as error:
                say(f"{backend}: {error}")
                continue
            expected = _solve(image.double(), text.double(), problem.lengths, "reference")
            results, again = (_solve(image, text, problem.lengths, backend) for _ in range(2))
            errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(results, expected, strict=True)]
            line = (
                f"{backend}, {images} x {patches}, {dtype}: values {max(errors[:2]):.1e}, gradients {max(errors):.1e}"
            )
            say(line)
            if max(errors[:2]) > TOLERANCES[dtype][0] or max(errors[2:]) > TOLERANCES[dtype][1]:
                wrong.append(line)
            if not all(map(torch.equal, results, again)):
                wrong.append(f"{line}; two runs differ")
    return wrong


def _solve(image: torch.Tensor, text: torch.Tensor, lengths: torch.Tensor, backend: str) -> list[torch.Tensor]:
    image, text = image.requires_grad_(), text.requires_grad_()
    similarity = late_interaction(image, text, lengths, backend=backend)
    weights = torch.linspace(-1, 1, similarity.i2t.numel()).view_as(similarity.i2t).to(similarity.i2t)
    gradients = torch.autograd.grad(similarity, (image, text), (weights, weights.flip(0)))
    return [tensor.detach().double() for tensor in (*similarity, *gradients)]


def speed(device: torch.device, shapes: list[tuple[int, int, int]]) -> list[str]:
    """Compare a step of the loss with three products of all tokens, in 16 bits, at the card's peak if it is known."""
    half = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 8
    dtype, peak, wrong = torch.float16 if half else torch.bfloat16, peak_flops(devices.name(device), "bf16"), []
    for images, patches, texts in shapes:
        problem = random_problem(images, patches, texts=texts)
        image, text = (tokens.to(device, dtype).requires_grad_() for tokens in (problem.image, problem.text))
        labels = torch.arange(images, device=device)

        def loss(image: torch.Tensor = image, text: torch.Tensor = text, labels: torch.Tensor = labels) -> None:
            similarity = late_interaction(image, text, problem.lengths)  # noqa: B023
            sum(F.cross_entropy(matrix.float() / 0.07, labels) for matrix in similarity).backward()  # type: ignore[union-attr]

        def product(image: torch.Tensor = image, text: torch.Tensor = text) -> None:
            for rows in image.detach().flatten(0, 1).split(max(1, (1 << 30) // len(text))):  # all at once: 23 GB
                torch.mm(rows, text.detach().T)

        seconds, written = _seconds(loss, device), 3 * _seconds(product, device)  # torch.mm writes its result
        three = 6 * image.numel() * len(text) / peak if peak else written
        line = (
            f"loss, {images} x {patches} against {texts}: {1e3 * seconds:.1f} ms, {seconds / three:.2f} times three "
            f"products {'at the peak' if peak else 'as measured'}, {seconds / written:.2f} times torch.mm's"
            f"{_waits(loss) if device.type == 'cuda' else ''}"
        )
        say(line)
        if seconds > GOAL * three and device.type == "cuda":
            wrong.append(f"{line} (goal {GOAL})")
    return wrong


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(8):
        devices.synchronize(device)
        started = time.perf_counter()
        step()
        devices.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _waits(step: Callable[[], object]) -> str:
    """Return how often a step waits for the card; text lengths are on the host, so that it need not."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return f", waits for the card {sum('synchroniz' in str(one.message) for one in seen)} times"


def trainings(device: torch.device, out: Path, steps: int) -> list[str]:
    """Train on all cards at ZeRO 1 to 3 in fp16, from a loss scale that overflows; on a CPU once, in fp32."""
    out.mkdir(parents=True, exist_ok=True)
    write_shards(out / "data", shards=3, per_shard=64)
    on_card, wrong = device.type == "cuda", []
    ranks = torch.cuda.device_count() if on_card else 1
    for stage in (1, 2, 3) if on_card else (1,):
        run_dir, settings = (
            out / f"zero{stage}",
            json.loads((shipped("ds_configs") / f"zero{stage}_fp16.json").read_text()),
        )
        settings["fp16"] |= {"initial_scale_power": SCALE_POWER, "hysteresis": 1}
        (out / "fp16.json").write_text(json.dumps(settings))
        scaled = ["precision=fp16", f"deepspeed={out / 'fp16.json'}"] if on_card else ["precision=fp32"]
        options = [*scaled, f"zero_stage={stage}", f"max_steps={steps}", f"global_batch={24 * ranks}", "resume=never"]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        done = subprocess.run([*launcher, *train_arguments(out / "data", run_dir, *options)], check=False)
        curve = losses(run_dir) if done.returncode == 0 else [math.nan]
        skipped = series(run_dir, "optimizer/skipped_steps")[-1:] if on_card and not done.returncode else []
        line = f"ZeRO {stage} on {ranks} ranks: loss {curve[0]:.3f} to {curve[-1]:.3f}, {skipped or 'no'} steps skipped"
        say(line)
        if not curve[-1] < curve[0] or (on_card and not sum(skipped)):
            wrong.append(line)
    return wrong


if __name__ == "__main__":
    run_command(main, GpuCheck)
