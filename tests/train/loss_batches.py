"""Random contrastive batches for tests of loss terms, and each rank's share of one."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from filip.models import Encoded, PooledFeatures, TextFeatures
from filip.train.config import TrainConfig
from filip.train.losses import Loss, TermOutput

D = 8


def settings(**changes: Any) -> TrainConfig:
    """Return settings that are exact everywhere, unless changed."""
    return TrainConfig(**{"backend": "tiled", "transport_dtype": "fp32", **changes})


@dataclass
class Batch:
    """A batch of leaves that take gradients, in float64; unit vectors. Each rank owns ``counts[rank]`` pairs."""

    image: Tensor  # [N, n1, D]
    text: Tensor  # [T, D]
    lengths: Tensor  # [N]
    image_vector: Tensor  # [N, D]
    text_vector: Tensor  # [N, D]
    scale: Tensor  # [1]
    group: Tensor  # [N]
    counts: list[int]
    further: Tensor  # [S, D]: a further caption of some
    further_lengths: Tensor  # [N]
    ids: Tensor  # [N, longest] int64: few different ones, so that captions share them

    def leaves(self) -> dict[str, Tensor]:
        names = ("image", "text", "image_vector", "text_vector", "scale", "further")
        return {name: getattr(self, name) for name in names}

    def rows(self, rank: int) -> tuple[slice, slice, slice]:
        """Return this rank's pairs, and its rows of the packed text and of the further captions."""
        first = sum(self.counts[:rank])
        last = first + self.counts[rank]
        text, further = (
            slice(int(lengths[:first].sum()), int(lengths[:last].sum()))
            for lengths in (self.lengths, self.further_lengths)
        )
        return slice(first, last), text, further

    def encoded(self, rank: int | None = None) -> Encoded:
        pairs, tokens, further = (slice(None),) * 3 if rank is None else self.rows(rank)
        return Encoded(
            self.image[pairs],
            TextFeatures(self.text[tokens], self.lengths[pairs]),
            self.scale,
            PooledFeatures(self.image_vector[pairs], self.text_vector[pairs]),
            TextFeatures(self.further[further], self.further_lengths[pairs]),
        )

    def captions(self) -> list[Tensor]:
        return list(self.text.split(self.lengths.tolist()))

    def positives(self) -> Tensor:
        return self.group[:, None] == self.group[None, :]


def random_batch(
    term: str,
    counts: list[int],
    n1: int = 5,
    longest: int = 6,
    groups: int | None = None,
    ties: bool = False,
    seed: int = 0,
) -> Batch:
    """Make a batch. ``ties``: components of -1/4, 0 and 1/4, whose products are exact and often equal.

    ``groups``: this many different ones, instead of one a pair.
    """
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)

    def draw(*shape: int) -> Tensor:
        if ties:
            return torch.randint(-1, 2, (*shape, D), generator=generator).double() / 4
        return F.normalize(torch.randn(*shape, D, generator=generator, dtype=torch.float64), dim=-1)

    lengths = torch.randint(1, longest + 1, (total,), generator=generator)
    batch = Batch(
        draw(total, n1),
        draw(int(lengths.sum())),
        lengths,
        draw(total),
        draw(total),
        torch.tensor([7.0], dtype=torch.float64),
        torch.arange(total) if groups is None else torch.randint(0, groups, (total,), generator=generator),
        counts,
        torch.empty(0),
        torch.empty(0),
        torch.empty(0),
    )
    batch.further_lengths = torch.randint(0, 2, (total,), generator=generator)  # a vector for some
    batch.further = draw(int(batch.further_lengths.sum()))
    batch.ids = torch.randint(0, 9, (total, longest), generator=generator)
    for leaf in batch.leaves().values():
        leaf.requires_grad_()
    return batch


def run(term: str, batch: Batch, rank: int | None = None, **changes: Any) -> TermOutput:
    """Compute the term alone, on one process or as ``rank`` of many."""
    pairs = slice(None) if rank is None else batch.rows(rank)[0]
    captions = batch.ids[pairs], batch.lengths[pairs]
    return Loss({term: 1.0}, settings(**changes))(batch.encoded(rank), batch.group[pairs], captions=captions)
