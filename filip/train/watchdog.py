"""Name what typically goes wrong in contrastive training, with the steps it lasted."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from filip.models.temperature import at_clamp
from filip.train.monitors import Slowest

STUCK_TOLERANCE = 0.01  # relative to the loss of chance
HISTORY = 100  # steps with losses that a spike is compared with
DATA_SHARE = 0.2  # share of a step that one rank waits longer for its data than the rank in the middle


@dataclass(frozen=True)
class Limits:
    """Thresholds from which a condition is reported. They are constants: an alert changes nothing in the training."""

    min_loss_scale: float = 1.0  # a dynamic loss scale at or below this has collapsed
    clamp_steps: int = 500  # with the logit scale at its clamp: touching it now and then does no harm
    spike_steps: int = 3  # with a loss far above the last hundred's: a single batch may be hard
    stuck_steps: int = 500  # with the loss within 1 % of log(batch): every training begins there
    window_steps: int = 200  # over which the shares are taken
    saturated_share: float = 0.5  # share of batches with a loss under 1e-3
    non_finite_steps: int = 3  # in a row, with a loss or gradient that is not finite
    skipped_share: float = 0.25  # share of steps that fp16's loss scaler discards; a few are normal
    data_share: float = 0.5  # share of time spent waiting for data
    collapse_share: float = 0.9  # share of words with one best patch, or of patches choosing [BOS] or [EOS]
    collapse_rank: float = 2.0  # the embeddings' effective rank; 1 = one direction
    collapse_checks: int = 5  # looks at the embeddings in a row, one per log_every
    grad_norm_spread: float = 1e-3  # relative difference of the ranks' gradient norms, which should be 0
    straggler_factor: float = 1.5  # a rank's seconds for encoding its batch, over the median rank's ...
    straggler_share: float = 0.1  # ... and the seconds above them, as a share of the step that everybody waits ...
    straggler_intervals: int = 3  # logged intervals with the same slow rank
    straggler_seconds: float = 0.02  # ... and at least so many: below that the scheduler of a busy host decides


@dataclass(frozen=True)
class StepStatus:
    """The figures of one optimiser step, as all ranks see it (means over ranks and over its contrastive batches)."""

    step: int
    loss: float
    grad_norm: float | None  # None where the engine does not know it
    logit_scale: float
    loss_scale: float
    skipped: bool  # DeepSpeed discarded the step, whose gradients were not finite
    finite: bool  # on every rank
    chance_loss: float  # the loss of a model that knows nothing
    grad_norm_spread: float | None = None  # relative difference over the ranks; None as grad_norm
    data_share: float = 0.0  # share of the step's time in which the ranks waited for data
    lr: float = 0.0  # the step's learning rate
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

    def __init__(
        self, contrastive_batch: int, max_logit_scale: float, fp16: bool, limits: Limits | None = None
    ) -> None:
        """Set the thresholds. ``contrastive_batch``: pairs of one batch, of which the messages speak."""
        self.limits, self.fp16 = limits or Limits(), fp16
        self.contrastive_batch, self.max_logit_scale = contrastive_batch, max_logit_scale
        self._losses: deque[float] = deque(maxlen=HISTORY)
        self._stragglers: dict[str, list[tuple[int, int]]] = {}  # (rank, step) of the intervals in a row
        self._lasting: dict[str, tuple[int, int]] = {}  # by kind: its first step, and how often it was seen since
        self._windows: dict[str, deque[float]] = {}
        self._median = 0.0  # that of the losses before the last step

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
        if status.finite:
            self._losses.append(status.loss)
        return alerts

    def _conditions(self, status: StepStatus) -> Iterator[tuple[str, bool | None, int, str]]:
        """Yield the name of each condition, whether it holds, observations in a row before an alert, and the message.

        None: unknown in this step, such as what the monitors of the embeddings say (see filip.train.monitors).
        """
        s, metrics, spread = self.limits, status.metrics, status.grad_norm_spread
        scale, loss, chance = status.logit_scale, status.loss, status.chance_loss
        collapsed = self.fp16 and status.skipped and status.loss_scale <= s.min_loss_scale
        # Skips are normal while the loss scale can still decrease; any other skip, or a non-finite loss, is an error.
        excused = self.fp16 and status.skipped and not collapsed
        finite_norm = status.grad_norm is None or math.isfinite(status.grad_norm)
        bad = not status.finite or (not excused and (status.skipped or not finite_norm))
        yield "non-finite", bad, s.non_finite_steps, "loss or gradients are not finite; a larger weight decay helps"
        yield "loss scale collapsed", collapsed, 1, f"it is {status.loss_scale:g} and steps still overflow"
        clamped = at_clamp(scale, self.max_logit_scale)
        yield "logit scale at its clamp", clamped, s.clamp_steps, f"the scale stays at {scale:.1f}"
        spike = self._is_spike(status)
        message = f"the loss is {loss:.3f}, the median of the steps before {self._median:.3f}"
        yield "loss spike", spike, s.spike_steps, message
        stuck = status.finite and abs(loss - chance) <= STUCK_TOLERANCE * chance
        message = f"the loss stays at {chance:.3f}, chance for {self.contrastive_batch} pairs"
        yield "loss stuck at log(batch)", stuck, s.stuck_steps, message
        message = (
            f"by {spread or 0:.1e} of it, where it should be one number; their weights are no longer the same, so stop "
            "and resume from the checkpoint before"
        )
        disagree = None if spread is None else spread > s.grad_norm_spread
        yield "ranks disagree on the gradient norm", disagree, 1, message
        for kind, value, limit, message in (
            (
                "loss saturated", metrics.get("monitor/saturated_share"), s.saturated_share,
                "the loss is under 1e-3 in {}, which teach next to nothing; larger batches or harder negatives help",
            ),
            (
                "many skipped steps", float(status.skipped) if self.fp16 else None, s.skipped_share,
                "fp16 discarded {}; a lower rate, a larger weight decay or bf16 helps",
            ),
            (
                "waiting for data", status.data_share, s.data_share,
                "the ranks waited for batches during {}; more data.workers, faster storage or smaller images help",
            ),
        ):  # fmt: skip
            share = self._mean(kind, value)
            percent = f"{100 * (share or 0):.0f} % of the last {s.window_steps} steps"
            yield kind, None if share is None else share >= limit, 1, message.format(percent)
        for kind, name, message in (
            ("words point at one patch", "same_patch_share", "a caption's words have the same best patch"),
            (
                "patches point at [BOS] or [EOS]", "bos_eos_share",
                "patches have [BOS] or [EOS] as their best token, so that words do no work",
            ),
        ):  # fmt: skip
            value = metrics.get(f"tokens/{name}")
            holds = None if value is None else value >= s.collapse_share
            yield kind, holds, s.collapse_checks, f"{100 * (value or 0):.0f} % of {message}"
        ranks = {name: value for name, value in metrics.items() if name.endswith(("/image_rank", "/text_rank"))}
        lowest = min(ranks, key=lambda name: ranks[name], default="")
        message = (
            f"{lowest} is {ranks.get(lowest, 0):.2f}: the embeddings hardly differ; the learning rate is "
            f"{status.lr:.2g}, and a lower optimizer.base_lr or a longer optimizer.warmup_steps helps"
        )
        low = ranks[lowest] <= s.collapse_rank if ranks else None
        yield "embeddings collapsed", low, s.collapse_checks, message

    def _mean(self, name: str, value: float | None) -> float | None:
        """Return the mean of the last ``window_steps`` values; None until there are so many."""
        if value is None:
            return None
        window = self._windows.setdefault(name, deque(maxlen=self.limits.window_steps))
        window.append(value)
        return statistics.fmean(window) if len(window) == window.maxlen else None

    def observe_fleet(self, step: int, seconds: float, data: Slowest, encoding: Slowest) -> list[Alert]:
        """Return alerts on one rank that keeps all others waiting.

        ``seconds``: of a step in this interval, which ends at ``step``. ``data``, ``encoding``: the slowest.
        """
        s, alerts = self.limits, []
        late = encoding.seconds - encoding.median > max(s.straggler_share * seconds, s.straggler_seconds)
        late = late and encoding.seconds > s.straggler_factor * encoding.median
        for kind, slowest, slow in (
            ("slow data", data, data.seconds - data.median > DATA_SHARE * seconds),
            ("straggler", encoding, late),
        ):
            seen = self._stragglers.setdefault(kind, [])
            if not slow or (seen and seen[-1][0] != slowest.rank):
                seen.clear()
            if slow:
                seen.append((slowest.rank, step))
            if len(seen) == s.straggler_intervals:
                what = "waiting for its data" if kind == "slow data" else "encoding its batch"
                alerts.append(Alert(kind, seen[0][1], step, f"{what}, {slowest}"))
        return alerts

    def _is_spike(self, status: StepStatus) -> bool:
        """Return whether a loss is far above the median of the steps before: by eight spreads and a tenth of it."""
        if not status.finite or len(self._losses) < HISTORY // 2:
            return False
        self._median = statistics.median(self._losses)
        spread = 1.4826 * statistics.median(abs(loss - self._median) for loss in self._losses)
        return status.loss > self._median + max(8 * spread, 0.1 * abs(self._median))

    @property
    def healthy(self) -> bool:
        """Return False during a stretch of non-finite steps, which must not be saved as a good checkpoint."""
        return "non-finite" not in self._lasting

    def reset(self) -> None:
        """Forget all stretches, after a rollback."""
        for memory in (self._losses, self._stragglers, self._lasting, self._windows):
            memory.clear()  # type: ignore[attr-defined]
