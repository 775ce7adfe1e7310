"""Compare time and memory of the loss, forward and backward, with the product alone and other implementations."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.finding import FAIL, PASS, Finding, Place, seconds_and_bytes
from bench.interaction_contenders import masked_einsum_similarity
from bench.interaction_problem import Problem, random_problem
from filip.train.hardware import peak_flops
from late_interaction import late_interaction

# Images, their tokens, texts: whole batches, and what one GPU of the paper's 128 and 192 does
SQUARES = [(256, 49), (512, 49), (1024, 49), (2048, 49), (4096, 49)]
SLICES = [(320, 49, 40_960), (160, 256, 30_720)]
COMPILED = "einsum, padded, torch.compile"
GOAL = 1.5  # times three products of all tokens: one forward, one for each side's gradient
Similarity = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def check(place: Place) -> Finding:
    shapes = [(8, 5, 12)] if place.tiny else [(b, n1, b) for b, n1 in SQUARES] + SLICES
    dtype = torch.bfloat16
    if place.device.type == "cuda" and torch.cuda.get_device_capability(place.device)[0] < 8:
        dtype = torch.float16
    peak = peak_flops(place.name, "bf16")
    rows: list[dict[str, Any]] = []
    for images, patches, texts in shapes:
        problem = random_problem(images, patches, 16 if place.tiny else 256, texts)
        image, text = (tokens.to(place.device, dtype) for tokens in (problem.image, problem.text))
        on_device = Problem(image, text, problem.lengths)
        flops = 2.0 * image.numel() * len(text)
        product = None
        for name, make in CONTENDERS.items():
            if place.tiny and name == COMPILED:
                continue  # it would take half a minute
            row: dict[str, Any] = {"images": images, "tokens": patches, "texts": texts, "contender": name}
            try:
                step = make(on_device)
                seconds, size = seconds_and_bytes(step, place.device, 2 if place.tiny else 7)
            except (ValueError, RuntimeError, ImportError, TypeError) as error:  # out of memory is a RuntimeError
                rows.append(row | {"why": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"})
                step = None
                if place.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            product = seconds if name == "product, forward" else product
            row |= {"ms": 1e3 * seconds, "MB": size / 1e6, "TFLOP/s of packed tokens": flops / seconds / 1e12}
            row["of peak"] = f"{flops / seconds / peak:.1%}" if peak else "unknown"
            row["of three products' time"] = seconds / (3 * product) if product else ""
            rows.append(row)
            del step
    ours = [row["of three products' time"] for row in rows if row["contender"] == "auto" and "ms" in row]
    if len(ours) < len(shapes):
        return Finding(FAIL, "this engine did not run in every shape", rows)
    met = sum(ratio <= GOAL for ratio in ours)
    reached = f"goal {GOAL}: {met} of {len(ours)} shapes"
    said = f"{dtype}; {min(ours):.2f} to {max(ours):.2f} times three products of all tokens ({reached})"
    return Finding(PASS if met == len(ours) or place.tiny else FAIL, said, rows)


def loss_step(similarity: Similarity, image: Tensor, text: Tensor) -> Callable[[], None]:
    """Return a step of both soft-maxes over the texts, forward and backward. Image i belongs to text i."""
    image, text = image.detach().requires_grad_(), text.detach().requires_grad_()
    own = torch.arange(len(image), device=image.device)

    def step() -> None:
        image.grad = text.grad = None
        found = similarity(image, text)
        torch.stack([F.cross_entropy(matrix.float() / 0.07, own) for matrix in found]).sum().backward()

    return step


def ours(backend: str) -> Callable[[Problem], Callable[[], None]]:
    def make(problem: Problem) -> Callable[[], None]:
        def similarity(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
            i2t, t2i = late_interaction(image, text, problem.lengths, backend=backend)
            return i2t, t2i

        return loss_step(similarity, problem.image, problem.text)

    return make


def product(problem: Problem) -> Callable[[], None]:
    """Return a step that multiplies all tokens, packed, in blocks of rows that are discarded; one product of the slice
    would be 23 GB."""
    flat = problem.image.flatten(0, 1)
    rows = max(1, (1 << 30) // len(problem.text))

    def step() -> None:
        for block in flat.split(rows):
            torch.mm(block, problem.text.T)

    return step


def einsum(problem: Problem, compiled: bool = False) -> Callable[[], None]:
    mask = torch.arange(77, device=problem.image.device) < problem.lengths.to(problem.image.device)[:, None]
    padded = problem.padded()

    def similarity(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return masked_einsum_similarity(image, text, mask)

    chosen: Similarity = torch.compile(similarity) if compiled else similarity
    return loss_step(chosen, problem.image, padded)


def late_interaction_kernels(problem: Problem) -> Callable[[], None]:
    """Return a step of PyPI's late-interaction-kernels: a call per direction, so two; sums, which are divided here."""
    maxsim = importlib.import_module("late_interaction_kernels").maxsim  # measured where a user has installed it
    lengths = problem.lengths.to(problem.image.device)
    mask = torch.arange(77, device=lengths.device) < lengths[:, None]

    def similarity(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        i2t = maxsim(image, text, d_mask=mask) / image.shape[1]
        t2i = maxsim(text, image, q_mask=mask) / lengths[:, None]
        return i2t, t2i.T

    return loss_step(similarity, problem.image, problem.padded())


CONTENDERS: dict[str, Callable[[Problem], Callable[[], None]]] = {
    "product, forward": product,
    "auto": ours("auto"),
    "tiled": ours("tiled"),
    "einsum, padded": einsum,
    COMPILED: lambda problem: einsum(problem, compiled=True),
    "late-interaction-kernels": late_interaction_kernels,
}
