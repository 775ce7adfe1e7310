"""Name what goes wrong in a contrastive training: in the numbers of its steps, in its embeddings, between its ranks.

:class:`Watchdog` turns numbers into alerts with the steps they lasted, and :func:`inspect` measures the embeddings of a
batch. Others act: on a NaN ``Engine.step`` leaves the step out, and ``stop_on_nan`` (step.py) ends the run.
docs/monitors.md shows each alert and its remedies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from filip.models import Encoded, PooledFeatures, TextFeatures


@dataclass(frozen=True)
class Limits:
    """Thresholds from which a condition is reported. They are constants; only non-finite numbers end a training."""

    min_loss_scale: float = 1.0  # a dynamic loss scale at or below this has collapsed
    non_finite_steps: int = 3  # in a row, with a loss or gradient that is not finite
    collapse_rank: float = 2.0  # the embeddings' effective rank; 1 = one direction
    collapse_checks: int = 5  # looks at the embeddings in a row, one per log_every
    grad_norm_spread: float = 1e-3  # relative difference of the ranks' gradient norms, which should be 0


@dataclass(frozen=True)
class StepStatus:
    """The figures of one optimiser step, as all ranks see it (means over ranks and over its contrastive batches)."""

    step: int
    lr: float  # the step's learning rate
    loss_scale: float
    loss: float = 0.0
    logit_scale: float = 0.0
    skipped: bool = False  # left out, since its gradients were not finite
    grad_norm: float | None = None  # None where nobody asked the engine
    grad_norm_spread: float | None = None  # relative difference over the ranks; None as grad_norm
    seconds: float = 0.0
    data_wait: float = 0.0  # seconds in which the ranks waited for data
    own_wait: float = 0.0  # the same on this rank; the only value here that is not the same on all
    # by TensorBoard name, as far as this step has them
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Alert:
    """A named condition over the steps ``first`` to ``last``."""

    kind: str
    first: int
    last: int
    message: str

    def __str__(self) -> str:
        return f"watchdog: {self.kind} in steps {self.first} to {self.last}: {self.message}"


class Watchdog:
    """Observe every step and return new alerts; the same status gives the same alerts on all ranks."""

    def __init__(self, fp16: bool, limits: Limits | None = None) -> None:
        self.fp16, self.limits = fp16, limits or Limits()
        self._lasting: dict[str, tuple[int, int]] = {}  # by kind: its first step, and how often it was seen since

    def observe(self, status: StepStatus) -> list[Alert]:
        """Return alerts that begin with this step; a condition is reported once until it has ended."""
        alerts = []
        for kind, holds, patience, message in self._conditions(status):
            if holds:
                first, times = self._lasting.get(kind, (status.step, 0))
                self._lasting[kind] = first, times + 1
                if times + 1 == patience:
                    alerts.append(Alert(kind, first, status.step, message))
            elif holds is not None:
                self._lasting.pop(kind, None)
        return alerts

    def _conditions(self, status: StepStatus) -> Iterator[tuple[str, bool | None, int, str]]:
        """Yield the name of each condition, whether it holds, observations in a row before an alert, and the message.

        None: unknown in this step, such as what the monitors of the embeddings say.
        """
        s, spread = self.limits, status.grad_norm_spread
        finite = math.isfinite(status.loss)
        collapsed = self.fp16 and status.skipped and status.loss_scale <= s.min_loss_scale
        # Skips are normal while the loss scale can still decrease; any other skip, or a non-finite loss, is an error.
        excused = self.fp16 and status.skipped and not collapsed
        finite_norm = status.grad_norm is None or math.isfinite(status.grad_norm)
        bad = not finite or (not excused and (status.skipped or not finite_norm))
        yield "non-finite", bad, s.non_finite_steps, "loss or gradients are not finite; a larger weight decay helps"
        yield "loss scale collapsed", collapsed, 1, f"it is {status.loss_scale:g} and steps still overflow"
        message = (
            f"by {spread or 0:.1e} of it, where it should be one number; their weights are no longer the same, so stop "
            "and resume from the checkpoint before"
        )
        disagree = None if spread is None else spread > s.grad_norm_spread
        yield "ranks disagree on the gradient norm", disagree, 1, message
        ranks = {name: value for name, value in status.metrics.items() if name.endswith(("/image_rank", "/text_rank"))}
        lowest = min(ranks, key=lambda name: ranks[name], default="")
        message = (
            f"{lowest} is {ranks.get(lowest, 0):.2f}: the embeddings hardly differ; the learning rate is "
            f"{status.lr:.2g}, and a lower optimizer.base_lr or a longer optimizer.warmup_steps helps"
        )
        low = ranks[lowest] <= s.collapse_rank if ranks else None
        yield "embeddings collapsed", low, s.collapse_checks, message

    @property
    def healthy(self) -> bool:
        """Return False during a stretch of non-finite steps, which must not be saved as a good checkpoint."""
        return "non-finite" not in self._lasting


# --- what goes wrong without showing in the loss: in the embeddings of a batch, and between the ranks


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
        images = encoded.image[:pairs].float()
        metrics |= _winners(images, list(words.split(lengths)))
        metrics |= {
            "tokens/image_rank": effective_rank(images.flatten(0, 1)),
            "tokens/text_rank": effective_rank(words),
        }
    else:
        pooled = PooledFeatures(encoded.image, encoded.text)
    if pooled is not None:
        metrics |= {
            "vectors/image_rank": effective_rank(pooled.image[:pairs].float()),
            "vectors/text_rank": effective_rank(pooled.text[:pairs].float()),
        }
    return metrics


def _winners(images: Tensor, captions: list[Tensor]) -> dict[str, Tensor]:
    """Measure the best partners within each of p pairs; images: [p, n1, d], captions: [n2, d] each."""
    words = pad_sequence(captions, batch_first=True)
    lengths = torch.tensor([len(caption) for caption in captions]).to(words.device, non_blocking=True)[:, None]
    real = torch.arange(words.shape[1], device=words.device) < lengths  # [p, n2]
    similarity = (images @ words.mT).masked_fill(~real[:, None], -math.inf)  # [p, n1, n2]
    word = similarity.argmax(2)
    ends = ((word == 0) | (word == lengths - 1)).float().mean()
    # [p, n1]: how many words of a caption choose each patch
    chosen = torch.zeros_like(similarity[..., 0]).scatter_add_(1, similarity.argmax(1), real.float())
    several = (lengths[:, 0] > 1).float()
    same = (several * chosen.amax(1) / lengths[:, 0]).sum() / several.sum().clamp(min=1)
    shares = chosen.sum(0) / lengths.sum()
    largest = math.log(max(2, min(images.shape[1], sum(map(len, captions)))))
    return {
        "tokens/bos_eos_share": ends,
        "tokens/same_patch_share": same,
        "tokens/winner_entropy": -torch.xlogy(shares, shares).sum() / largest,
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
