"""Random late-interaction problems for the tests, and the definition written out as loops (the oracle's oracle)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from late_interaction import SmoothMaximum, late_interaction, reference
from late_interaction.backends import choose_backend
from late_interaction.packing import Tokens


class Problem(NamedTuple):
    image_tokens: Tensor
    text_tokens: Tensor
    text_lengths: Tensor

    def tokens(self, dtype: torch.dtype | None = None) -> Tokens:
        """Return what a backend takes, cast to ``dtype``."""
        dtype = dtype or self.image_tokens.dtype
        return Tokens(self.image_tokens.to(dtype), self.text_tokens.to(dtype), self.text_lengths.tolist())


class Result(NamedTuple):
    """The matrices i2t and t2i, and the gradients of sum(grad_i2t * i2t) + sum(grad_t2i * t2i)."""

    i2t: Tensor
    t2i: Tensor
    grad_image: Tensor
    grad_text: Tensor


def random_problem(images: int, n1: int, lengths: list[int], d: int, seed: int = 0) -> Problem:
    """Make unit tokens in float32."""
    generator = torch.Generator().manual_seed(seed)
    image = F.normalize(torch.randn(images, n1, d, generator=generator), dim=-1)
    text = F.normalize(torch.randn(sum(lengths), d, generator=generator), dim=-1)
    return Problem(image, text, torch.tensor(lengths))


def tied_problem(images: int, n1: int, lengths: list[int], d: int, seed: int = 0) -> Problem:
    """Make tokens of -1, 0 and 1: products are exact in every dtype and order of summation, and ties abound."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(-1, 2, (images, n1, d), generator=generator).float()
    text = torch.randint(-1, 2, (sum(lengths), d), generator=generator).float()
    return Problem(image, text, torch.tensor(lengths))


def random_lengths(texts: int, low: int, high: int, seed: int = 0) -> list[int]:
    return torch.randint(low, high + 1, (texts,), generator=torch.Generator().manual_seed(seed)).tolist()


def solve(
    problem: Problem, backend: Any = "auto", dtype: torch.dtype | None = None, maximum: SmoothMaximum | None = None
) -> Result:
    """Compute values and gradients by ``backend``, with the tokens cast to ``dtype`` first."""
    image = problem.image_tokens.detach().to(dtype or problem.image_tokens.dtype).requires_grad_()
    text = problem.text_tokens.detach().to(dtype or problem.text_tokens.dtype).requires_grad_()
    i2t, t2i = late_interaction(image, text, problem.text_lengths, backend=backend, maximum=maximum)
    weight_i, weight_t = upstream(i2t.shape)
    grads = torch.autograd.grad((i2t, t2i), (image, text), (weight_i.to(i2t.dtype), weight_t.to(t2i.dtype)))
    return Result(i2t.detach(), t2i.detach(), *grads)


def upstream(shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Make gradients that arrive from the loss: two unrelated matrices with both signs."""
    generator = torch.Generator().manual_seed(99)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def by_definition(problem: Problem) -> Result:
    """Compute s^I and s^T in float64 loops over single numbers; of equal maxima the lowest index takes the gradient."""
    image, text = problem.image_tokens.double(), problem.text_tokens.double()
    shape = torch.Size([len(image), len(problem.text_lengths)])
    i2t, t2i = torch.zeros(shape).double(), torch.zeros(shape).double()
    grad_image, grad_text = torch.zeros_like(image), torch.zeros_like(text)
    weight_i, weight_t = (weight.double() for weight in upstream(shape))
    for i, patches in enumerate(image):
        start = 0
        for j, length in enumerate(problem.text_lengths.tolist()):
            words = range(start, start + length)
            for k, patch in enumerate(patches):
                scores = [float(patch @ text[r]) for r in words]
                r = start + scores.index(max(scores))
                i2t[i, j] += max(scores) / len(patches)
                grad_image[i, k] += weight_i[i, j] / len(patches) * text[r]
                grad_text[r] += weight_i[i, j] / len(patches) * patch
            for r in words:
                scores = [float(patch @ text[r]) for patch in patches]
                k = scores.index(max(scores))
                t2i[i, j] += max(scores) / length
                grad_image[i, k] += weight_t[i, j] / length * text[r]
                grad_text[r] += weight_t[i, j] / length * patches[k]
            start += length
    return Result(i2t, t2i, grad_image, grad_text)


def assert_close(found: Result, expected: Result, values: float, gradients: float | None = None) -> None:
    """Check the largest difference relative to the largest magnitude, per tensor; ``expected`` in float64."""
    for name, tolerance in zip(Result._fields, [values, values] + [gradients or values] * 2, strict=True):
        a, b = getattr(found, name).double(), getattr(expected, name).double()
        assert a.shape == b.shape, name
        difference = float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
        assert difference <= tolerance, f"{name}: {difference:.2e} > {tolerance:.0e}"


class Errors(NamedTuple):
    """The errors of both similarities and both gradients: the largest difference, relative to the largest magnitude."""

    similarities: float
    gradients: float


# Bounds from float64 on the same tokens, as docs/interaction_how.md has them. Gradients before they take the tokens'
# dtype, which rounds them once.
BOUNDS: dict[tuple[str, str], Errors] = {
    ("tiled", "float64"): Errors(1e-14, 1e-14),
    ("tiled", "float32"): Errors(4e-6, 4e-6),
    ("tiled", "bfloat16"): Errors(4e-6, 4e-6),
    ("tiled", "float16"): Errors(4e-6, 4e-6),
    ("native", "float32"): Errors(4e-6, 4e-6),
    ("native", "bfloat16"): Errors(4e-6, 4e-6),
    ("native", "float16"): Errors(4e-6, 4e-6),
    ("triton", "float32"): Errors(4e-6, 4e-6),
    ("triton", "bfloat16"): Errors(4e-6, 2e-2),
    ("triton", "float16"): Errors(4e-6, 2e-3),
}


LENGTHS = (4, 18, 20, 2, 18, 25)  # lengths of captions; longer ones would show the same


def hard_problems(dtype: torch.dtype, lengths: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Make unit tokens; tokens one of which in every image is a hundred times as long; tokens that hardly differ."""
    generator = torch.Generator().manual_seed(11)
    image = F.normalize(torch.randn(len(lengths) - 1, 49, 64, generator=generator), dim=-1)
    text = F.normalize(torch.randn(sum(lengths), 64, generator=generator), dim=-1)
    longer = image.clone()
    longer[:, 7] *= 100
    alike = F.normalize(image[:1, :1] + 0.1 * image, dim=-1), F.normalize(text[:1] + 0.1 * text, dim=-1)
    return [(a.to(dtype), b.to(dtype)) for a, b in ((image, text), (longer, text), alike)]


def measure(backend: str, dtype_name: str, lengths: Sequence[int] = LENGTHS) -> Errors:
    """Return the largest errors over all problems; upstream gradients are those of a contrastive loss."""
    dtype = getattr(torch, dtype_name)
    worst = [0.0, 0.0]
    for image, text in hard_problems(dtype, lengths):
        module = choose_backend(image[:0], max(lengths), backend)
        tokens = Tokens(image, text, list(lengths))
        exact = Tokens(image.double(), text.double(), list(lengths))
        i2t, t2i = reference.forward(exact)[0]
        diagonal = torch.eye(*i2t.shape)
        upstream = (20 * i2t).softmax(1) - diagonal, (20 * t2i).softmax(0) - diagonal
        expected = i2t, t2i, *reference.backward(exact, upstream, ())
        (i2t, t2i), maps = module.forward(tokens, True)
        of_i2t, of_t2i = (weight.to(i2t.dtype) for weight in upstream)
        results = i2t, t2i, *module.backward(tokens, (of_i2t, of_t2i), maps)
        both = [(found.double(), wanted) for found, wanted in zip(results, expected, strict=True)]
        differences = [float((found - wanted).abs().max() / wanted.abs().max()) for found, wanted in both]
        worst = [max(worst[0], *differences[:2]), max(worst[1], *differences[2:])]
    return Errors(*worst)
