"""Measure how fast the explorer answers, and whether its page ranks as the models do: ``python -m bench.explorer``.

Live: FILIP and CLIP of one preset with random weights, random unit tokens for 5,000 images, a real server on loopback,
and texts that it has not seen; milliseconds from request to parsed answer, both models scored in each.

With ``--page results/demo/explore.html --models results/demo/models/{clip,filip}.safetensors --root
results/demo/corpus/eval`` also the page as a file: in a headless Chromium, each of its captions; milliseconds of a
search, and for how many captions the first image is the one that float scoring puts first. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import uvicorn

from bench.browser import chromium
from filip.eval.encoders import FilipEncoder
from filip.eval.scorer import scorer_for
from filip.explore.app import application
from filip.explore.gallery import Gallery, ImageFeatures, Viewer, load_viewers
from filip.explore.pictures import open_pictures
from filip.explore.search import Search, warm
from filip.explore.serve import listen
from filip.models import build_model, load_preset

WORDS = (
    "a dog cat red boat on the beach two black house",
    "old bridge river with tree car and man snow green",
)


def gallery_of(images: int, preset: str) -> Gallery:
    """Make random unit tokens, as many and as long as those of the preset."""
    generator = torch.Generator().manual_seed(0)
    viewers, features = [], []
    for interaction in ("pooled", "token_wise"):
        config = dataclasses.replace(load_preset(preset), interaction=interaction)
        viewer = Viewer(scorer_for(FilipEncoder(build_model(config).eval(), interaction)), interaction)
        patches = viewer.grid[0] * viewer.grid[1]
        tokens = F.normalize(torch.randn(images, patches, config.embed_dim, generator=generator), dim=-1)
        pooled = F.normalize(tokens.mean(1), dim=-1)
        viewers.append(viewer)
        features.append(ImageFeatures(tokens if viewer.token_wise else pooled, tokens))
    return Gallery("random", viewers, ["image"] * images, [b""] * images, features, [], [], [None] * images)


@contextmanager
def served(search: Search) -> Iterator[str]:
    """Yield the address of a server."""
    with listen("127.0.0.1", 0) as connection:
        server = uvicorn.Server(uvicorn.Config(application(search), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [connection]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{connection.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


def live(images: int, preset: str, texts: int) -> dict[str, Any]:
    """Return milliseconds of a search, median and 90th percentile, and how many of one core's it used (server and
    client)."""
    search = Search(gallery_of(images, preset))
    warm(search)
    rng = np.random.default_rng(0)
    taken, used = [], []
    with served(search) as address:
        for number in range(texts):
            text = f"{' '.join(rng.choice(' '.join(WORDS).split(), 12))} {number}"
            started, busy = time.perf_counter(), time.process_time()
            with urllib.request.urlopen(
                f"{address}search?{urllib.parse.urlencode({'text': text})}"
            ) as answer:
                json.load(answer)
            taken.append(1000 * (time.perf_counter() - started))
            used.append(1000 * (time.process_time() - busy))
    rows, dim = search.gallery.features[1].map.shape[1:]
    found = {
        "images": images,
        "patches": rows,
        "dim": dim,
        "threads": torch.get_num_threads(),
        "texts": texts,
    }
    times = {"median_ms": np.median(taken), "p90_ms": np.quantile(taken, 0.9), "cpu_ms": np.median(used)}
    return {**found, **{name: float(value) for name, value in times.items()}}


def static(page: Path, models: list[str], card: str, root: str) -> dict[str, Any]:
    """Return milliseconds of a search in the page, and the share of captions whose first image is float scoring's."""
    script = """async text => { const started = performance.now(), found = await app.feed.search(text);
        return [performance.now() - started, ...found.models.map(model => model.order[0])]; }"""
    with chromium() as browser:
        view = browser.new_page()
        view.goto(page.resolve().as_uri())
        view.wait_for_selector("body:not([aria-busy]) .card", timeout=120_000)
        captions: list[str] = view.evaluate("app.data.texts")
        count: int = view.evaluate("app.data.images.length")
        answers = np.array([view.evaluate(script, caption) for caption in captions])
    gallery = Gallery.of(load_viewers(models, []), open_pictures(card, root, count))
    assert gallery.texts == captions, "the page is of other images"
    same = {}
    for number, (viewer, features) in enumerate(zip(gallery.viewers, gallery.features, strict=True)):
        exact = (
            viewer.scorer.similarity(features.scored, viewer.scorer.encode_texts(captions))
            .t2i.argmax(0)
            .numpy()
        )
        same[viewer.label] = float((exact == answers[:, 1 + number]).mean())
    found = {"images": count, "captions": len(captions), "megabytes": page.stat().st_size / 1e6}
    return {**found, "median_ms": float(np.median(answers[:, 0])), "same_first_image": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--preset", default="base", help="of filip/conf/model")
    parser.add_argument("--texts", type=int, default=50)
    parser.add_argument("--page", type=Path, help="a page of filip explore export, to measure it too")
    parser.add_argument("--models", nargs="+", default=[], help="its models")
    parser.add_argument("--card", default="demo_scenes_new", help="its card")
    parser.add_argument("--root", default="results/demo/corpus/eval", help="where the card's data lie")
    parser.add_argument("--json", help="write the numbers to this file")
    arguments = parser.parse_args()
    found = {"live": live(arguments.images, arguments.preset, arguments.texts)}
    print("live", found["live"], flush=True)
    if arguments.page:
        found["static"] = static(arguments.page, arguments.models, arguments.card, arguments.root)
        print("static", found["static"], flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
