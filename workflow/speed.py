"""Measure in about a second how fast one core of this computer is, at two kinds of work: prints one line of JSON.

    python -m workflow.speed

``compute``: passes a second of a small convolution and matrix product, in the precision that ``precision: auto``
takes here. ``plain``: rounds a second of what the stages without a network do, in Python and in compiled libraries.
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from collections.abc import Callable

SECONDS = 0.5  # for each kind
WARM_UP = 2  # rounds of each, which are not counted


def rounds_a_second(work: Callable[[], object]) -> float:
    """Return how often ``work`` runs in a second of the CPU, whatever else it does meanwhile."""
    for _ in range(WARM_UP):
        work()
    started, rounds = time.process_time(), 0
    while (elapsed := time.process_time() - started) < SECONDS:
        work()
        rounds += 1
    return rounds / elapsed


def plain_work() -> int:
    """Process text and dictionaries, and compress them."""
    rows = [{"url": f"https://example.org/{n}.png", "caption": f"a red {n} beside {n * 7}"} for n in range(300)]
    text = "\n".join(json.dumps(row, sort_keys=True) for row in rows)
    words = {word: len(word) for word in text.lower().split()}
    return len(words) + len(zlib.compress(text.encode(), 6))


def compute_work() -> tuple[str, Callable[[], object]]:
    """Return the precision, and what to repeat."""
    import torch

    from filip import device

    torch.set_num_threads(1)
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    precision = device.best_precision(cpu)
    images, weights = torch.randn(4, 32, 28, 28), torch.randn(32, 32, 3, 3)
    tokens, matrix = torch.randn(1024, 192), torch.randn(192, 768)

    def work() -> object:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return torch.nn.functional.conv2d(images, weights, padding=1), (tokens @ matrix).relu()

    return precision, work


def main() -> None:
    """Measure and print."""
    precision, work = compute_work()
    speed = {
        "compute": round(rounds_a_second(work), 1),
        "plain": round(rounds_a_second(plain_work), 1),
        "precision": precision,
    }
    print(json.dumps(speed), file=sys.stdout, flush=True)


if __name__ == "__main__":
    main()
