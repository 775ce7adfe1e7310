"""Check what only a GPU can show, on however many cards this machine has: ``make gpu-check``, some twenty minutes.

Both maxima of every backend against float64, the time of the loss in units of the products that no exact loss avoids,
a training of each recipe of docs/training.md as its file says but tiny, and one in DeepSpeed's fp16 block at ZeRO 1 to
3 with a loss scale that overflows at first. ``make gpu-check DEVICE=cpu SIZES=tiny`` tries the script itself.
"""

import itertools
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
from filip.cli.command import MISSING, compose_config, option, run_command
from filip.common import device as devices
from filip.common.errors import UserError
from filip.common.progress import say
from filip.resources import shipped
from filip.train.config import TrainConfig
from filip.train.costs import peak_flops
from filip.train.warm_start import WarmStartConfig
from late_interaction import SmoothMaximum, late_interaction
from late_interaction.backends import choose_backend
from tests.support.squares import write_shards
from tests.support.training import losses, records, run_many, series, train_arguments

# Bounds of values and of gradients, relative to the largest. Sums over 256 features in another order are within 1e-5 in
# float32; gradients are returned in the tokens' dtype, and Triton rounds the winners' weights to 16 bits before.
TOLERANCES = {torch.float32: (1e-5, 5e-5), torch.float16: (1e-5, 2e-3), torch.bfloat16: (1e-5, 1.6e-2)}
SHAPES = [(3, 5), (16, 49), (6, 197), (4, 256)]  # images and their tokens, with as many captions
# Images, their tokens, texts: whole batches, and what one GPU of the paper's 128 and 192 does
TIMED = [(256, 49, 256), (1024, 49, 1024), (4096, 49, 4096), (320, 49, 40_960), (160, 256, 30_720)]
GOAL = 1.5  # times the products of all tokens
MAXIMA = {"hard": None, "smooth": SmoothMaximum(0.05)}
# Of docs/training.md, the paper's first; those of the demo train on every machine that makes it
RECIPES = (
    "base", "large", "ablation", "ablation_efficiency", "finetune_coco", "finetune_flickr30k", "base_wukong",
    "base_ours", "large_ours", "one_gpu", "one_node", "warm_start", "lora", "lit",
)  # fmt: skip
BY_BOTH_ENGINES = "one_node"
FIRST_LOSSES = 0.01  # by which the first three may differ: 16-bit rounding decides between nearly equal tokens
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
    out = Path(config.out).absolute()
    write_shards(out / "data", shards=3, per_shard=64)
    wrong += recipes(device, out, 4 if tiny else 40)
    if device.type == "cuda":
        wrong += overflows(out, 40)
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
    for (images, patches), dtype, backend in itertools.product(shapes, TOLERANCES, ("tiled", "native", "triton")):
        problem = random_problem(images, patches)
        image, text = problem.image.to(device, dtype), problem.text.to(device, dtype)
        try:
            choose_backend(image, images, backend)
        except ValueError as error:
            say(f"{backend}: {error}")
            continue
        for name, maximum in MAXIMA.items():
            expected = _solve(image.double(), text.double(), problem.lengths, "reference", maximum)
            results, again = (_solve(image, text, problem.lengths, backend, maximum) for _ in range(2))
            errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(results, expected, strict=True)]
            line = f"{backend}, {name}, {images} x {patches}, {dtype}: values {max(errors[:2]):.1e}"
            say(line := f"{line}, gradients {max(errors[2:]):.1e}")
            if max(errors[:2]) > TOLERANCES[dtype][0] or max(errors[2:]) > TOLERANCES[dtype][1]:
                wrong.append(line)
            if not all(map(torch.equal, results, again)):
                wrong.append(f"{line}; two runs differ")
    return wrong


def _solve(
    image: torch.Tensor, text: torch.Tensor, lengths: torch.Tensor, backend: str, maximum: SmoothMaximum | None
) -> list[torch.Tensor]:
    image, text = image.requires_grad_(), text.requires_grad_()
    similarity = late_interaction(image, text, lengths, backend=backend, maximum=maximum)
    weights = torch.linspace(-1, 1, similarity.i2t.numel()).view_as(similarity.i2t).to(similarity.i2t)
    gradients = torch.autograd.grad(similarity, (image, text), (weights, weights.flip(0)))
    return [tensor.detach().double() for tensor in (*similarity, *gradients)]


def speed(device: torch.device, shapes: list[tuple[int, int, int]]) -> list[str]:
    """Compare a step of the loss with the products of all tokens that it takes, in 16 bits, at the card's peak."""
    half = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 8
    dtype, peak, wrong = torch.float16 if half else torch.bfloat16, peak_flops(devices.name(device), "bf16"), []
    for (images, patches, texts), (name, maximum) in itertools.product(shapes, MAXIMA.items()):
        problem = random_problem(images, patches, texts=texts)
        image, text = (tokens.to(device, dtype).requires_grad_() for tokens in (problem.image, problem.text))
        labels = torch.arange(images, device=device)

        def loss(image: torch.Tensor = image, text: torch.Tensor = text, labels: torch.Tensor = labels) -> None:
            similarity = late_interaction(image, text, problem.lengths, maximum=maximum)  # noqa: B023
            sum(F.cross_entropy(matrix.float() / 0.07, labels) for matrix in similarity).backward()  # type: ignore[union-attr]

        def product(image: torch.Tensor = image, text: torch.Tensor = text) -> None:
            for rows in image.detach().flatten(0, 1).split(max(1, (1 << 30) // len(text))):  # all at once: 23 GB
                torch.mm(rows, text.detach().T)

        count = 3 if name == "hard" else 5  # one forward and a gradient for each side; the smooth one multiplies again
        seconds, written = _seconds(loss, device), count * _seconds(product, device)  # torch.mm writes its result
        exact = 2 * count * image.numel() * len(text) / peak if peak else written
        line = (
            f"loss, {name}, {images} x {patches} against {texts}: {1e3 * seconds:.1f} ms, {seconds / exact:.2f} times "
            f"{count} products {'at the peak' if peak else 'as measured'}, {seconds / written:.2f} times torch.mm's"
            f"{_waits(loss) if device.type == 'cuda' else ''}"
        )
        say(line)
        if seconds > GOAL * exact and device.type == "cuda":
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


def recipes(device: torch.device, out: Path, steps: int) -> list[str]:
    """Train each recipe by ``backend=auto`` and by tiled; their first losses must agree, and no kernel be left."""
    lines, runs, wrong = [], [], []
    for name in RECIPES:
        line, options = _recipe(name, device, out, steps)
        lines.append(line)
        for backend in ("auto", "tiled"):
            places = [f"run_dir={out}/{name}-{backend}", f"out={out}/{name}-{backend}.safetensors"]
            runs.append(["-m", "filip.train", *options, *places, f"backend={backend}"])
            if (name, backend) == (BY_BOTH_ENGINES, "auto"):
                places = [f"run_dir={out}/{name}-ddp", f"out={out}/{name}-ddp.safetensors"]
                by_ddp = ["-m", "filip.train", *options, *places, "engine=ddp"]
    *codes, ddp = _train(device, [*runs, by_ddp], out)
    for number, (name, line) in enumerate(zip(RECIPES, lines, strict=True)):
        if any(codes[2 * number : 2 * number + 2]):
            wrong.append(f"{line}: exit codes {codes[2 * number : 2 * number + 2]}")
            continue
        auto, tiled = (losses(out / f"{name}-{backend}") for backend in ("auto", "tiled"))
        left = [entry["text"] for entry in records(out / f"{name}-auto") if entry.get("event") == "backend"]
        say(line := f"{line}: loss {auto[0]:.4f} to {auto[-1]:.4f}, tiled's {tiled[0]:.4f} to {tiled[-1]:.4f}")
        # From the same weights, but other roundings; the third has moved by both
        off = max(abs(a - b) / b for a, b in zip(auto[:3], tiled[:3], strict=True))
        if left or not off <= FIRST_LOSSES:
            wrong.append(f"{line}; the first three differ by {off:.1%}{''.join(f'; {text}' for text in left)}")
    return wrong + _engines(out, ddp)


def _engines(out: Path, code: int) -> list[str]:
    """Compare the trainings of one recipe by ZeRO-1 and by DDP: equal losses, and which engine is faster."""
    if code:
        return [f"{BY_BOTH_ENGINES} with engine=ddp: exit code {code}"]
    zero, ddp = (out / f"{BY_BOTH_ENGINES}-{engine}" for engine in ("auto", "ddp"))
    seconds = [statistics.median(series(run, "speed/seconds_per_step")) for run in (zero, ddp)]
    line = f"{BY_BOTH_ENGINES}, ZeRO-1 {1e3 * seconds[0]:.1f} ms a step, DDP {1e3 * seconds[1]:.1f} ms"
    say(f"{line}: engine={'deepspeed' if seconds[0] <= seconds[1] else 'ddp'} is faster")
    return [] if losses(zero) == losses(ddp) else [f"{line}; their losses differ"]


def _recipe(name: str, device: torch.device, out: Path, steps: int) -> tuple[str, list[str]]:
    """Return a recipe in words, and its options: those of its file, but for sizes, data and where to start from."""
    config = compose_config(TrainConfig, [f"experiment={name}", "run_dir=-", "out=-"], "train")
    data = f"{{shards: {out}/data/shards, captions: {out}/data/captions}}"
    options = [
        f"experiment={name}", "model=tiny", f"data.sources=[{data}]",
        "global_batch=null", "batch_per_rank=24", "epochs=null", f"max_steps={steps}", "optimizer.warmup_steps=2",
        "log_every=1", "data.workers=1", "data.reader_groups=1", "data.feature_cache=null", "resume=never",
    ]  # fmt: skip
    if config.gradient_cache:
        options.append("gradient_cache=12")
    if config.token_keep_schedule:
        options.append(f"token_keep_schedule=linear from 1 to {config.token_keep_ratio} in steps 1 to {steps}")
    if config.image_size:
        options.append("image_size=48")
    if config.image_size or config.warm_start != WarmStartConfig():  # fine-tuned from the first recipe's model
        options.append(f"init_from={out}/{RECIPES[0]}-tiled.safetensors")
    if config.precision == "bf16" and devices.best_precision(device) == "fp16":
        options.append("precision=fp16")
    engine = f"ZeRO-{config.zero_stage}" if config.engine == "deepspeed" else "DDP"
    parts = [engine, config.precision, config.token_maximum, f"tokens {config.token_keep_ratio:g}",
             *(["cache"] if config.gradient_cache else []), *(["compile"] if config.compile else []),
             f"augment on {config.data.augment_on}"]  # fmt: skip
    return f"{name}: {', '.join(parts)}", options


def _train(device: torch.device, runs: list[list[str]], out: Path) -> list[int]:
    """Return the exit codes of trainings on all cards; on a CPU by one rank, whose start they share."""
    if device.type == "cpu":
        return run_many(1, runs, out / "log", timeout=1400)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    cards = str(torch.cuda.device_count())
    return [subprocess.run([*launcher, cards, *run], check=False).returncode for run in runs]


def overflows(out: Path, steps: int) -> list[str]:
    """Train on all cards at ZeRO 1 to 3 in fp16, from a loss scale that overflows."""
    runs, wrong = [], []
    for stage in (1, 2, 3):
        settings = json.loads((shipped("ds_configs") / f"zero{stage}_fp16.json").read_text())
        settings["fp16"] |= {"initial_scale_power": SCALE_POWER, "hysteresis": 1}
        (out / f"fp16_{stage}.json").write_text(json.dumps(settings))
        options = ["precision=fp16", f"deepspeed={out}/fp16_{stage}.json", f"zero_stage={stage}", "resume=never"]
        sizes = [f"max_steps={steps}", "global_batch=null", "batch_per_rank=24"]
        runs.append(train_arguments(out / "data", out / f"zero{stage}", *options, *sizes))
    for stage, code in enumerate(_train(torch.device("cuda"), runs, out), 1):
        curve = losses(out / f"zero{stage}") if code == 0 else [math.nan]
        skipped = series(out / f"zero{stage}", "optimizer/skipped_steps")[-1:] if code == 0 else []
        say(line := f"ZeRO {stage}, fp16: loss {curve[0]:.3f} to {curve[-1]:.3f}, {sum(skipped):g} steps skipped")
        if not curve[-1] < curve[0] or not sum(skipped):
            wrong.append(line)
    return wrong


if __name__ == "__main__":
    run_command(main, GpuCheck)
