"""What goes wrong in contrastive training, noticed and named with the steps it lasted."""

from __future__ import annotations

import math
from dataclasses import dataclass

from filip.train.config import WatchdogConfig

STUCK_TOLERANCE = 0.01  # of log(batch)


@dataclass(frozen=True)
class StepFacts:
    """One optimiser step, as all ranks see it (means over ranks and over its contrastive batches)."""

    step: int
    loss: float
    grad_norm: float | None  # None where the engine does not know it
    logit_scale: float
    loss_scale: float
    skipped: bool  # DeepSpeed discarded the step, whose gradients were not finite
    finite: bool  # on every rank


@dataclass(frozen=True)
class Finding:
    """A named condition over the steps ``first`` to ``last``."""

    kind: str
    first: int
    last: int
    message: str

    def __str__(self) -> str:
        return f"watchdog: {self.kind} in steps {self.first} to {self.last}: {self.message}"


class Watchdog:
    """Feed it every step; it answers with what is newly wrong. The same facts give the same answer on all ranks."""

    def __init__(
        self,
        settings: WatchdogConfig,
        contrastive_batch: int,
        max_logit_scale: float,
        fp16: bool,
        loss_weights: float = 1.0,
    ) -> None:
        """``loss_weights``: sum of the weights of the cross-entropies that make the loss."""
        self.settings, self.fp16 = settings, fp16
        self.contrastive_batch = contrastive_batch
        self.chance_loss = loss_weights * math.log(contrastive_batch)
        self.max_logit_scale = max_logit_scale
        self._since: dict[str, int] = {}
        self._reported: set[str] = set()

    def observe(self, facts: StepFacts) -> list[Finding]:
        """Findings that became true with this step; a condition is reported once until it has ended."""
        s, found = self.settings, []
        stuck = facts.finite and abs(facts.loss - self.chance_loss) <= STUCK_TOLERANCE * self.chance_loss
        clamped = facts.logit_scale >= self.max_logit_scale * (1 - 1e-3)
        collapsed = self.fp16 and facts.skipped and facts.loss_scale <= s.min_loss_scale
        # A skip of a loss scaler that can still go down is its work; any other, and a loss that is not finite, is not.
        excused = self.fp16 and facts.skipped and not collapsed
        bad = not facts.finite or (not excused and (facts.skipped or not _finite(facts.grad_norm)))
        conditions = [
            (
                "non-finite",
                bad,
                s.non_finite_steps,
                "loss or gradients are not finite; a larger weight decay helps",
            ),
            ("loss scale collapsed", collapsed, 1, f"it is {facts.loss_scale:g} and steps still overflow"),
            (
                "logit scale at its clamp",
                clamped,
                s.clamp_steps,
                f"the scale stays at {facts.logit_scale:.1f}",
            ),
            (
                "loss stuck at log(batch)",
                stuck,
                s.stuck_steps,
                f"the loss stays at {self.chance_loss:.3f}, chance for {self.contrastive_batch} pairs",
            ),
        ]
        for kind, holds, patience, message in conditions:
            if not holds:
                self._since.pop(kind, None)
                self._reported.discard(kind)
                continue
            first = self._since.setdefault(kind, facts.step)
            if facts.step - first + 1 >= patience and kind not in self._reported:
                self._reported.add(kind)
                found.append(Finding(kind, first, facts.step, message))
        return found

    @property
    def healthy(self) -> bool:
        """False while a non-finite stretch runs: nothing of it may be saved as a good checkpoint."""
        return "non-finite" not in self._since

    def reset(self) -> None:
        """Forget all stretches, after a rollback."""
        self._since.clear()
        self._reported.clear()


def _finite(value: float | None) -> bool:
    return value is None or math.isfinite(value)
