"""The late-interaction loss against its alternatives, on every instruction set that this CPU can be limited to.

    python -m bench.interaction [--quick] [--shape 256x49 ...] [--isa NAME ...] [--only CONTENDER ...] [--seconds 120]

Each instruction set has a process, in which PyTorch, oneDNN and the native kernels all stop at it; the contenders take
turns, and one contender's processes run directly after one another. AMX's kernels take float32 in 16 bits there. Time
is CPU time, all cores together; a ratio is the median of the ratios within a round, so that other work on the machine
strikes both sides of it. Threads that wait sleep (OMP_WAIT_POLICY=passive), because spinning would count as work.
Captions have 20 tokens on average; d = 256. A shape is measured for so many seconds, and two rounds at least.
``--quick`` measures 96 pairs alone for 25 s.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads OpenMP

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from late_interaction import Similarity, SmoothMaximum, contrastive_loss, late_interaction, native
from late_interaction.backends import AnyBackend

QUICK = (96, 49)  # pairs, image tokens
SHAPES = [(64, 49), (256, 49), (512, 49), (64, 256), (256, 256)]
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
    Ratio("einsum_longest", "native", 8.0, more=True),
    Ratio("einsum_longest", "tiled"),
]

# ---- the contenders: each turns one problem into a step to be timed ------------------------------------

SCALE = torch.tensor(1 / 0.07)
Step = Callable[[], object]


class Problem(NamedTuple):
    """Unit tokens: image [b, n1, d], packed text [T, d], lengths [b]."""

    image: Tensor
    text: Tensor
    lengths: Tensor


def random_problem(images: int, patches: int, dim: int = 256, texts: int | None = None, seed: int = 0) -> Problem:
    """Make captions of 20 tokens on average, [BOS] and [EOS] included, between 4 and 77."""
    generator = torch.Generator().manual_seed(seed)
    count = texts or images
    lengths = (20 + 6 * torch.randn(count, generator=generator)).round().long().clamp(4, 77)
    image = torch.randn(images, patches, dim, generator=generator)
    text = torch.randn(int(lengths.sum()), dim, generator=generator)
    return Problem(F.normalize(image, dim=-1), F.normalize(text, dim=-1), lengths)


def _loss_step(similarity: Callable[[], tuple[Tensor, Tensor]], *inputs: Tensor) -> Step:
    """Return a step of forward, symmetric cross-entropy and backward; the gradients stay in memory as in training."""

    def step() -> object:
        for tensor in inputs:
            tensor.grad = None
        contrastive_loss(Similarity(*similarity()), SCALE).loss.backward()
        return [tensor.grad for tensor in inputs]

    return step


def ours(problem: Problem, backend: AnyBackend, dtype: torch.dtype = torch.float32) -> Step:
    image, text = (tokens.to(dtype).detach().requires_grad_() for tokens in (problem.image, problem.text))
    return _loss_step(lambda: late_interaction(image, text, problem.lengths, backend=backend), image, text)


def ragged(problem: Problem, backend: AnyBackend) -> Step:
    """Return the step on as many image tokens, unequally divided: images have 1 to 2 n1 - 1, packed."""
    b, n1, d = problem.image.shape
    half = torch.randint(1, 2 * n1, (b // 2,), generator=torch.Generator().manual_seed(1))
    counts = torch.cat([half, 2 * n1 - half, torch.full((b % 2,), n1)])
    image, text = (tokens.detach().requires_grad_() for tokens in (problem.image.view(-1, d), problem.text))
    return _loss_step(
        lambda: late_interaction(image, text, problem.lengths, image_lengths=counts, backend=backend), image, text
    )


def einsum(problem: Problem) -> Step:
    """Return a step of the public re-implementations (x-clip and others): [b, b, n1, n2] in memory, padding masked,
    autograd; captions are padded to the batch's longest, as a careful user writes it."""
    padded = pad_sequence(problem.text.split(problem.lengths.tolist()), batch_first=True)
    image, text = (tokens.detach().requires_grad_() for tokens in (problem.image, padded))
    mask = torch.arange(text.shape[1]) < problem.lengths[:, None]

    def similarity() -> tuple[Tensor, Tensor]:
        products = torch.einsum("ikd,jrd->ijkr", image, text)
        lowest = torch.finfo(products.dtype).min
        # max, which saves indices, takes half the memory of amax, which saves the whole similarity twice
        i2t = products.masked_fill(~mask[None, :, None, :], lowest).max(dim=3).values.mean(dim=2)
        t2i = products.max(dim=2).values.masked_fill(~mask[None], 0).sum(dim=2) / mask.sum(dim=1)
        return i2t, t2i

    return _loss_step(similarity, image, text)


PRODUCT_BLOCKS = ((1 << 30, 1 << 30), (3200, 1152), (1600, 1280), (3200, 5120), (800, 5120), (6400, 1152))


def product(problem: Problem, dtype: torch.dtype = torch.float32) -> Step:
    """Return the bare product of all tokens, packed, forward only, in the block size that is fastest on this machine.

    In bfloat16 it does not replace the similarity, since the result is rounded too; it says what the CPU can do.
    """
    image, text = problem.image.flatten(0, 1).to(dtype), problem.text.to(dtype)

    def blocked(block: tuple[int, int]) -> Step:
        out = torch.empty(min(block[0], len(image)) * min(block[1], len(text)), dtype=dtype)

        def step() -> None:
            for rows in image.split(block[0]):
                for columns in text.split(block[1]):
                    torch.mm(rows, columns.T, out=out[: len(rows) * len(columns)].view(len(rows), len(columns)))

        return step

    candidates = [blocked(block) for block in PRODUCT_BLOCKS]
    return min(candidates, key=lambda step: min(seconds_of(step), seconds_of(step)))


CONTENDERS: dict[str, Callable[[Problem], Step]] = {
    "product": product,
    "product_bf16": lambda problem: product(problem, torch.bfloat16),
    "native": lambda problem: ours(problem, "native"),
    "native_bf16": lambda problem: ours(problem, "native", torch.bfloat16),
    "native_ragged": lambda problem: ragged(problem, "native"),
    "smooth": lambda problem: ours(problem, SmoothMaximum(0.05)),
    "smooth_bf16": lambda problem: ours(problem, SmoothMaximum(0.05), torch.bfloat16),
    "smooth_ragged": lambda problem: ragged(problem, SmoothMaximum(0.05)),
    "tiled": lambda problem: ours(problem, "tiled"),
    "einsum_longest": einsum,
}


def seconds_of(step: Step) -> float:
    started = time.process_time()
    step()
    return time.process_time() - started


# ---- processes that measure ------------------------------------------------------------------------------


def answer(images: int, patches: int) -> None:
    """Print the CPU seconds of a step of each contender whose name comes on the standard input."""
    problem = random_problem(images, patches)
    steps: dict[str, Step] = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in steps:
            steps[name] = CONTENDERS[name](problem)
            steps[name]()
        print(seconds_of(steps[name]), flush=True)


class Worker:
    """A process limited to an instruction set, in which contenders run one at a time."""

    def __init__(self, isa: str, images: int, patches: int) -> None:
        command = [sys.executable, "-m", "bench.interaction", "answer", str(images), str(patches)]
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


Seconds = dict[str, dict[int, float]]  # by contender, a number a round


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


def ratios_of(taken: Seconds) -> dict[Ratio, float]:
    """Return the medians of the ratios within the rounds in which both sides took part."""
    return {
        ratio: statistics.median(
            taken[ratio.above][r] / taken[ratio.below][r] for r in taken[ratio.above].keys() & taken[ratio.below]
        )
        for ratio in RATIOS
        if ratio.above in taken and ratio.below in taken
    }


def measure_shape(shape: tuple[int, int], isas: list[str], names: list[str], seconds: float) -> None:
    """Print the tables of one shape."""
    workers = {isa: Worker(isa, *shape) for isa in isas}
    try:
        taken = take_turns(workers, names, seconds)
    finally:
        for worker in workers.values():
            worker.end()
    ratios = {isa: ratios_of(of_isa) for isa, of_isa in taken.items()}
    images, patches = shape
    rounds = min(len(of_isa[names[0]]) for of_isa in taken.values())
    print(f"\n{images} pairs of {patches} image tokens, {rounds} rounds. CPU milliseconds:\n")
    milliseconds = {
        isa: [f"{1e3 * statistics.median(of_isa[n].values()):,.1f}" for n in names] for isa, of_isa in taken.items()
    }
    print_table(names, milliseconds)
    print("\nRatios; ! misses its goal:\n")
    shown = list(ratios[isas[0]])
    rows = {
        isa: [f"{medians[r]:.2f}{' !' if r.missed(medians[r], isa) else ''}" for r in shown]
        for isa, medians in ratios.items()
    }
    goals = [(r.goal_of(isas[0]), "least" if r.more else "most") for r in shown]
    rows["goal"] = ["" if goal is None else f"at {end} {goal:g}" for goal, end in goals]
    print_table([f"{r.above} / {r.below}" for r in shown], rows)


def print_table(head: Iterable[str], rows: dict[str, list[str]]) -> None:
    """Print Markdown, a row for each instruction set."""
    names = [name.replace("_", " ") for name in head]
    print(f"| | {' | '.join(names)} |\n|---|{'--:|' * len(names)}")
    for label, cells in rows.items():
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one shape, about a minute")
    shapes = {f"{images}x{patches}": (images, patches) for images, patches in SHAPES}
    parser.add_argument("--shape", nargs="+", choices=shapes, help="pairs x image tokens; all by default")
    parser.add_argument("--isa", nargs="+", choices=list(LIMITS), help="all that this CPU has by default")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), help="contenders; default all")
    parser.add_argument("--seconds", type=float, help="for a shape; 120, with --quick 25")
    options = parser.parse_args()
    if reason := native.unavailable_reason():
        sys.exit(f"nothing to measure: {reason}")
    isas = [isa for isa in native.isas() if isa in (options.isa or LIMITS)]
    if not isas:
        sys.exit(f"nothing to measure: this CPU has {', '.join(native.isas())}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    seconds = options.seconds or (QUICK_SHAPE if options.quick else EACH_SHAPE)
    for shape in [QUICK] if options.quick else [shapes[name] for name in options.shape or shapes]:
        fits = shape[0] ** 2 * shape[1] * 77 * 4 * 4 < 8e9  # the padded form, with four copies of the similarity
        names = [name for name in options.only or CONTENDERS if fits or not name.startswith("einsum")]
        measure_shape(shape, isas, names, seconds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["answer"]:
        answer(int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
