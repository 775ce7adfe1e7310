"""The accuracy of the native kernel for bfloat16 tokens: arg-maxes that differ from float64's, and gradient error.

    python -m bench.bfloat16

Arg-maxes: the share that differs from float64's, by how much their similarity falls short, and the share that rounding
the tokens to bfloat16 has changed already. 128 images of 49 tokens against 128 captions of 20 tokens, d = 256: random
tokens, and nearly equal ones (a common vector plus `spread` times a random one).

Gradients of a soft-max: relative root mean square error against the same arg-maxes and tokens in float32; rounding the
result to bfloat16 alone costs 1.7e-3. The largest of both sides, two temperatures and five problems, in three shapes.
Tokens are (1 - `spread`) times the first token of the first image (caption) plus `spread` times a random one.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.interaction_contenders import random_problem
from filip.interaction import native


def similarities(image: Tensor, text: Tensor, lengths: list[int]) -> list[Tensor]:
    """[images, image tokens, tokens of the caption] in float64, for each caption."""
    return [image.double() @ caption.double().T for caption in text.split(lengths)]


def main() -> None:
    if reason := native.unavailable_reason():
        sys.exit(f"nothing to measure: {reason}")
    winners()
    gradients()


def winners() -> None:
    common = F.normalize(torch.randn(256, generator=torch.Generator().manual_seed(1)), dim=0)
    print(f"{'tokens':>12}{'not float64s, %':>18}{'trailing at most':>18}{'changed by bfloat16, %':>24}")
    for spread in (None, 1.0, 0.1, 0.01):
        problem = random_problem(128, 49, seed=3)
        lengths = problem.lengths.tolist()
        image, text = problem.image, problem.text
        if spread is not None:
            image, text = (F.normalize(common + spread * tokens, dim=-1) for tokens in (image, text))
        rounded = image.bfloat16(), text.bfloat16()
        of_patches, of_words = native.forward(*rounded, lengths)[2]
        behind, changed = [], []
        exact = similarities(*rounded, lengths)
        for j, (s, before) in enumerate(zip(exact, similarities(image, text, lengths), strict=True)):
            words = of_words.split(lengths, 1)[j].long()
            behind.append((s.amax(2) - s.gather(2, of_patches[:, j, :, None].long())[:, :, 0]).flatten())
            behind.append((s.amax(1) - s.gather(1, words[:, None])[:, 0]).flatten())
            changed += [(s.argmax(dim) != before.argmax(dim)).flatten() for dim in (1, 2)]
        gap, flips = torch.cat(behind), torch.cat(changed)
        name = "random" if spread is None else f"spread {spread:g}"
        print(
            f"{name:>12}{100 * (gap > 0).double().mean():18.4f}{gap.max():18.1e}{100 * flips.double().mean():24.2f}"
        )


def gradients() -> None:
    shapes = [(100, 200, 64), (100, 200, 256), (256, 256, 256)]
    print("\n" + f"{'tokens':>12}" + "".join(f"{f'{b} x {t}, d = {d}':>24}" for b, t, d in shapes))
    for spread in (1.0, 0.3, 0.1, 0.03, 0.01):
        errors = [max(largest_error(*shape, spread, seed) for seed in range(5)) for shape in shapes]
        print(f"{f'spread {spread:g}':>12}" + "".join(f"{error:24.1e}" for error in errors))


def largest_error(images: int, texts: int, d: int, spread: float, seed: int) -> float:
    problem = random_problem(images, 49, dim=d, texts=texts, seed=seed)
    image, text, lengths = problem.image, problem.text, problem.lengths.tolist()
    image = F.normalize((1 - spread) * image[:1, :1] + spread * image, dim=-1)
    text = F.normalize((1 - spread) * text[:1] + spread * text, dim=-1)
    image, text = image.bfloat16(), text.bfloat16()
    i2t, t2i, maps = native.forward(image, text, lengths)
    own, errors = torch.eye(images, texts), []
    for scale in (5.0, 100.0):
        upstream = (scale * i2t).softmax(1) - own, (scale * t2i).softmax(0) - own
        found = native.backward(*upstream, image, text, lengths, maps)
        wanted = native.backward(*upstream, image.float(), text.float(), lengths, maps)
        errors += [float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]
    return max(errors)


if __name__ == "__main__":
    main()
