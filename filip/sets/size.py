"""Say how many pictures of one's own a study trains on and holds out, and what so many can show."""

from __future__ import annotations

SHARE = 0.1  # of the pictures is held out,
FEWEST, MOST = 50, 5_000  # within these bounds, and at most half of them
FEW = 1_000  # pairs, by convention: nothing here was measured


def held_out_of(pictures: int) -> int:
    """Return how many of the pictures are held out."""
    return min(MOST, pictures // 2, max(FEWEST, round(SHARE * pictures)))


def few(trained: int) -> str:
    """Return what fewer than FEW pictures are good for; "" for more."""
    return f"fewer than {FEW:,} are few, enough to try the commands" if trained < FEW else ""


def size_of_set(trained: int, tested: int) -> str:
    """Return how many pictures a model is trained and tested on, and what these numbers can and cannot show."""
    margin = 98 / max(tested, 1) ** 0.5  # half of a 95 % interval for a share of a half, by the normal distribution
    enough = f" ({few(trained)})" if few(trained) else ""
    return (
        f"{trained:,} pictures to train on{enough}, and {tested:,} held out, by which a share of them is known to "
        f"within {margin:.0f} points"
    )
