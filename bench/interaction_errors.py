"""Error bounds of every backend of the late interaction: python -m bench.interaction_errors

Prints the table of docs/interaction_how.md, and next to each bound the largest error that was found on this machine.
tests/interaction/test_backends.py holds the bounds. The Triton kernels need TRITON_INTERPRET=1, or a GPU (device=cuda).
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from late_interaction import reference
from late_interaction.backends import choose_backend
from late_interaction.packing import Tokens


class Errors(NamedTuple):
    """The errors of both similarities and both gradients: the largest difference, relative to the largest magnitude."""

    similarities: float
    gradients: float


# Bounds from float64 on the same tokens. Gradients before they take the tokens' dtype, which rounds them once.
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


def problems(dtype: torch.dtype, lengths: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Make unit tokens; tokens one of which in every image is a hundred times as long; tokens that hardly differ."""
    generator = torch.Generator().manual_seed(11)
    image = F.normalize(torch.randn(len(lengths) - 1, 49, 64, generator=generator), dim=-1)
    text = F.normalize(torch.randn(sum(lengths), 64, generator=generator), dim=-1)
    longer = image.clone()
    longer[:, 7] *= 100
    alike = F.normalize(image[:1, :1] + 0.1 * image, dim=-1), F.normalize(text[:1] + 0.1 * text, dim=-1)
    return [(a.to(dtype), b.to(dtype)) for a, b in ((image, text), (longer, text), alike)]


def measure(backend: str, dtype_name: str, device: str = "cpu", lengths: Sequence[int] = LENGTHS) -> Errors:
    """Return the largest errors over all problems; upstream gradients are those of a contrastive loss."""
    dtype = getattr(torch, dtype_name)
    worst = [0.0, 0.0]
    for image, text in problems(dtype, lengths):
        module = choose_backend(image[:0].to(device), max(lengths), backend)
        tokens = Tokens(image.to(device), text.to(device), list(lengths))
        exact = Tokens(image.double(), text.double(), list(lengths))
        i2t, t2i = reference.forward(exact)[0]
        diagonal = torch.eye(*i2t.shape)
        upstream = (20 * i2t).softmax(1) - diagonal, (20 * t2i).softmax(0) - diagonal
        expected = i2t, t2i, *reference.backward(exact, upstream, ())
        (i2t, t2i), maps = module.forward(tokens, True)
        of_i2t, of_t2i = (weight.to(device, i2t.dtype) for weight in upstream)
        results = i2t, t2i, *module.backward(tokens, (of_i2t, of_t2i), maps)
        differences = [_difference(a, b) for a, b in zip(results, expected, strict=True)]
        worst = [max(worst[0], *differences[:2]), max(worst[1], *differences[2:])]
    return Errors(*worst)


def _difference(found: Tensor, wanted: Tensor) -> float:
    return float((found.cpu().double() - wanted).abs().max() / wanted.abs().max())


def table() -> str:
    """Write the bounds in Markdown, as docs/interaction_how.md shows them."""
    lines = ["| backend | tokens | similarities | gradients |", "|---|---|---|---|"]
    for (backend, dtype), bound in BOUNDS.items():
        shown = " | ".join(f"{error:.0e}".replace("e-0", "e-") for error in bound)
        lines.append(f"| `{backend}` | {dtype} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    print(table(), end="\n\nLargest errors found:\n")
    for (backend, dtype), bound in BOUNDS.items():
        try:
            errors = measure(backend, dtype, device)
        except ValueError as error:
            print(f"  {backend:8} {dtype:9} {error}")
            continue
        if backend == "tiled" and device != "cpu":  # its weights are rounded there as Triton's are
            bound = BOUNDS.get(("triton", dtype), bound)
        held = "" if all(a <= b for a, b in zip(errors, bound, strict=True)) else "   BEYOND ITS BOUND"
        print(f"  {backend:8} {dtype:9} {errors.similarities:.1e} {errors.gradients:.1e}{held}")


if __name__ == "__main__":
    main()
