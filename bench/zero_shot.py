"""Zero-shot scoring at ImageNet's size: ``python -m bench.zero_shot [--images 64] [--classes 1000] [--prompts 30]``.

Random unit vectors: images of 49 patches against the tokens of every prompt of every class, 256 channels. The packed
float32 matrix product of the same size, and the scores in float32 and bfloat16, take turns; times are processor
seconds, which a machine in use disturbs least, and what is reported is the median of the ratios within a turn.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from filip.device import synchronize
from late_interaction import score

IMAGENET = 50_000


def product_alone(images: Tensor, tokens: Tensor, rows: int = 4096, columns: int = 8192) -> None:
    """Compute the packed product, block by block into one buffer: the least that any scorer has to compute."""
    flat = images.flatten(0, 1)
    buffer = torch.empty(rows * columns)
    for a in flat.split(rows):
        for b in tokens.split(columns):
            torch.mm(a, b.T, out=buffer[: len(a) * len(b)].view(len(a), len(b)))


def taking_turns(works: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> list[dict[str, float]]:
    """Return the seconds of each work in each round: of the processor, or on an accelerator by the clock.

    The first calls do not count; they may compile a kernel.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    found = []
    for _ in range(rounds + 1):
        turn = {}
        for name, work in works.items():
            synchronize(device)
            started = clock()
            work()
            synchronize(device)
            turn[name] = clock() - started
        found.append(turn)
    return found[1:]


def ratio(turns: list[dict[str, float]], name: str, to: str) -> float:
    """Return the median of one work's time over another's in the same turn."""
    return statistics.median(turn[name] / turn[to] for turn in turns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64, help="images that are scored at a time")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=30)
    parser.add_argument("--patches", type=int, default=49)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", help="write the numbers to this file")
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    device = torch.device(arguments.device)
    # ImageNet's prompts of the paper have 16 tokens on average.
    lengths = torch.randint(12, 21, (arguments.classes * arguments.prompts,), generator=generator)

    def unit(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, generator=generator), dim=-1).to(device)

    images = unit(arguments.images, arguments.patches, arguments.dim)
    tokens = unit(int(lengths.sum()), arguments.dim)
    threads = torch.get_num_threads()
    head = f"{arguments.images:,} images x {len(lengths):,} prompts ({len(tokens):,} tokens), {threads} threads"
    print(head, flush=True)
    half = images.bfloat16(), tokens.bfloat16()
    works: dict[str, Callable[[], object]] = {
        "float32": lambda: score(images, tokens, lengths),
        "bfloat16": lambda: score(*half, lengths),
    }
    if device.type == "cpu":
        works = {"product": lambda: product_alone(images, tokens), **works}
    turns = taking_turns(works, arguments.rounds, device)
    results: dict[str, object] = {"problem": head, "turns": turns}
    for name in ("float32", "bfloat16"):
        seconds = statistics.median(turn[name] for turn in turns)
        minutes = seconds * IMAGENET / arguments.images / 60
        said = f"{name}: {seconds:.2f} s; {IMAGENET:,} images {minutes:.1f} processor minutes"
        if "product" in works:
            results[f"{name}_over_product"] = ratio(turns, name, "product")
            said += f"; {results[f'{name}_over_product']:.2f} x the product in float32"
        results[f"{name}_minutes"] = minutes
        print(said)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
