"""The late-interaction loss against its alternatives, on every instruction set that this CPU can be limited to.

    python -m bench.interaction [--quick] [--shape 256x49 ...] [--isa NAME ...] [--only CONTENDER ...] [--seconds 120]

Each instruction set has a process, in which PyTorch, oneDNN and the native kernels all stop at it; the contenders take
turns, and one contender's processes run directly after one another. AMX's kernels take float32 in 16 bits there. Time
is CPU time, all cores together; a ratio is the median of the ratios within a round, so that other work on the machine
strikes both sides of it. Threads that wait sleep (OMP_WAIT_POLICY=passive), because spinning would count as work. The
last shape is one GPU's share of the paper's batch, 16 own pairs against 8,192 captions, next to the encoders of these
pairs (bench/interaction_slice.py). Memory is the growth of the resident set over the inputs, gradients included, at its
high-water mark in a fresh process (bench/interaction_memory.py). Captions have 20 tokens on average; d = 256.

A shape is measured for so many seconds, and two rounds at least. ``--quick`` measures 96 pairs alone for 25 s.
The JSON is one flat object, its keys are ``ISA/B256_n49/NAME`` for ratios and ``.../NAME_ms`` for contenders.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads OpenMP

import torch

from bench.interaction_memory import peak_megabytes
from late_interaction import native

QUICK, MAIN_SHAPE, SLICE = (96, 49), (256, 49), (16, 49)
SHAPES = [(64, 49), MAIN_SHAPE, (512, 49), (64, 256), (256, 256), SLICE]
MEMORY_OF = ("native", "smooth", "tiled", "einsum", "einsum_longest", "einsum_quarter")
EACH_SHAPE, QUICK_SHAPE = 120.0, 25.0  # seconds
# What limits the other libraries to an instruction set. The portable kernels have no rival to compare with.
LIMITS = {
    "amx": {},
    "avx512_bf16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI", "ATEN_CPU_CAPABILITY": "avx512"},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}


class Ratio(NamedTuple):
    """The time of ``above`` over that of ``below``.

    ``goal``: its largest value, or its smallest with ``more``; ``amx``: another goal for a CPU with AMX.
    """

    above: str
    below: str
    goal: float | None = None
    more: bool = False
    amx: float | None = None

    def goal_of(self, isa: str) -> float | None:
        return self.amx if isa == "amx" and self.amx is not None else self.goal

    @property
    def name(self) -> str:
        return f"{self.above}_over_{self.below}"

    def missed(self, found: float, isa: str) -> bool:
        """Return whether ``found`` is on the wrong side of the goal."""
        goal = self.goal_of(isa)
        return goal is not None and (found < goal if self.more else found > goal)


RATIOS = [
    Ratio("native", "product", 1.0, amx=1.1),
    Ratio("native_bf16", "product_bf16", 4.0),
    Ratio("native_bf16", "native", 1.05, amx=0.6),
    Ratio("native_ragged", "native", 1.05),
    Ratio("smooth", "native", 3.0),
    Ratio("smooth_bf16", "native_bf16", 3.0, amx=1.7),
    Ratio("smooth_ragged", "smooth", 1.05),
    Ratio("smooth_cold", "smooth", 1.3),
    Ratio("smooth_77", "native_77", 3.0),
    Ratio("smooth_300", "native_300", 3.0),
    Ratio("einsum_longest", "native", 8.0, more=True),
    Ratio("einsum", "native"),
    Ratio("native", "einsum_quarter", 0.75),
    Ratio("einsum_longest", "tiled"),
    Ratio("maxsim_cpu", "native_forward", 5.0, more=True),
    Ratio("filip_loss", "product"),
    Ratio("smooth_loss", "filip_loss", 3.0),
    Ratio("filip_step", "clip_step", 1.15),
]
# The loss of CLIP or FILIP and the encoders of the pairs, which are the same
STEPS = {"filip_step": ("encoders", "filip_loss"), "clip_step": ("encoders", "clip_loss")}
Seconds = dict[str, dict[int, float]]  # by contender, a number a round


class Worker:
    """A process limited to an instruction set, in which contenders run one at a time."""

    def __init__(self, isa: str, images: int, patches: int) -> None:
        command = [sys.executable, "-m", "bench.interaction_contenders", str(images), str(patches)]
        environment = {**os.environ, **LIMITS[isa], native.ISA_VARIABLE: isa}
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self, name: str) -> float:
        """Return the CPU seconds of a step of that contender."""
        assert self._process.stdin and self._process.stdout
        print(name, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"the process of {name} has ended: exit code {self._process.wait()}")
        return float(answer)

    def end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one shape, about a minute")
    shapes = {f"{images}x{patches}": (images, patches) for images, patches in SHAPES}
    parser.add_argument("--shape", nargs="+", choices=shapes, help="pairs x image tokens; all by default")
    parser.add_argument("--isa", nargs="+", choices=list(LIMITS), help="all that this CPU has by default")
    parser.add_argument("--only", nargs="+", default=[], help="contenders; all by default")
    parser.add_argument("--seconds", type=float, help="for a shape; 120, with --quick 25")
    parser.add_argument("--json", type=Path, help="write the ratios to this file")
    options = parser.parse_args()
    contenders = {name: None for shape in (QUICK, SLICE) for name in contenders_of(shape)}
    if unknown := set(options.only) - contenders.keys():
        parser.error(f"--only {' '.join(unknown)}: the contenders are {', '.join(contenders)}")
    if reason := native.unavailable_reason():
        sys.exit(f"nothing to measure: {reason}")
    isas = [isa for isa in native.isas() if isa in (options.isa or LIMITS)]
    if not isas:
        sys.exit(f"nothing to measure: this CPU has {', '.join(native.isas())}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    result: dict[str, float] = {}
    seconds = options.seconds or (QUICK_SHAPE if options.quick else EACH_SHAPE)
    for shape in [QUICK] if options.quick else [shapes[name] for name in options.shape or shapes]:
        names = [name for name in contenders_of(shape) if not options.only or name in options.only]
        if names:
            result |= measure_shape(shape, isas, names, seconds)
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n")


def measure_shape(shape: tuple[int, int], isas: list[str], names: list[str], seconds: float) -> dict[str, float]:
    """Print the tables of one shape and return its figures."""
    workers = {isa: Worker(isa, *shape) for isa in isas}
    try:
        taken = take_turns(workers, names, seconds)
    finally:
        for worker in workers.values():
            worker.end()
    ratios = {isa: ratios_of(of_isa) for isa, of_isa in taken.items()}
    milliseconds = {
        isa: {name: 1e3 * statistics.median(rounds.values()) for name, rounds in of_isa.items()}
        for isa, of_isa in taken.items()
    }
    images, patches = shape
    texts = " against 8,192 captions" if shape == SLICE else ""
    rounds = min(len(of_isa[names[0]]) for of_isa in taken.values())
    print(f"\n{images} pairs of {patches} image tokens{texts}, {rounds} rounds. CPU milliseconds:\n")
    print_table(names, {isa: [f"{medians[n]:,.1f}" for n in names] for isa, medians in milliseconds.items()})
    shown = [ratio for ratio in RATIOS if ratio.name in ratios[isas[0]]]
    print("\nRatios; ! misses its goal:\n")
    rows = {
        isa: [f"{medians[r.name]:.2f}{' !' if r.missed(medians[r.name], isa) else ''}" for r in shown]
        for isa, medians in ratios.items()
    }
    goals = [r.goal_of(isas[0]) for r in shown]
    rows["goal"] = [
        "" if goal is None else f"at {'least' if r.more else 'most'} {goal:g}"
        for goal, r in zip(goals, shown, strict=True)
    ]
    print_table([r.name for r in shown], rows)
    prefix = f"B{images}_n{patches}"
    medians = {f"{isa}/{prefix}/{name}": value for isa in isas for name, value in ratios[isa].items()}
    medians |= {f"{isa}/{prefix}/{n}_ms": value for isa in isas for n, value in milliseconds[isa].items()}
    if shape == MAIN_SHAPE:
        memory = {name: peak_megabytes(name, *shape) for name in MEMORY_OF if name in names}
        print("\nMegabytes at the peak above the inputs, gradients included:\n")
        print_table(list(memory), {"MB": [f"{value:,.1f}" for value in memory.values()]})
        medians |= {f"{prefix}/{name}_peak_mb": value for name, value in memory.items()}
    return medians


def contenders_of(shape: tuple[int, int]) -> list[str]:
    """Return the contenders of a shape: without padded forms that hold over 8 GB, four copies of the similarity."""
    from bench.interaction_contenders import CONTENDERS, SLICE_CONTENDERS

    if shape == SLICE:
        return list(SLICE_CONTENDERS)
    images, patches = shape
    fits = images**2 * patches * 77 * 4 * 4 < 8e9
    return [name for name in CONTENDERS if fits or not name.startswith("einsum")]


def take_turns(workers: dict[str, Worker], names: list[str], seconds: float) -> dict[str, Seconds]:
    """Return the CPU seconds of all contenders in every round: two at least, the slow ones in each fourth."""
    taken: dict[str, Seconds] = {isa: {name: {} for name in names} for isa in workers}
    started = time.monotonic()
    for current in range(60):
        for name in names:
            first = next(iter(taken[next(iter(workers))][name].values()), 0.0)
            if current > 1 and current % 4 and first > seconds / 30:
                continue
            for isa, worker in workers.items():
                taken[isa][name][current] = worker.seconds(name)
        print(f"\rround {current + 1}", end="\r", file=sys.stderr, flush=True)
        if current and time.monotonic() - started > seconds:
            break
    return taken


def ratios_of(taken: Seconds) -> dict[str, float]:
    """Return the medians of the ratios within the rounds in which both sides took part."""
    sums = dict(taken)
    for name, parts in STEPS.items():
        if all(part in taken for part in parts):
            common = set.intersection(*(set(taken[part]) for part in parts))
            sums[name] = {r: sum(taken[part][r] for part in parts) for r in common}
    return {
        ratio.name: statistics.median(
            sums[ratio.above][r] / sums[ratio.below][r] for r in sums[ratio.above].keys() & sums[ratio.below]
        )
        for ratio in RATIOS
        if ratio.above in sums and ratio.below in sums
    }


def print_table(head: Iterable[str], rows: dict[str, list[str]]) -> None:
    """Print Markdown, a row for each instruction set."""
    names = [name.replace("_over_", " / ").replace("_", " ") for name in head]
    print(f"| | {' | '.join(names)} |\n|---|{'--:|' * len(names)}")
    for label, cells in rows.items():
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
