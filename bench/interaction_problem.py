"""The random tokens that the benchmarks of the interaction score."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TEXT_POSITIONS = 77  # the length to which the padded version pads
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


def random_problem(images: int, patches: int, dim: int = 256, texts: int | None = None, seed: int = 0) -> Problem:
    """Make captions of 20 tokens on average, [BOS] and [EOS] included, between 4 and 77."""
    generator = torch.Generator().manual_seed(seed)
    count = texts or images
    lengths = (20 + 6 * torch.randn(count, generator=generator)).round().long().clamp(4, TEXT_POSITIONS)
    image = torch.randn(images, patches, dim, generator=generator)
    text = torch.randn(int(lengths.sum()), dim, generator=generator)
    for tokens in (image, text):  # in place, so that no temporary is still allocated when memory is measured
        tokens.div_(tokens.norm(dim=-1, keepdim=True))
    return Problem(image, text, lengths)
