"""The late-interaction loss against its alternatives, on every instruction set that this CPU can be limited to.

    python -m bench.interaction [--quick] [--shape 256x49 ...] [--isa NAME ...] [--only CONTENDER ...] [--seconds 120]

Each instruction set has a process, in which PyTorch, oneDNN and the native kernels all stop at it; the contenders take
turns, and one contender's processes run directly after one another. Time
is CPU time, all cores together; a ratio is the median of the ratios within a round, so that other work on the machine
strikes both sides of it. Threads that wait sleep (OMP_WAIT_POLICY=passive), because spinning would count as work.
Captions have 20 tokens on average; d = 256. A shape is measured for so many seconds, and two rounds at least.
``--quick`` measures 96 pairs for 25 s. Last come distillation, a query's own documents by the engine and by an einsum
with masks, and a search, 12 words against 10,000 pictures, by the engine and by PyTorch's product and maximum;
``--kd`` and ``--search`` measure them alone.
"""

from __future__ import annotations

import argparse
import importlib.util
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
from late_interaction.adapters import colbert_kd_scores
from late_interaction.retrieval import text_scores

QUICK = (96, 49)  # pairs, image tokens
# Distillation: queries of 32 tokens, and for each so many documents of so many tokens at least and at most.
DISTILLATIONS = [(16, 8, 60, 180), (16, 8, 180, 180), (32, 16, 60, 180)]
SEARCH = (10_000, 36, 12)  # pictures, tokens of each, words
SHAPES = [(64, 49), (256, 49), (512, 49), (64, 256), (256, 256)]
EACH_SHAPE, QUICK_SHAPE = 120.0, 25.0  # seconds
# What limits the other libraries to an instruction set. The portable kernels have no rival to compare with.
LIMITS = {
    "amx": {},
    "avx512_bf16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI", "ATEN_CPU_CAPABILITY": "avx512"},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}


RATIOS = [  # the time of the first over that of the second
    ("native", "product"),
    ("native_bf16", "product_bf16"),
    ("native_bf16", "native"),
    ("native_ragged", "native"),
    ("smooth", "native"),
    ("smooth_bf16", "native_bf16"),
    ("smooth_ragged", "smooth"),
    ("einsum_longest", "native"),
    ("einsum_longest", "tiled"),
    ("kd", "kd_einsum"),
    ("search_bf16", "product_bf16"),
    ("search_int8", "product_int8"),
    ("search_bf16", "numkong"),
    ("search_bf16", "maxsim_cpu"),
]

# How many products of all tokens a step is, and which contender is one: the rest of a step is a loss against the peak.
PRODUCTS = {"native": (1, "product"), "smooth": (4, "product"), "native_bf16": (1, "product_bf16"),
            "smooth_bf16": (4, "product_bf16")}  # fmt: skip

# ---- the contenders: each turns one problem into a step to be timed ------------------------------------

SCALE, SMOOTH = torch.tensor(1 / 0.07), SmoothMaximum(0.05)
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


def ours(
    problem: Problem, backend: str, dtype: torch.dtype = torch.float32, maximum: SmoothMaximum | None = None
) -> Step:
    image, text = (tokens.to(dtype).detach().requires_grad_() for tokens in (problem.image, problem.text))
    return _loss_step(
        lambda: late_interaction(image, text, problem.lengths, backend=backend, maximum=maximum), image, text
    )


def ragged(problem: Problem, maximum: SmoothMaximum | None = None) -> Step:
    """Return the step on as many image tokens, unequally divided: images have 1 to 2 n1 - 1, packed."""
    b, n1, d = problem.image.shape
    half = torch.randint(1, 2 * n1, (b // 2,), generator=torch.Generator().manual_seed(1))
    counts = torch.cat([half, 2 * n1 - half, torch.full((b % 2,), n1)])
    image, text = (tokens.detach().requires_grad_() for tokens in (problem.image.view(-1, d), problem.text))
    return _loss_step(
        lambda: late_interaction(image, text, problem.lengths, image_lengths=counts, backend="native", maximum=maximum),
        image,
        text,
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
    """Return the bare product of all tokens, packed, forward only, the fastest way on this machine: MKL's or oneDNN's,
    which is twice as fast as MKL's on AMD's cores, in the best of some block sizes.

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

    def by_one_dnn(rows: int) -> Step:
        weight, parts = text.to_mkldnn(), [part.to_mkldnn() for part in image.split(rows)]
        return lambda: [F.linear(part, weight) for part in parts]

    candidates = [blocked(block) for block in PRODUCT_BLOCKS]
    if torch.backends.mkldnn.is_available():
        candidates += [by_one_dnn(rows) for rows in (800, 1600, 3200)]
    return min(candidates, key=lambda step: min(seconds_of(step), seconds_of(step)))


def distillation(shape: tuple[int, ...], ours: bool) -> Step:
    """Return a step of each query's scores of its own documents, d = 128, by the engine or by an einsum with masks."""
    queries, ways, shortest, longest = shape
    generator = torch.Generator().manual_seed(0)
    query, document = (
        F.normalize(torch.randn(*of, 128, generator=generator), dim=-1).requires_grad_()
        for of in ((queries, 32), (queries, ways, longest))
    )
    lengths = torch.randint(shortest, longest + 1, (queries, ways, 1), generator=generator)
    masks = torch.ones(queries, 32, dtype=torch.bool), torch.arange(longest) < lengths
    weights = torch.randn(queries, ways, generator=generator)

    def by_einsum(query: Tensor, document: Tensor, _: Tensor, mask: Tensor) -> Tensor:
        products = torch.einsum("qkd,qnrd->qnkr", query, document)
        return products.masked_fill(~mask[:, :, None], torch.finfo(query.dtype).min).max(dim=3).values.sum(dim=2)

    def step() -> object:
        query.grad = document.grad = None
        scores = (colbert_kd_scores if ours else by_einsum)(query, document, *masks)
        (scores * weights).sum().backward()
        return query.grad, document.grad

    return step


def search(shape: tuple[int, ...], name: str) -> Step:
    """Return a search for one text, d = 128: the scores of all pictures, by the engine or by PyTorch."""
    pictures, patches, count = shape
    generator = torch.Generator().manual_seed(0)
    words, tokens = (F.normalize(torch.randn(n, 128, generator=generator), dim=-1) for n in (count, pictures * patches))
    scales = None
    kind, one = (torch.int8, 127) if name.endswith("int8") else (torch.bfloat16, 1)
    if one > 1:
        scales = tokens.abs().amax(1) / one
        tokens = (tokens / scales[:, None]).round()
    tokens, rounded = tokens.to(kind), (words * one).to(kind).T.contiguous()
    lengths = torch.full((pictures,), patches)
    if name.startswith("search"):
        return lambda: text_scores(words, tokens, scales, lengths=lengths)
    if name == "maxsim_cpu":
        theirs, items = importlib.import_module(name), tokens.float().view(pictures, patches, -1).numpy()
        return lambda: theirs.maxsim_scores(words.numpy(), items)
    if name == "numkong":
        theirs, bf16 = importlib.import_module(name), importlib.import_module("ml_dtypes").bfloat16
        query, *packed = map(
            theirs.maxsim_pack, [n.float().numpy().astype(bf16) for n in (words, *tokens.split(patches))]
        )
        return lambda: [theirs.maxsim_packed(query, item) for item in packed]
    product = torch.mm if scales is None else torch._int_mm
    return lambda: product(tokens, rounded).view(pictures, patches, -1).amax(1).float().mean(1)


# Of the other libraries those that are installed (numkong with ml_dtypes); maxsim-cpu takes float32.
OTHERS = [name for name in ("numkong", "maxsim_cpu") if importlib.util.find_spec(name)]
SEARCHES = ["search_bf16", "product_bf16", *OTHERS, "search_int8", "product_int8"]
CONTENDERS: dict[str, Callable[[Problem], Step]] = {
    "product": product,
    "product_bf16": lambda problem: product(problem, torch.bfloat16),
    "native": lambda problem: ours(problem, "native"),
    "native_bf16": lambda problem: ours(problem, "native", torch.bfloat16),
    "native_ragged": lambda problem: ragged(problem),
    "smooth": lambda problem: ours(problem, "native", maximum=SMOOTH),
    "smooth_bf16": lambda problem: ours(problem, "native", torch.bfloat16, SMOOTH),
    "smooth_ragged": lambda problem: ragged(problem, SMOOTH),
    "tiled": lambda problem: ours(problem, "tiled"),
    "einsum_longest": einsum,
}


def seconds_of(step: Step) -> float:
    started = time.process_time()
    step()
    return time.process_time() - started


# ---- processes that measure ------------------------------------------------------------------------------


def answer(shape: tuple[int, ...]) -> None:
    """Print the CPU seconds of a step of each contender whose name comes on the standard input."""
    steps: dict[str, Step] = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in steps:
            if len(shape) == len(SEARCH):
                steps[name] = search(shape, name)
            elif name.startswith("kd"):
                steps[name] = distillation(shape, name == "kd")
            else:
                steps[name] = CONTENDERS[name](random_problem(*shape))
            steps[name]()
            if name.startswith(("native", "smooth")):
                print(f"{name}: its backward has {native.units()} units of work at once", file=sys.stderr)
        print(seconds_of(steps[name]), flush=True)


class Worker:
    """A process limited to an instruction set, in which contenders run one at a time."""

    def __init__(self, isa: str, shape: tuple[int, ...]) -> None:
        command = [sys.executable, "-m", "bench.interaction", "answer", *map(str, shape)]
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


def ratios_of(taken: Seconds) -> dict[str, str]:
    """Return the medians of the ratios within the rounds in which both sides took part."""
    return {
        f"{above} / {below}": f"{statistics.median(taken[above][r] / taken[below][r] for r in both):.2f}"
        for above, below in RATIOS
        if (both := taken.get(above, {}).keys() & taken.get(below, {}))
    }


def measure_shape(shape: tuple[int, ...], title: str, isas: list[str], names: list[str], seconds: float) -> None:
    """Print the tables of one shape."""
    workers = {isa: Worker(isa, shape) for isa in isas}
    try:
        taken = take_turns(workers, names, seconds)
    finally:
        for worker in workers.values():
            worker.end()
    rounds = min(len(of_isa[names[0]]) for of_isa in taken.values())
    print(f"\n{title}, {rounds} rounds. CPU milliseconds:\n")
    milliseconds = {
        isa: [f"{1e3 * statistics.median(of_isa[n].values()):,.1f}" for n in names] for isa, of_isa in taken.items()
    }
    print_table(names, milliseconds)
    print("\nRatios:\n")
    ratios = {isa: ratios_of(of_isa) for isa, of_isa in taken.items()}
    print_table(ratios[isas[0]], {isa: list(medians.values()) for isa, medians in ratios.items()})
    if counted := {name: PRODUCTS[name] for name in names if name in PRODUCTS and PRODUCTS[name][1] in names}:
        print("\n% of the fastest product's rate, forward and backward; the smooth maximum is four products:\n")
        least = {isa: {name: min(of_isa[name].values()) for name in names} for isa, of_isa in taken.items()}
        shares = {
            isa: [f"{100 * count * of[one] / of[name]:.0f}" for name, (count, one) in counted.items()]
            for isa, of in least.items()
        }
        print_table(counted, shares)


def print_table(head: Iterable[str], rows: dict[str, list[str]]) -> None:
    """Print Markdown, a row for each instruction set."""
    names = [name.replace("_", " ") for name in head]
    print(f"| | {' | '.join(names)} |\n|---|{'--:|' * len(names)}")
    for label, cells in rows.items():
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kd", action="store_true", help="distillation alone, which else comes last")
    parser.add_argument("--search", action="store_true", help="a search alone, which else comes last, too")
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
    pairs = [QUICK] if options.quick else [shapes[name] for name in options.shape or shapes]
    alone, last = options.kd or options.search, not (options.shape or options.only)
    for shape in [] if alone else pairs:
        fits = shape[0] ** 2 * shape[1] * 77 * 4 * 4 < 8e9  # the padded form, with four copies of the similarity
        names = [name for name in options.only or CONTENDERS if fits or not name.startswith("einsum")]
        measure_shape(shape, f"{shape[0]} pairs of {shape[1]} image tokens", isas, names, seconds)
    for queries, ways, shortest, longest in DISTILLATIONS if last and not options.search else []:
        title = f"{queries} queries with {ways} documents of {shortest} to {longest} tokens each"
        measure_shape((queries, ways, shortest, longest), title, isas, ["kd", "kd_einsum"], 10.0)
    if last and not options.kd:
        title = "{:,} pictures of {} tokens and a text of {}".format(*SEARCH)
        measure_shape(SEARCH, title, isas, SEARCHES, 10.0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["answer"]:
        answer(tuple(map(int, sys.argv[2:])))
    else:
        main()
