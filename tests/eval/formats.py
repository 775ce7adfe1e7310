"""Images that show their class as a colour: a test knows the truth from the pixels, not from what a reader made."""

import numpy as np
from PIL import Image

STEP = 25  # between colour levels: more than JPEG disturbs


def colour(number: int) -> tuple[int, int, int]:
    """Return three decimal digits as three levels."""
    return (number // 100 * STEP + 12, number // 10 % 10 * STEP + 12, number % 10 * STEP + 12)


def number_of(mean: np.ndarray) -> int:
    """Return the inverse of :func:`colour` from the mean colour of an image (0..255)."""
    hundreds, tens, ones = np.rint((mean - 12) / STEP).astype(int)
    return int(100 * hundreds + 10 * tens + ones)


def shown(number: int, side: int = 16) -> Image.Image:
    return Image.new("RGB", (side, side), colour(number))
