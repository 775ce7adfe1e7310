"""Detects what typically goes wrong in contrastive training and names it, with the steps it lasted."""

from __future__ import annotations

import math
from dataclasses import dataclass

from filip.train.config import WatchdogConfig

STUCK_TOLERANCE = 0.01  # of the loss of chance


@dataclass(frozen=True)
class StepStatus:
    """One optimiser step, as all ranks see it (means over ranks and over its contrastive batches)."""

    step: int
    loss: float
    grad_norm: float | None  # None where the engine does not know it
    logit_scale: float
    loss_scale: float
    skipped: bool  # DeepSpeed discarded the step, whose gradients were not finite
    finite: bool  # on every rank
    chance_loss: float  # of a model that knows nothing


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
    """Observes every step and returns new alerts; the same status gives the same alerts on all ranks."""

    def __init__(
        self,
        settings: WatchdogConfig,
        contrastive_batch: int,
        max_logit_scale: float,
        fp16: bool,
    ) -> None:
        """``contrastive_batch``: pairs of one batch, of which the messages speak."""
        self.settings, self.fp16 = settings, fp16
        self.contrastive_batch = contrastive_batch
        self.max_logit_scale = max_logit_scale
        self._since: dict[str, int] = {}
        self._reported: set[str] = set()

    def observe(self, status: StepStatus) -> list[Alert]:
        """Alerts that begin with this step; a condition is reported once until it has ended."""
        s, found = self.settings, []
        stuck = (
            status.finite and abs(status.loss - status.chance_loss) <= STUCK_TOLERANCE * status.chance_loss
        )
        clamped = status.logit_scale >= self.max_logit_scale * (1 - 1e-3)
        collapsed = self.fp16 and status.skipped and status.loss_scale <= s.min_loss_scale
        # Skips are normal while the loss scale can still decrease; any other skip, or a non-finite loss, is an error.
        excused = self.fp16 and status.skipped and not collapsed
        bad = not status.finite or (not excused and (status.skipped or not _finite(status.grad_norm)))
        conditions = [
            (
                "non-finite",
                bad,
                s.non_finite_steps,
                "loss or gradients are not finite; a larger weight decay helps",
            ),
            ("loss scale collapsed", collapsed, 1, f"it is {status.loss_scale:g} and steps still overflow"),
            (
                "logit scale at its clamp",
                clamped,
                s.clamp_steps,
                f"the scale stays at {status.logit_scale:.1f}",
            ),
            (
                "loss stuck at log(batch)",
                stuck,
                s.stuck_steps,
                f"the loss stays at {status.chance_loss:.3f}, chance for {self.contrastive_batch} pairs",
            ),
        ]
        for kind, holds, patience, message in conditions:
            if not holds:
                self._since.pop(kind, None)
                self._reported.discard(kind)
                continue
            first = self._since.setdefault(kind, status.step)
            if status.step - first + 1 >= patience and kind not in self._reported:
                self._reported.add(kind)
                found.append(Alert(kind, first, status.step, message))
        return found

    @property
    def healthy(self) -> bool:
        """False during a stretch of non-finite steps, which must not be saved as a good checkpoint."""
        return "non-finite" not in self._since

    def reset(self) -> None:
        """Forget all stretches, after a rollback."""
        self._since.clear()
        self._reported.clear()


def _finite(value: float | None) -> bool:
    return value is None or math.isfinite(value)
