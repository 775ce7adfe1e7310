"""The contenders of bench.interaction: each turns one problem into a step to be timed.

``python -m bench.interaction_contenders IMAGES PATCHES`` reads names of contenders from its input, runs a step
of each and prints its CPU seconds.
"""

import math
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import interaction_slice
from bench.interaction_problem import TEXT_POSITIONS, Problem, Step, random_problem
from late_interaction import Similarity, SmoothMaximum, contrastive_loss, late_interaction, pooled_similarity
from late_interaction.backends import AnyBackend

SCALE = torch.tensor(1 / 0.07)


def _loss_step(similarity: Callable[[], tuple[Tensor, Tensor]], *inputs: Tensor) -> Step:
    """Return a step of forward, symmetric cross-entropy and backward; the gradients stay in memory as in training."""

    def step() -> object:
        for tensor in inputs:
            tensor.grad = None
        contrastive_loss(Similarity(*similarity()), SCALE).loss.backward()
        return [tensor.grad for tensor in inputs]

    return step


def ragged(problem: Problem, backend: AnyBackend) -> Step:
    """Return the step on as many image tokens, unequally divided: images have 1 to 2 n1 - 1, packed."""
    b, n1, d = problem.image.shape
    generator = torch.Generator().manual_seed(1)
    half = torch.randint(1, 2 * n1, (b // 2,), generator=generator)
    counts = torch.cat([half, 2 * n1 - half, torch.full((b % 2,), n1)])
    image = problem.image.view(-1, d).detach().requires_grad_()
    text = problem.text.detach().requires_grad_()
    return _loss_step(
        lambda: late_interaction(image, text, problem.lengths, image_lengths=counts, backend=backend), image, text
    )


def ours(problem: Problem, backend: AnyBackend, dtype: torch.dtype = torch.float32) -> Step:
    image = problem.image.to(dtype).detach().requires_grad_()
    text = problem.text.to(dtype).detach().requires_grad_()
    return _loss_step(lambda: late_interaction(image, text, problem.lengths, backend=backend), image, text)


def cold(problem: Problem) -> Step:
    """Return the step of a smooth maximum of t = 0.01 on tokens in 32 clusters, as trained ones: cosines to 0.9."""
    generator = torch.Generator().manual_seed(1)
    centres = F.normalize(torch.randn(32, problem.text.shape[1], generator=generator), dim=-1)

    def clustered(tokens: Tensor) -> Tensor:
        places = torch.randint(len(centres), tokens.shape[:-1], generator=generator)
        return F.normalize(centres[places] + 0.4 * tokens, dim=-1)

    sides = clustered(problem.image), clustered(problem.text)
    return ours(Problem(*sides, problem.lengths), SmoothMaximum(0.01))


def of_words(problem: Problem, words: int, backend: AnyBackend) -> Step:
    """Return the step on fewer pairs, with captions of so many tokens each."""
    pairs = len(problem.text) // words
    lengths = torch.full((pairs,), words)
    return ours(Problem(problem.image[:pairs], problem.text[: pairs * words], lengths), backend)


def einsum(problem: Problem) -> Step:
    """Return a step of the public re-implementations (x-clip and others): [b, b, n1, 77] in memory, padding masked,
    autograd."""
    image, text = problem.image.detach().requires_grad_(), problem.padded().requires_grad_()
    return _masked_einsum(image, text, problem.lengths)


def einsum_longest(problem: Problem) -> Step:
    """Return the same step with captions padded to the batch's longest, as a careful user writes it."""
    image = problem.image.detach().requires_grad_()
    text = problem.padded()[:, : int(problem.lengths.max())].contiguous().requires_grad_()
    return _masked_einsum(image, text, problem.lengths)


def einsum_quarter(problem: Problem) -> Step:
    """Return the same step on a quarter of the tokens of either side (the paper's saving), without the cost of
    selecting them."""
    counts = math.ceil(problem.image.shape[1] / 4), math.ceil(TEXT_POSITIONS / 4)
    image = problem.image[:, : counts[0]].contiguous().requires_grad_()
    text = problem.padded()[:, : counts[1]].contiguous().requires_grad_()
    return _masked_einsum(image, text, (problem.lengths / 4).ceil().long())


def _masked_einsum(image: Tensor, text: Tensor, lengths: Tensor) -> Step:
    mask = torch.arange(text.shape[1]) < lengths[:, None]
    return _loss_step(lambda: masked_einsum_similarity(image, text, mask), image, text)


def masked_einsum_similarity(image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return s^I and s^T from [i, j, n1, n2] in memory; ``mask`` [j, n2] is true for the tokens that exist."""
    products = torch.einsum("ikd,jrd->ijkr", image, text)
    lowest = torch.finfo(products.dtype).min
    # max, which saves indices, takes half the memory of amax, which saves the whole similarity twice
    i2t = products.masked_fill(~mask[None, :, None, :], lowest).max(dim=3).values.mean(dim=2)
    t2i = products.max(dim=2).values.masked_fill(~mask[None], 0).sum(dim=2) / mask.sum(dim=1)
    return i2t, t2i


def clip_loss(problem: Problem) -> Step:
    """Return a step of CLIP's loss: one vector of 512 per image and text."""
    image = F.normalize(torch.randn(len(problem.image), 512), dim=-1).requires_grad_()
    text = F.normalize(torch.randn(len(problem.lengths), 512), dim=-1).requires_grad_()
    return _loss_step(lambda: pooled_similarity(image, text), image, text)


def product(problem: Problem, block: tuple[int, int] = (3200, 1152), dtype: torch.dtype = torch.float32) -> Step:
    """Return a step of the bare product of all tokens, packed, forward only, in blocks that are discarded.

    In bfloat16 it does not replace the similarity, since the result is rounded too; it says what the CPU can do.
    """
    image, text = problem.image.flatten(0, 1).to(dtype), problem.text.to(dtype)
    out = torch.empty(min(block[0], len(image)) * min(block[1], len(text)), dtype=dtype)

    def step() -> None:
        for rows in image.split(block[0]):
            for columns in text.split(block[1]):
                torch.mm(rows, columns.T, out=out[: len(rows) * len(columns)].view(len(rows), len(columns)))

    return step


PRODUCT_BLOCKS = ((1 << 30, 1 << 30), (3200, 1152), (1600, 1280), (3200, 5120), (800, 5120), (6400, 1152))


def best_product(problem: Problem, dtype: torch.dtype = torch.float32) -> Step:
    """Return the product in the block size that is fastest on this machine, of two runs of each."""
    candidates = [product(problem, block, dtype) for block in PRODUCT_BLOCKS]
    return min(candidates, key=lambda step: min(seconds_of(step), seconds_of(step)))


def forward_only(problem: Problem, backend: str) -> Step:
    return lambda: late_interaction(problem.image, problem.text, problem.lengths, backend=backend)


def maxsim_cpu(problem: Problem) -> Step:
    """Return a step of both matrices by maxsim-cpu: images as queries against captions, and captions against images.

    At 256 features version 0.1.0 crashes, or falls back to a product 10 times slower, from 21 query tokens on (the
    number differs between machines), so a query is passed in pieces of at most 16.
    """
    import maxsim_cpu as library
    import numpy as np

    images = problem.image.numpy()
    texts = [text.numpy() for text in problem.text.split(problem.lengths.tolist())]

    def pieces(query: np.ndarray) -> list[np.ndarray]:
        return np.array_split(query, math.ceil(len(query) / 16))

    def step() -> None:
        for image in images:
            for piece in pieces(image):
                library.maxsim_scores_variable(piece, texts)
        for text in texts:
            for piece in pieces(text):
                library.maxsim_scores(piece, images)

    return step


CONTENDERS: dict[str, Callable[[Problem], Step]] = {
    "product": best_product,
    "product_bf16": lambda problem: best_product(problem, torch.bfloat16),
    "native": lambda problem: ours(problem, "native"),
    "native_bf16": lambda problem: ours(problem, "native", torch.bfloat16),
    "native_ragged": lambda problem: ragged(problem, "native"),
    "smooth": lambda problem: ours(problem, SmoothMaximum(0.05)),
    "smooth_bf16": lambda problem: ours(problem, SmoothMaximum(0.05), torch.bfloat16),
    "smooth_ragged": lambda problem: ragged(problem, SmoothMaximum(0.05)),
    "smooth_cold": cold,
    "native_77": lambda problem: of_words(problem, 77, "native"),
    "smooth_77": lambda problem: of_words(problem, 77, SmoothMaximum(0.05)),
    "native_300": lambda problem: of_words(problem, 300, "native"),
    "smooth_300": lambda problem: of_words(problem, 300, SmoothMaximum(0.05)),
    "tiled": lambda problem: ours(problem, "tiled"),
    "einsum": einsum,
    "einsum_longest": einsum_longest,
    "einsum_quarter": einsum_quarter,
    "clip_loss": clip_loss,
    "native_forward": lambda problem: forward_only(problem, "native"),
    "maxsim_cpu": maxsim_cpu,
}
SLICE_CONTENDERS: dict[str, Callable[[Problem], Step]] = {
    "encoders": lambda _: interaction_slice.encoders(),
    "clip_loss": lambda _: interaction_slice.clip_loss(),
    "product": best_product,
    "filip_loss": interaction_slice.filip_loss,
    "smooth_loss": lambda problem: interaction_slice.filip_loss(problem, SmoothMaximum(0.05)),
}
LARGE = ("einsum", "einsum_longest", "encoders")  # so slow that a warm-up matters little


def seconds_of(step: Step) -> float:
    started = time.process_time()
    step()
    return time.process_time() - started


def main(images: int, patches: int) -> None:
    """Answer the names on the standard input."""
    of_slice = images == interaction_slice.PAIRS
    problem = random_problem(images, patches, texts=interaction_slice.GLOBAL_PAIRS if of_slice else None)
    contenders, steps = SLICE_CONTENDERS if of_slice else CONTENDERS, {}
    for line in sys.stdin:
        name = line.strip()
        if name not in steps:
            steps[name] = contenders[name](problem)
            if name not in LARGE:
                steps[name]()
        print(seconds_of(steps[name]), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
