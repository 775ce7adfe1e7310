"""Retrieval at MSCOCO's size: ``python -m bench.retrieval [--images 5000] [--turns 8] [--json PATH]``.

Random unit tokens: 5,000 images of 49 patches against 25,010 captions of 10 to 20 tokens, 256 channels. Exact scoring
in both directions and the packed matrix product alone take turns, each on an equal part of the images; then R@1/5/10
with ties and intervals. Times are processor seconds, which a machine in use disturbs least. Reports the peak memory.
"""

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F

from bench.zero_shot import product_alone
from filip.device import peak_memory_mb
from filip.eval.protocols.retrieval import recalls
from filip.progress import Progress
from late_interaction import Similarity, score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--per-image", type=float, default=25010 / 5000, help="captions per image")
    parser.add_argument("--patches", type=int, default=49)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--turns", type=int, default=8, help="parts of the images, between which the two alternate")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--json", help="write the numbers to this file")
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    captions = round(arguments.images * arguments.per_image)
    lengths = torch.randint(10, 21, (captions,), generator=generator)
    images = F.normalize(torch.randn(arguments.images, arguments.patches, arguments.dim, generator=generator), dim=-1)
    tokens = F.normalize(torch.randn(int(lengths.sum()), arguments.dim, generator=generator), dim=-1)
    owner = torch.arange(captions) * arguments.images // captions
    threads = torch.get_num_threads()
    head = f"{arguments.images:,} images x {captions:,} captions ({len(tokens):,} tokens), {threads} threads"
    print(head, flush=True)
    # A first call may compile the native kernels, which is not part of scoring.
    score(images[:2], tokens[: int(lengths[:2].sum())], lengths[:2], backend=arguments.backend)
    parts, turns = [], []
    with Progress("scoring", "image-text pairs", len(images) * captions) as bar:
        for part in images.tensor_split(arguments.turns):
            started = time.process_time()
            product_alone(part, tokens)
            between = time.process_time()
            parts.append(score(part, tokens, lengths, backend=arguments.backend, progress=bar.add))
            turns.append((between - started, time.process_time() - between))
    product, scored = (sum(turn[i] for turn in turns) for i in range(2))
    print(f"packed product alone: {product:.1f} s", flush=True)
    similarity = Similarity(torch.cat([p.i2t for p in parts]), torch.cat([p.t2i for p in parts]))
    started = time.process_time()
    table = recalls(similarity.i2t, similarity.t2i, owner).table
    ranked = time.process_time() - started
    peak = peak_memory_mb(torch.device("cpu")) / 1024
    found = {
        "images": arguments.images,
        "captions": captions,
        "score_seconds": scored,
        "recall_seconds": ranked,
        "product_seconds": product,
        "score_over_product": statistics.median(own / packed for packed, own in turns),
        "peak_gib": peak,
        "i2t_r1": table["i2t"]["r1"],
        "chance_i2t_r1": table["chance"]["i2t"]["r1"],
    }
    print(f"scoring, both directions: {scored:.1f} s, {found['score_over_product']:.2f} x the product")
    print(f"recall and intervals: {ranked:.1f} s; peak memory {peak:.2f} GiB")
    print(f"i2t R@1 {100 * found['i2t_r1']:.3f} %, chance {100 * found['chance_i2t_r1']:.3f} %")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
