"""Monitor what goes wrong without showing in the loss: in the embeddings of a batch, and between the ranks.

Collectives make every rank's step as long as the slowest rank's, so a step's duration names nobody. The work that a
rank does without the others does: waiting for its data, and encoding its batch.

docs/monitors.md shows each when it is ill, and the remedies; filip.train.watchdog turns them into alerts.
"""

from __future__ import annotations

import math
import socket
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from filip.models import Encoded, PooledFeatures, TextFeatures


@torch.no_grad()
def inspect(encoded: Encoded, pairs: int = 32) -> dict[str, Tensor]:
    """Compute scalars over the first ``pairs`` pairs of this rank, by their TensorBoard names.

    ``tokens/bos_eos_share``      share of patches with [BOS] or [EOS] as the best token of their own caption
    ``tokens/same_patch_share``   share of a caption's words with the commonest choice of a best patch in their
                                  own image; 1 if all words point at one patch. Captions of one token are left out
    ``tokens/winner_entropy``     entropy of the positions of the words' best patches over all pairs, as a share of the
                                  largest possible; 0 if they are always at the same position
    ``tokens/image_rank`` and ``tokens/text_rank``   effective rank of the tokens, see :func:`effective_rank`
    ``vectors/image_rank`` and ``vectors/text_rank`` the same of pooled vectors, where there are any
    """
    metrics: dict[str, Tensor] = {}
    pooled = encoded.pooled
    if isinstance(encoded.text, TextFeatures):
        lengths: list[int] = encoded.text.lengths[:pairs].tolist()
        words = encoded.text.tokens[: sum(lengths)].float()
        images = list(encoded.image[:pairs].float())
        metrics |= _winners(images, list(words.split(lengths)))
        metrics |= {"tokens/image_rank": effective_rank(torch.cat(images)), "tokens/text_rank": effective_rank(words)}
    else:
        pooled = PooledFeatures(encoded.image, encoded.text)
    if pooled is not None:
        metrics |= {
            "vectors/image_rank": effective_rank(pooled.image[:pairs].float()),
            "vectors/text_rank": effective_rank(pooled.text[:pairs].float()),
        }
    return metrics


def _winners(images: list[Tensor], captions: list[Tensor]) -> dict[str, Tensor]:
    ends, same, chosen = [], [], []
    for image, caption in zip(images, captions, strict=True):
        similarity = image @ caption.T  # [n1, n2]
        word = similarity.argmax(dim=1)
        ends.append(((word == 0) | (word == len(caption) - 1)).float().mean())
        patch = similarity.argmax(dim=0)
        chosen.append(patch)
        if len(caption) > 1:
            same.append(torch.bincount(patch).max() / len(caption))
    positions, patches = torch.cat(chosen), max(map(len, images))
    shares = torch.bincount(positions, minlength=patches) / len(positions)
    entropy = -torch.xlogy(shares, shares).sum()
    largest = math.log(max(2, min(patches, len(positions))))
    zero = entropy.new_zeros(())
    return {
        "tokens/bos_eos_share": torch.stack(ends).mean(),
        "tokens/same_patch_share": torch.stack(same).mean() if same else zero,
        "tokens/winner_entropy": entropy / largest,
    }


def effective_rank(rows: Tensor) -> Tensor:
    """Return the exponential of the entropy of the singular values of ``rows`` [n, d], divided by their sum.

    1 if all rows are multiples of one vector, min(n, d) if all directions are used alike (Roy and Vetterli, 2007; as a
    sign of collapse in self-supervised training: RankMe, Garrido et al., 2023). NaN where a number is not finite.
    """
    gram = rows.T @ rows if rows.shape[0] > rows.shape[1] else rows @ rows.T
    # the decomposition would raise, and the watchdog has a message for it
    if not bool(torch.isfinite(gram).all()):
        return rows.new_tensor(math.nan)
    values = torch.linalg.eigvalsh(gram.double()).clamp_min(0).sqrt()
    shares = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return torch.exp(-torch.xlogy(shares, shares).sum()).float()


def spread_over_ranks(value: float, device: torch.device) -> float:
    """Return (largest - smallest) / largest of the ranks' non-negative ``value``; 0 if one is not finite.

    All ranks call. It is for the gradient norm, which every rank computes after the gradients have been averaged: a
    difference means that the ranks no longer train the same model, which nothing else would show.
    """
    both = torch.tensor([value, -value], dtype=torch.float64, device=device)
    dist.all_reduce(both, op=dist.ReduceOp.MAX)
    largest, smallest = float(both[0]), -float(both[1])
    if not (math.isfinite(largest) and math.isfinite(smallest)) or largest <= 0:
        return 0.0
    return (largest - smallest) / largest


@dataclass(frozen=True)
class RankReport:
    """The figures of one rank over an interval. Times are means per step, in seconds; encoding is the last step's."""

    data_wait: float
    encoding: float
    counters: dict[str, int] = field(default_factory=dict)  # the loader's, since the start of the run
    damage: str | None = None  # a sentence about images that were replaced
    host: str = field(default_factory=socket.gethostname)


@dataclass(frozen=True)
class Slowest:
    """The slowest rank in one respect, and the rank in the middle."""

    rank: int
    host: str
    seconds: float
    median: float

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} takes {self.seconds:.3g} s, the rank in the middle {self.median:.3g} s"


def summed(counters: Sequence[dict[str, int]]) -> dict[str, int]:
    """Return the sum of each counter."""
    total: Counter[str] = Counter()
    for counts in counters:
        total.update(counts)
    return dict(total)


def slowest(reports: Sequence[RankReport], figure: str) -> Slowest:
    """Return the rank with the most of a figure, ``data_wait`` or ``encoding``. reports: in order of rank."""
    seconds = [getattr(report, figure) for report in reports]
    rank = max(range(len(seconds)), key=lambda r: seconds[r])
    return Slowest(rank, reports[rank].host, seconds[rank], statistics.median_low(seconds))
