"""Learning rate over iterations: square-root scaling with the batch, linear warm-up, cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from filip.common.errors import UserError

REFERENCE_BATCH = 512
FINAL_LR = 0.0  # the paper leaves it open; CLIP and its followers end their cosine at 0


@dataclass(frozen=True)
class Schedule:
    """The learning rate over a run.

    ``at(step)`` is the rate of optimiser step ``step`` (the first is 0) of ``steps``.
    """

    peak: float
    warmup_steps: int
    steps: int

    def at(self, step: int) -> float:
        """Rise linearly to ``peak`` over the warm-up (at its last step), then follow a cosine down to :data:`FINAL_LR`.

        Step ``steps`` itself, the first that is no longer taken, would have :data:`FINAL_LR`.
        """
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return FINAL_LR + (self.peak - FINAL_LR) * cosine

    def reason(self, base_lr: float, global_batch: int) -> str:
        """Explain how the numbers came about, for the log."""
        return (
            f"peak LR {self.peak:.3g} = base {base_lr:g} x sqrt({global_batch} / {REFERENCE_BATCH}); "
            f"linear over {self.warmup_steps} iterations, then cosine to {FINAL_LR:g} at iteration {self.steps}"
        )


def make_schedule(base_lr: float, global_batch: int, warmup_steps: int, steps: int) -> Schedule:
    """Make the paper's schedule. Raise UserError if the warm-up does not fit into the run."""
    if not 0 <= warmup_steps < steps:
        raise UserError(
            f"optimizer.warmup_steps={warmup_steps} must be less than the {steps} steps of the run; "
            "lower it, or train longer (epochs, max_steps)"
        )
    return Schedule(base_lr * math.sqrt(global_batch / REFERENCE_BATCH), warmup_steps, steps)
