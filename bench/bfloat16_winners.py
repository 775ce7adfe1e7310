"""How often the native kernel's winners for bfloat16 tokens are not those of float64, and by how much they trail.

    python -m bench.bfloat16_winners

Beside it, how many winners the rounding of the tokens to bfloat16 had changed before. 128 images of 49 tokens against
128 captions of 20 tokens, d = 256: random tokens, and tokens nearly alike (a common vector plus `spread` times a random
one).
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
    if not native.available():
        sys.exit(f"nothing to measure: {native.unavailable_reason()}")
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


if __name__ == "__main__":
    main()
