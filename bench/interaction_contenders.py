"""The contenders of bench.interaction: each turns one problem into a step to be timed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from filip.interaction import (
    Similarity,
    SmoothMaximum,
    contrastive_loss,
    late_interaction,
    pooled_similarity,
)
from filip.interaction.backends import Backend

TEXT_POSITIONS = 77  # the length to which the padded version pads
SCALE = torch.tensor(1 / 0.07)
Step = Callable[[], object]


@dataclass
class Problem:
    """Unit tokens: image [b, n1, d], packed text [T, d], lengths [b]; padded text is built on demand."""

    image: Tensor
    text: Tensor
    lengths: Tensor

    def padded(self) -> Tensor:
        padded = self.text.new_zeros(len(self.lengths), TEXT_POSITIONS, self.text.shape[1])
        padded[(torch.arange(TEXT_POSITIONS) < self.lengths[:, None]).to(padded.device)] = self.text
        return padded


def random_problem(
    images: int, patches: int, dim: int = 256, texts: int | None = None, seed: int = 0
) -> Problem:
    """Make captions of 20 tokens on average, [BOS] and [EOS] included, between 4 and 77."""
    generator = torch.Generator().manual_seed(seed)
    count = texts or images
    lengths = (20 + 6 * torch.randn(count, generator=generator)).round().long().clamp(4, TEXT_POSITIONS)
    image = torch.randn(images, patches, dim, generator=generator)
    text = torch.randn(int(lengths.sum()), dim, generator=generator)
    for tokens in (image, text):  # in place, so that no temporary is still allocated when memory is measured
        tokens.div_(tokens.norm(dim=-1, keepdim=True))
    return Problem(image, text, lengths)


def _loss_step(similarity: Callable[[], tuple[Tensor, Tensor]], *inputs: Tensor) -> Step:
    """Return a step of forward, symmetric cross-entropy and backward; the gradients stay in memory as in training."""

    def step() -> object:
        for tensor in inputs:
            tensor.grad = None
        contrastive_loss(Similarity(*similarity()), SCALE).loss.backward()
        return [tensor.grad for tensor in inputs]

    return step


def ragged(problem: Problem, backend: str | Backend) -> Step:
    """Return the step on as many image tokens, unequally divided: images have 1 to 2 n1 - 1, packed."""
    b, n1, d = problem.image.shape
    generator = torch.Generator().manual_seed(1)
    half = torch.randint(1, 2 * n1, (b // 2,), generator=generator)
    counts = torch.cat([half, 2 * n1 - half, torch.full((b % 2,), n1)])
    image = problem.image.view(-1, d).detach().requires_grad_()
    text = problem.text.detach().requires_grad_()
    return _loss_step(
        lambda: late_interaction(image, text, problem.lengths, image_lengths=counts, backend=backend),
        image,
        text,
    )


def ours(problem: Problem, backend: str | Backend, dtype: torch.dtype = torch.float32) -> Step:
    image = problem.image.to(dtype).detach().requires_grad_()
    text = problem.text.to(dtype).detach().requires_grad_()
    return _loss_step(lambda: late_interaction(image, text, problem.lengths, backend=backend), image, text)


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
    kept = math.ceil(problem.image.shape[1] / 4), math.ceil(TEXT_POSITIONS / 4)
    image = problem.image[:, : kept[0]].contiguous().requires_grad_()
    text = problem.padded()[:, : kept[1]].contiguous().requires_grad_()
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


def product(
    problem: Problem, block: tuple[int, int] = (3200, 1152), dtype: torch.dtype = torch.float32
) -> Step:
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
    "native": lambda problem: ours(problem, "native"),
    "native_bf16": lambda problem: ours(problem, "native", torch.bfloat16),
    "native_ragged": lambda problem: ragged(problem, "native"),
    "smooth": lambda problem: ours(problem, SmoothMaximum(0.05)),
    "smooth_ragged": lambda problem: ragged(problem, SmoothMaximum(0.05)),
    "tiled": lambda problem: ours(problem, "tiled"),
    "einsum": einsum,
    "einsum_longest": einsum_longest,
    "einsum_quarter": einsum_quarter,
    "clip_loss": clip_loss,
    "native_forward": lambda problem: forward_only(problem, "native"),
    "maxsim_cpu": maxsim_cpu,
}
