"""A second line behind ``backend=auto``: its kernels are compared with the tiled backend, and left where they fail.

No GPU has run the Triton kernels, and a kernel that is wrong would train on without a word. So the first step of every
start computes the loss of 64 of its own pairs by both, with its gradients; and a kernel that raises, then or later, is
left for good. Each rank decides for itself: what it sends to others does not depend on its backend.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from filip.models import TextFeatures
from late_interaction import SmoothMaximum, contrastive_loss
from late_interaction.backends import Backend, choose_backend
from late_interaction.operator import interact
from late_interaction.packing import Pair, Residuals, Tokens, longest_of

PAIRS = 64
# Both multiply the same rounded tokens and add up in float32: similarities of unit tokens differ by some 1e-6, times a
# scale of at most 100. Gradients differ in the rounding of weights to 16 bits, 0.2 %, and where of two nearly equal
# tokens the other wins. Beyond 5 % of their norm something is wrong; a false alarm costs speed alone.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 3e-4, 0.05


class AutoBackend:
    """What ``backend=auto`` is in one training: kernels of this machine, and tiled once they were wrong or raised."""

    def __init__(self) -> None:
        self.left = ""  # why the kernels were left
        self.note = ""  # a sentence that nobody has logged yet
        self.compared = False

    def choose(
        self, image: Tensor, text: TextFeatures, temperature: float, scale: Tensor, dtype: torch.dtype | None
    ) -> str | Backend:
        """Return the backend of this step for unit tokens [b, n1, d] and packed captions, multiplied in ``dtype``.

        temperature: of the smooth maximum; 0: the maximum. scale: the factor of the similarities in the loss.
        """
        if not (self.compared or self.left):
            self._compare(image, text, temperature, scale, dtype)
        return "tiled" if self.left else _Guarded(self)

    def leave(self, why: str) -> None:
        self.left = why
        self.note = f"backend=auto: {why}; this training goes on with backend=tiled, which is exact but slower"

    @torch.enable_grad()
    def _compare(
        self, image: Tensor, text: TextFeatures, temperature: float, scale: Tensor, dtype: torch.dtype | None
    ) -> None:
        lengths = text.lengths[:PAIRS].cpu()
        whole = [side.detach().float() for side in (image[:PAIRS], text.tokens[: int(lengths.sum())])]
        # without their mean: a new model's tokens are nearly alike, and rounding would decide
        sides = [F.normalize(side - side.flatten(0, -2).mean(dim=0), dim=-1) for side in whole]

        def solve(backend: str | Backend) -> list[Tensor]:
            own = [side.clone().requires_grad_() for side in sides]
            maximum = SmoothMaximum(temperature) if temperature else None
            similarity = interact(own[0], own[1], lengths, backend=backend, maximum=maximum, dtype=dtype)
            loss = contrastive_loss(similarity, scale.detach()).loss
            return [tensor.detach().float() for tensor in (loss, *torch.autograd.grad(loss, own))]

        expected, found = solve("tiled"), solve(_Guarded(self))
        self.compared = bool(expected[0].isfinite())  # else the weights are at fault
        if self.left or not self.compared:
            return
        off = [float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in zip(found[1:], expected[1:], strict=True)]
        loss, right = float(found[0]), float(expected[0])
        if not (abs(loss - right) <= LOSS_TOLERANCE * max(1, right) and max(off) <= GRADIENT_TOLERANCE):
            self.leave(
                f"the kernels are wrong on this machine: of {len(lengths)} own pairs they make the loss {loss:.5f} and "
                f"the tiled backend {right:.5f}, and gradients differ by {off[0]:.0%} (images) and {off[1]:.0%} (texts)"
            )


class _Guarded:
    """What "auto" chooses, for the two passes of one call; where it raises, the tiled backend computes both."""

    def __init__(self, owner: AutoBackend) -> None:
        from late_interaction import tiled

        self.owner, self.tiled = owner, tiled

    def forward(self, tokens: Tokens, save_for_backward: bool = True, /) -> tuple[Pair, Residuals]:
        if not self.owner.left:
            kernels = _kernels(tokens)
            try:
                return kernels.forward(tokens, save_for_backward)
            except Exception as error:
                self._leave(kernels, error)
        return self.tiled.forward(tokens, save_for_backward)

    def backward(
        self, tokens: Tokens, grads: Pair, residuals: Residuals, needs: tuple[bool, bool] = (True, True), /
    ) -> Pair:
        if not self.owner.left:
            kernels = _kernels(tokens)
            try:
                return kernels.backward(tokens, grads, residuals, needs)
            except Exception as error:
                self._leave(kernels, error)
        # what other kernels saved says nothing to these
        return self.tiled.backward(tokens, grads, self.tiled.forward(tokens)[1], needs)

    def _leave(self, kernels: Backend, error: Exception) -> None:
        if kernels is self.tiled or isinstance(error, torch.OutOfMemoryError):
            raise error
        said = (str(error).strip() or "no message").splitlines()[0]
        self.owner.leave(f"{getattr(kernels, '__name__', kernels)} raised {type(error).__name__}: {said}")


def _kernels(tokens: Tokens) -> Backend:
    return choose_backend(tokens.image[:0], longest_of(tokens.lengths, tokens.image_lengths))
