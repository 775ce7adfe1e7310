"""Zero-shot scoring at ImageNet's size: ``python -m bench.zero_shot [--images 512] [--classes 1000] [--prompts 30]``.

Random unit vectors: images of 49 patches against the tokens of every prompt of every class, 256 channels. Times the
scores of a batch of images in float32 and bfloat16, and the packed matrix product of the same size alone, and prints
their ratio and how long 50,000 images would take. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.retrieval import product_alone
from filip.device import synchronize
from filip.interaction import score


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of ``repeats`` calls, after one that does not count (it may compile a kernel)."""
    work()
    found = []
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512, help="images that are scored at a time")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--prompts", type=int, default=30)
    parser.add_argument("--patches", type=int, default=49)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", help="write the numbers to this file")
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    device = torch.device(arguments.device)
    # ImageNet's prompts of the paper have 16 tokens in the mean.
    lengths = torch.randint(12, 21, (arguments.classes * arguments.prompts,), generator=generator)

    def unit(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, generator=generator), dim=-1).to(device)

    images, tokens = (
        unit(arguments.images, arguments.patches, arguments.dim),
        unit(int(lengths.sum()), arguments.dim),
    )
    threads = torch.get_num_threads()
    head = (
        f"{arguments.images:,} images x {len(lengths):,} prompts ({len(tokens):,} tokens), {threads} threads"
    )
    print(head, flush=True)
    product = product_alone(images, tokens) if device.type == "cpu" else float("nan")
    results: dict[str, object] = {"problem": head, "product_seconds": product}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = images.to(dtype), tokens.to(dtype)
        took = seconds(lambda a=a, b=b: score(a, b, lengths), device, arguments.repeats)  # type: ignore[misc]
        name = str(dtype).removeprefix("torch.")
        whole = took * 50_000 / arguments.images / 60
        results[name] = {
            "seconds": took,
            "ratio_to_product": took / product,
            "minutes_of_50000_images": whole,
        }
        print(
            f"{name}: {took:.2f} s, {took / product:.2f} x the product in float32; 50,000 images {whole:.1f} min"
        )
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
