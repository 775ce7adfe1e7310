"""The smooth maximum ``t log(mean exp(s / t))`` in place of the maximum, as a backend.

similarity = late_interaction(image_tokens, text_tokens, text_lengths, backend=SmoothMaximum(0.05))
"""

from __future__ import annotations

import os

import torch

from late_interaction import native
from late_interaction.backends import ENVIRONMENT_VARIABLE, triton_declines
from late_interaction.blockwise import Blockwise, smooth_maximum
from late_interaction.packing import Pair, Residuals, Tokens, longest_of


class SmoothMaximum:
    """A backend (see :mod:`late_interaction.backends`) with the smooth maximum of a temperature t > 0.

    This maximum lies between the mean (t to infinity) and the maximum (t to 0), never above the maximum; every token
    has a part in the gradient. Native kernels compute it on CPUs, for all dtypes but float64, and Triton's on GPUs of
    compute capability 8.0 and newer, where exponentials stay in the range of float32; elsewhere, and where
    ``LATE_INTERACTION_BACKEND`` names another backend, PyTorch computes it in blocks. Only Triton's save something for
    the backward.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = float(temperature)
        self._blocks = Blockwise(smooth_maximum(temperature))

    def forward(self, tokens: Tokens, save_for_backward: bool = True) -> tuple[Pair, Residuals]:
        """Return s^I and s^T [images, texts]."""
        if self._runs_native(tokens):
            return native.smooth_forward(tokens, self.temperature), ()
        if self._runs_triton(tokens):
            from late_interaction import triton_smooth

            return triton_smooth.forward(tokens, self.temperature, save_for_backward)
        return self._blocks.forward(tokens, save_for_backward)

    def backward(
        self, tokens: Tokens, grads: Pair, residuals: Residuals, needs: tuple[bool, bool] = (True, True)
    ) -> Pair:
        """Return the gradients of both inputs in the accumulation dtype."""
        if self._runs_native(tokens):
            return native.smooth_backward(tokens, self.temperature, grads, needs)
        if residuals:
            from late_interaction import triton_smooth

            return triton_smooth.backward(tokens, self.temperature, grads, residuals, needs)
        return self._blocks.backward(tokens, grads, residuals, needs)

    def _runs_triton(self, tokens: Tokens) -> bool:
        wanted = os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
        preferred = tokens.image.device.type == "cuda" and not triton_declines(tokens.image)
        if wanted != "triton" and not (wanted == "auto" and preferred):
            return False
        try:
            from late_interaction import triton_smooth
        except ImportError:  # no Triton
            return False
        return not triton_smooth.unavailable_reason(tokens, self.temperature)

    def _runs_native(self, tokens: Tokens) -> bool:
        if (os.environ.get(ENVIRONMENT_VARIABLE) or "auto") not in ("auto", "native"):
            return False
        longest = longest_of(tokens.lengths, tokens.image_lengths)
        return tokens.image.dtype != torch.float64 and not native.unavailable_reason(tokens.image, longest)
