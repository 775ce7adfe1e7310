"""The late-interaction loss against its alternatives: time and memory, forward and backward, on this machine.

    python -m bench.interaction [--quick] [--json PATH]

Time is CPU time of the process, all cores together, so that other load on the machine matters little; the contenders
take turns, and medians over the rounds are reported. Waiting threads sleep (OMP_WAIT_POLICY=passive), because spinning
would count as work.
Memory is the growth of the resident set over the inputs, gradients included, at its high-water mark in a fresh process
(bench/interaction_memory.py). Captions have 20 tokens on average; d = 256. `--quick` measures only B = 256 with 49
image tokens, in about a minute on two idle cores.

The JSON is one flat object. `native_over_product` and the other ratios are those of B = 256 and 49 image tokens; with a
prefix, as in `B64_n49/native_over_product`, those of that shape.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads OpenMP

import torch

from bench.interaction_contenders import CONTENDERS, PRODUCT_BLOCKS, Problem, Step, product, random_problem
from bench.interaction_memory import peak_megabytes
from bench.interaction_slice import measure_slice
from filip.interaction import native

MAIN_SHAPE = (256, 49)
SHAPES = [(64, 49), (128, 49), MAIN_SHAPE, (512, 49), (64, 256), (128, 256), (256, 256)]
MEMORY_OF = ("native", "tiled", "einsum", "einsum_quarter")
# (ratio, numerator, denominator, better than, whether more is better): the targets on two cores at MAIN_SHAPE
TIME_RATIOS = [
    ("native_over_product", "native", "product", 1.0, False),
    ("native_ragged_over_native", "native_ragged", "native", 1.05, False),
    ("smooth_over_native", "smooth", "native", 3.0, False),
    ("smooth_ragged_over_smooth", "smooth_ragged", "smooth", 1.05, False),
    ("einsum_over_native_time", "einsum", "native", 30, True),
    ("einsum_longest_over_native_time", "einsum_longest", "native", None, True),
    ("native_all_over_einsum_quarter_time", "native", "einsum_quarter", 0.75, False),
    ("einsum_over_tiled_time", "einsum", "tiled", 4, True),
    ("maxsim_cpu_over_native_forward", "maxsim_cpu", "native_forward", 5, True),
    ("fp32_over_bf16_time", "native", "native_bf16", None, True),
    ("native_bf16_over_product_bf16", "native_bf16", "product_bf16", None, False),
]
MEMORY_RATIOS = [
    ("einsum_over_native_memory", "einsum", "native", 80, True),
    ("einsum_over_tiled_memory", "einsum", "tiled", None, True),
    ("native_all_over_einsum_quarter_memory", "native", "einsum_quarter", 0.2, False),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one shape, about a minute")
    parser.add_argument("--json", type=Path, help="write the ratios to this file")
    options = parser.parse_args()
    if reason := native.unavailable_reason():
        sys.exit(f"nothing to measure: {reason}")
    torch.manual_seed(0)
    threads, isa = torch.get_num_threads(), os.environ.get(native.ISA_VARIABLE) or native.isas()[0]
    print(f"torch {torch.__version__}, {threads} threads, native kernels: {isa}")
    result: dict[str, float | str] = {"threads": threads, "isa": isa, "torch": torch.__version__}
    for images, patches in [MAIN_SHAPE] if options.quick else SHAPES:
        ratios = measure_shape(images, patches, options.quick)
        result |= {f"B{images}_n{patches}/{name}": value for name, value in ratios.items()}
        if (images, patches) == MAIN_SHAPE:
            result |= ratios
    part = measure_slice(2 if options.quick else 5, progress)
    print("\nThe paper's geometry, 16 local pairs of a global batch of 8,192 (CPU seconds):")
    for name, value in part.items():
        print(f"  {name:42} {value:8.3f}")
    result |= part
    images, patches = MAIN_SHAPE
    encoders = 1e3 * images * part["encoder_seconds_per_pair"]
    result["loss_over_step"] = float(result["native_ms"]) / (encoders + float(result["native_ms"]))
    print(f"Share of the loss in a step of {images} pairs on one process: {result['loss_over_step']:.2%}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def measure_shape(images: int, patches: int, quick: bool) -> dict[str, float]:
    """Print the table of one shape and return its ratios (those that its size allows)."""
    problem = random_problem(images, patches)
    print(
        f"\nB = {images}, {patches} image tokens, captions of {problem.lengths.double().mean():.1f} tokens, d = 256"
    )
    names = [name for name in CONTENDERS if _fits(name, images, patches)]
    best = _best_product(problem, seconds_each=0.3 if quick else 1)
    steps = {"product": best, "product_bf16": product(problem, dtype=torch.bfloat16)} | {
        name: CONTENDERS[name](problem) for name in names
    }
    milliseconds = measure_time(steps, *((2, 1) if quick else (8, 2)))
    memory = {}
    for name in MEMORY_OF:
        if name in steps and not (quick and name == "tiled"):  # its memory has no target
            progress(f"memory of {name}")
            memory[name] = peak_megabytes(name, images, patches)
    print(f"  {'':18}{'CPU ms':>10}{'/ product':>11}{'peak MB':>10}")
    for name, value in milliseconds.items():
        extra = f"{memory[name]:10.1f}" if name in memory else ""
        print(f"  {name:18}{value:10.1f}{value / milliseconds['product']:11.2f}{extra}")
    ratios = {
        n: milliseconds[a] / milliseconds[b] for n, a, b, *_ in TIME_RATIOS if a in steps and b in steps
    }
    ratios |= {n: memory[a] / memory[b] for n, a, b, *_ in MEMORY_RATIOS if a in memory and b in memory}
    _print_ratios(TIME_RATIOS + MEMORY_RATIOS if (images, patches) == MAIN_SHAPE else [], ratios)
    ratios |= {f"{name}_ms": value for name, value in milliseconds.items()}
    return ratios | {f"{name}_peak_mb": value for name, value in memory.items()}


def measure_time(steps: dict[str, Step], seconds_each: float, at_least: int = 2) -> dict[str, float]:
    """Measure median CPU milliseconds of contenders that take turns: up to 15 rounds each, fewer for slow ones."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for current in range(16):
        for name, step in steps.items():
            taken = seconds[name]
            if len(taken) >= at_least and sum(taken) > seconds_each and current % 5:
                continue  # a slow one takes part only in the first rounds and in every fifth
            if len(taken) >= at_least and sum(taken) + taken[-1] > 2 * seconds_each:
                continue
            started = time.process_time()
            step()
            if current > 0 or name.startswith(
                "einsum"
            ):  # the first is a warm-up, which matters little to the slowest
                taken.append(time.process_time() - started)
        progress(f"round {current} of 15")
    return {name: 1e3 * statistics.median(taken) for name, taken in seconds.items()}


def _best_product(problem: Problem, seconds_each: float) -> Step:
    """Return the product in the block size that is fastest on this machine."""
    candidates = [product(problem, block) for block in PRODUCT_BLOCKS]
    cost = measure_time({str(i): step for i, step in enumerate(candidates)}, seconds_each)
    return candidates[min(range(len(candidates)), key=lambda i: cost[str(i)])]


def _fits(name: str, images: int, patches: int) -> bool:
    """Return whether a form fits: the padded one holds four copies of the similarity; over 8 GB is not worth a wait."""
    return name not in ("einsum", "einsum_longest") or images**2 * patches * 77 * 4 * 4 < 8e9


def _print_ratios(targets: list, ratios: dict[str, float]) -> None:
    for name, _, _, target, more in targets:
        if name in ratios and target is not None:
            met = ratios[name] >= target if more else ratios[name] <= target
            bound = f"{'at least' if more else 'at most'} {target}"
            print(f"  {name:42} {ratios[name]:8.3f}   target: {bound:14} {'' if met else '  MISSED'}")


def progress(message: str) -> None:
    print(f"\r{message:40}", end="\r", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
