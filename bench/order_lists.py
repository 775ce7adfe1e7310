"""Time the host's work before the first kernel of a pass: the order of the captions, in the tiled and Triton backends.

    python -m bench.order_lists

Milliseconds of one core for 40,960 captions, median of 15. A GPU waits for it: on one process in
each pass, on many ranks once a step, since their backward pass finds it made.
"""

import statistics
import time
from collections.abc import Callable

import torch

from late_interaction import triton_layout
from late_interaction.lengths import Lengths, by_length
from late_interaction.lengths import tiles as cut

CAPTIONS, PATCHES = 40_960, 49


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    lengths = (18 + 6 * torch.randn(CAPTIONS, generator=generator)).round().long().clamp(4, 77).tolist()
    cpu, accelerator = torch.device("cpu"), torch.device("meta")
    in_order = sorted(lengths)

    def tiles() -> list[tuple[slice, slice]]:
        return list(cut([PATCHES] * 320, in_order, accelerator))

    report("tiled, order of the captions", milliseconds(lambda: by_length(lengths, cpu)))
    report(f"tiled, the {len(tiles())} tiles of 320 images", milliseconds(tiles))
    report("triton, groups of captions", milliseconds(lambda: triton_layout.lay_out(lengths, cpu)))
    kept = Lengths(lengths)
    triton_layout.lay_out(kept, cpu)
    report("the same in the backward", milliseconds(lambda: triton_layout.lay_out(kept, cpu)))


def report(what: str, value: float) -> None:
    print(f"{what:36}{value:8.1f} ms")


def milliseconds(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(15):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return 1e3 * statistics.median(seconds)


if __name__ == "__main__":
    main()
