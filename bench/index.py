"""Measure what an index costs and finds: milliseconds a query, and recall against bytes an image.

    python -m bench.index      # after `make demo`; a few minutes on two cores

The texts are the captions of a retrieval card; its images and as many more from the training shards are the collection.
Each way of storing image tokens is scored by the same engine, with the texts' tokens in float32:

* float16, int8 (one scale a token) and 1 bit (the signs) round every token;
* kept 50 % and 25 % keep the tokens that are least like the mean token of the collection;
* pooled to a half and a quarter replaces the tokens of an image by the means of clusters of them (Ward), as ColBERT's
  token pooling does;
* the last row is an index as `filip index build` makes it, searched as it searches: all images by a product in
  integers, the best 1,000 again exactly.
"""

import io
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from filip.command import option, run_command
from filip.eval.cards import load_card
from filip.eval.formats import open_set
from filip.eval.scorer import Scorer, load_scorer
from filip.files import replacing
from filip.index.store import About, Index
from filip.index.tokens import pooled as tokens_pooled
from filip.index.tokens import restored, rounded
from filip.progress import Progress, say, track
from filip.search.ranking import query_of, rank


@dataclass
class IndexBench:
    model: str = option("results/demo/models/filip.safetensors", "a token-wise model")
    root: str = option("results/demo/corpus/eval", "folder of the test set")
    card: str = option("eval/demo_scenes_new.yaml", "retrieval card")
    shards: str = option("results/demo/data/demo/shards", "folder of tars with further images")
    images: int = option(5000, "images in the collection")
    queries: int = option(100, "queries that are timed")
    figure: str | None = option(None, "also draw recall against bytes into this file")


def main(study: IndexBench) -> None:
    """Print both tables."""
    scorer = load_scorer(study.model)
    images, captions = collection(study, scorer)
    say(f"{len(images):,} images of {images.shape[1]} tokens x {images.shape[2]}, {len(captions):,} texts")
    print(times(images, captions[: study.queries], scorer))
    rows = recall_by_bytes(images, captions, scorer)
    print(
        "\n| image tokens | bytes an image | R@1 | R@10 | top ten as float32's |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for name, size, r1, r10, same in rows:
        print(f"| {name} | {size:,} | {r1:.1f} | {r10:.1f} | {same:.1f} |")
    if study.figure:
        draw(rows[:-1], Path(study.figure))  # the last row has the point of the index that it searches


def collection(study: IndexBench, scorer: Scorer) -> tuple[Tensor, list[str]]:
    """Return image tokens [n, n1, d], and the captions of the first images, in order."""
    data = open_set(load_card(study.card), study.root)
    samples = [data[n] for n in range(len(data))]
    pictures = [sample.image for sample in samples]
    pictures += islice(shard_images(Path(study.shards)), study.images - len(pictures))
    features = []
    for start in track(range(0, len(pictures), 64), "encoding", unit="batches"):
        pixels = torch.stack([scorer.transform(image) for image in pictures[start : start + 64]])
        features.append(scorer.encode_images(pixels))
    return torch.cat(features).float(), [sample.captions[0] for sample in samples]


def shard_images(folder: Path) -> Iterator[Image.Image]:
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith((".jpg", ".jpeg", ".png", ".webp")):
                    yield Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB")  # type: ignore[union-attr]


def times(images: Tensor, captions: list[str], scorer: Scorer) -> str:
    """Time the store with its second scoring, and the engine alone on all tokens in memory, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        about = About("-", "-", scorer.image_size, True, images.shape[2], "float32", "-")
        index = Index.create(folder, about)
        with Progress("storing", "images", len(images)) as progress:
            for start in range(0, len(images), 64):
                part = images[start : start + 64]
                index.add([str(n) for n in range(start, start + len(part))], ["-"] * len(part), part)
                progress.add(len(part))
        size = sum(file.stat().st_blocks * 512 for file in Path(folder).rglob("*") if file.is_file())
        clocks: dict[str, list[float]] = {"index": [], "exact": [], "text": []}
        equal = 0
        for caption in captions:
            started = time.perf_counter()
            texts = scorer.encode_texts([caption])
            clocks["text"].append(time.perf_counter() - started)
            started = time.perf_counter()
            hits = rank(index, scorer, query_of(scorer, caption, "all")).hits[:10]
            clocks["index"].append(time.perf_counter() - started - clocks["text"][-1])
            started = time.perf_counter()
            best = scorer.similarity(images, texts).t2i[:, 0].topk(10)
            clocks["exact"].append(time.perf_counter() - started)
            equal += [hit.path for hit in hits] == [str(n) for n in best.indices.tolist()]
        index.close()
    ms = {name: 1e3 * statistics.median(values) for name, values in clocks.items()}
    return (
        f"median of {len(captions)} queries: index {ms['index']:.1f} ms, all tokens in memory {ms['exact']:.1f} ms, "
        f"the text's encoding {ms['text']:.1f} ms on top of both; top ten equal to exact scoring in {equal} of "
        f"{len(captions)}; {size / len(images):,.0f} bytes an image on disk"
    )


def recall_by_bytes(images: Tensor, captions: list[str], scorer: Scorer) -> list[tuple[str, int, float, float, float]]:
    """Return name, bytes per image, R@1, R@10, and the share of float32's top ten that is found; percent."""
    texts = scorer.encode_texts(captions)
    _, n1, d = images.shape
    ways: list[tuple[str, int, Callable[[Tensor], Tensor]]] = [
        ("float32", 4 * n1 * d, lambda x: x),
        ("float16", 2 * n1 * d, lambda x: x.half().float()),
        ("int8", n1 * (d + 4), int8),
        ("1 bit", n1 * d // 8, lambda x: F.normalize(torch.where(x >= 0, 1.0, -1.0), dim=-1)),
        ("kept 50 %, float16", 2 * (n1 // 2) * d, lambda x: kept(x, n1 // 2)),
        ("kept 25 %, float16", 2 * (n1 // 4) * d, lambda x: kept(x, n1 // 4)),
        ("pooled to a half, float16", 2 * (n1 // 2) * d, lambda x: pooled(x, n1 // 2)),
        ("pooled to a quarter, float16", 2 * (n1 // 4) * d, lambda x: pooled(x, n1 // 4)),
        ("pooled to a fifth, int8", (n1 // 5) * (d + 4), lambda x: int8(pooled(x, n1 // 5))),
        ("pooled to a quarter, int8", (n1 // 4) * (d + 4), lambda x: int8(pooled(x, n1 // 4))),
        ("pooled to a quarter, 1 bit", (n1 // 4) * d // 8, lambda x: torch.sign(pooled(x, n1 // 4)) / d**0.5),
    ]
    rows = []
    reference = None
    positives = torch.arange(len(captions))
    default: tuple[str, int, Callable[[Tensor], Tensor]] = ("an index's default", ways[-2][1], lambda x: x)
    for name, size, store in track([*ways, default], "scoring", unit="ways"):
        if store is default[2]:
            scores = by_index(images, captions, scorer)
        else:
            scores = scorer.similarity(store(images), texts).t2i.T  # [texts, images]
        best = scores.topk(10, 1).indices
        reference = best if reference is None else reference
        rank = (scores > scores[positives, positives][:, None]).sum(1)
        same = (best[:, :, None] == reference[:, None]).any(2).float().mean()
        percent = [100 * float(value) for value in ((rank < 1).float().mean(), (rank < 10).float().mean(), same)]
        rows.append((name, size, *percent))
    return rows  # type: ignore[return-value]


def by_index(images: Tensor, captions: list[str], scorer: Scorer) -> Tensor:
    """Return the scores [texts, images] that a search of an index gives, which decide its order."""
    with tempfile.TemporaryDirectory() as folder:
        about = About("-", "-", scorer.image_size, True, images.shape[2], "int8", "-", pool=4)
        index = Index.create(folder, about)
        for start in range(0, len(images), 64):
            part = images[start : start + 64]
            index.add([f"{n:06}" for n in range(start, start + len(part))], ["-"] * len(part), part)
        scores = [index.scores(scorer, scorer.encode_texts([caption])) for caption in captions]
        index.close()
    return torch.stack(scores)


def int8(tokens: Tensor) -> Tensor:
    return restored(rounded(tokens, "int8"))


def kept(tokens: Tensor, count: int) -> Tensor:
    """Return the ``count`` tokens of each image that are least similar to the mean token of all images."""
    mean = F.normalize(tokens.mean((0, 1)), dim=0)
    chosen = (tokens @ mean).topk(count, 1, largest=False).indices
    return tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[2])).half().float()


def pooled(tokens: Tensor, count: int) -> Tensor:
    return tokens_pooled(tokens, count).half().float()


def draw(rows: list[tuple[str, int, float, float, float]], path: Path) -> None:
    """Draw R@1 against bytes: a colour for each way of having fewer tokens; each point says how they are rounded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    colours = {"all": "#0072b2", "kept": "#d55e00", "pooled": "#009e73"}
    for family, colour in colours.items():
        points = [(size, r1, name) for name, size, r1, _, _ in rows if family_of(name) == family]
        axes.plot([p[0] for p in points], [p[1] for p in points], "o", color=colour, label=f"{family} tokens")
        for size, r1, name in points:
            below, name = name.endswith("int8"), name.removeprefix("pooled to a ").removeprefix("kept ")
            axes.annotate(
                name, (size, r1), (0, -14 if below else 7), textcoords="offset points", ha="center", fontsize=8
            )
    axes.set(xlabel="bytes an image", ylabel="R@1 (%)", ylim=(0, 1.2 * max(row[2] for row in rows)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.margins(x=0.1)
    axes.legend(frameon=False, loc="lower right")
    with replacing(path) as part:
        figure.savefig(part, format=path.suffix[1:])


def family_of(name: str) -> str:
    first = name.split()[0]
    return first if first in ("kept", "pooled") else "all"


if __name__ == "__main__":
    run_command(main, IndexBench)
