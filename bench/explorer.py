"""Measure how fast the explorer answers, and whether its page ranks as the models do: ``python -m bench.explorer``.

Live: FILIP and CLIP of one preset with random weights, random unit tokens for 5,000 images, a real server on loopback,
and texts that it has not seen; milliseconds from request to parsed answer, both models scored in each.

With ``--page results/demo/explore.html --models results/demo/models/{clip,filip}.safetensors --root
results/demo/corpus/eval`` the page as a file instead, in Chromium and Firefox, headless: ``--captions`` of the card,
most of which the page was not made for, and ``--pictures`` of it, dropped; milliseconds of each, and for how many the
first image or caption is the one that PyTorch puts first. Run it on an idle machine.
"""

import argparse
import base64
import dataclasses
import io
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
from PIL import Image

from bench.browser import chromium, firefox
from filip.eval.encoders import FilipEncoder
from filip.eval.scorer import scorer_for
from filip.explore.app import application
from filip.explore.gallery import Gallery, ViewedImages, Viewer, load_viewers
from filip.explore.pictures import open_pictures
from filip.explore.search import GallerySearch, warm
from filip.explore.serve import listen
from filip.models import build_model, load_preset
from filip.sets.pictures import Pictures

WORDS = ("a dog cat red boat on the beach two black house", "old bridge river with tree car and man snow green")


def gallery_of(images: int, preset: str) -> Gallery:
    """Make random unit tokens, as many and as long as the preset's."""
    generator = torch.Generator().manual_seed(0)
    viewers, features = [], []
    for interaction in ("pooled", "token_wise"):
        config = dataclasses.replace(load_preset(preset), interaction=interaction)
        viewer = Viewer(scorer_for(FilipEncoder(build_model(config).eval(), interaction)), interaction)
        patches = viewer.grid[0] * viewer.grid[1]
        tokens = F.normalize(torch.randn(images, patches, config.embed_dim, generator=generator), dim=-1)
        pooled = F.normalize(tokens.mean(1), dim=-1)
        viewers.append(viewer)
        features.append(ViewedImages(tokens if viewer.token_wise else pooled, tokens))
    return Gallery("random", viewers, ["image"] * images, [b""] * images, features, [], [], [None] * images)


@contextmanager
def served(search: GallerySearch) -> Iterator[str]:
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
    search = GallerySearch(gallery_of(images, preset))
    warm(search)
    rng = np.random.default_rng(0)
    taken, used = [], []
    with served(search) as address:
        for number in range(texts):
            text = f"{' '.join(rng.choice(' '.join(WORDS).split(), 12))} {number}"
            started, busy = time.perf_counter(), time.process_time()
            with urllib.request.urlopen(f"{address}search?{urllib.parse.urlencode({'text': text})}") as answer:
                json.load(answer)
            taken.append(1000 * (time.perf_counter() - started))
            used.append(1000 * (time.process_time() - busy))
    rows, dim = search.gallery.features[1].map.shape[1:]
    report = {"images": images, "patches": rows, "dim": dim, "threads": torch.get_num_threads(), "texts": texts}
    times = {"median_ms": np.median(taken), "p90_ms": np.quantile(taken, 0.9), "cpu_ms": np.median(used)}
    return {**report, **{name: float(value) for name, value in times.items()}}


SEARCH = """async text => { const started = performance.now(), found = await app.feed.search(text);
    return [performance.now() - started, ...found.models.map(model => model.order[0])]; }"""
DROP = """async encoded => {
    const bytes = Uint8Array.from(atob(encoded), letter => letter.charCodeAt(0)), started = performance.now();
    const name = await app.feed.upload(new File([bytes], "photo.png", {type: "image/png"}));
    const seen = performance.now() - started;
    return [seen, ...(await app.feed.textsOf(name, 1)).map(list => app.data.texts.indexOf(list[0][0]))]; }"""
BROWSERS: dict[str, Any] = {"chromium": chromium, "firefox": firefox}


def static(page: Path, models: list[str], card: str, root: str, captions: int, pictures: int) -> Any:
    """Yield, for each browser, milliseconds of a search and of a dropped picture in the page, and for each model the
    share of captions and of pictures whose first answer is PyTorch's."""
    whole = list(open_pictures(card, root, captions))
    asked = [one.captions[0] for one in whole]
    encoded = [_png(one.image) for one in whole[:: max(1, len(whole) // pictures)]]
    shown = [Image.open(io.BytesIO(one)) for one in encoded]
    exact: list[Any] = []
    for name, browser in BROWSERS.items():
        with browser() as opened:
            view: Any = opened.new_page() if hasattr(opened, "new_page") else opened
            view.goto(page.resolve().as_uri())
            view.evaluate("async () => { while (!app.result) await new Promise(go => setTimeout(go, 5)); }")
            texts: list[str] = view.evaluate("() => app.data.texts")
            count: int = view.evaluate("() => app.data.images.length")
            exact = exact or _exact(models, open_pictures(card, root, count), texts, asked, shown)
            view.evaluate(SEARCH, "a warm engine")
            searches = np.array([view.evaluate(SEARCH, caption) for caption in asked])
            drops = np.array([view.evaluate(DROP, base64.b64encode(one).decode()) for one in encoded])
        same = {
            label: {"captions": float((t2i == searches[:, n]).mean()), "pictures": float((i2t == drops[:, n]).mean())}
            for n, (label, t2i, i2t) in enumerate(exact, 1)
        }
        counts = {"images": count, "captions": len(asked), "new": len({*asked} - {*texts}), "pictures": len(encoded)}
        times = {
            f"{what}_{at}_ms": float(np.quantile(found[:, 0], q))
            for what, found in (("text", searches), ("picture", drops))
            for at, q in (("median", 0.5), ("p90", 0.9))
        }
        yield name, {**counts, "megabytes": page.stat().st_size / 1e6, **times, "same_first_answer": same}


def _png(image: Image.Image) -> bytes:
    encoded = io.BytesIO()
    image.convert("RGB").save(encoded, "PNG")
    return encoded.getvalue()


def _exact(models: list[str], pictures: Pictures, texts: list[str], asked: list[str], shown: list[Any]) -> list[Any]:
    """Return each model's label, its first image for each text asked and its first text for each picture shown."""
    gallery = Gallery.of(load_viewers(models, []), pictures)
    assert gallery.texts == texts, "the page is of other images"
    answers = []
    for viewer, features in zip(gallery.viewers, gallery.features, strict=True):
        scorer = viewer.scorer
        t2i = scorer.similarity(features.scored, scorer.encode_texts(asked)).t2i.argmax(0)
        seen = scorer.encode_images(torch.stack([scorer.transform(one) for one in shown]))
        i2t = scorer.similarity(seen, scorer.encode_texts(texts)).i2t.argmax(1)
        answers.append((viewer.label, t2i.numpy(), i2t.numpy()))
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--preset", default="base", help="a preset of filip/conf/model")
    parser.add_argument("--texts", type=int, default=50)
    parser.add_argument("--page", type=Path, help="a page of filip explore export, to measure it instead")
    parser.add_argument("--models", nargs="+", default=[], help="its models")
    parser.add_argument("--card", default="demo_scenes_new", help="its card")
    parser.add_argument("--root", default="results/demo/corpus/eval", help="where the card's data lie")
    parser.add_argument("--captions", type=int, default=1000, help="captions of the card for the page")
    parser.add_argument("--pictures", type=int, default=20, help="pictures of the card that are dropped onto the page")
    parser.add_argument("--json", help="write the numbers to this file")
    arguments = parser.parse_args()
    if arguments.page:
        a = arguments
        report = dict(static(a.page, a.models, a.card, a.root, a.captions, a.pictures))
    else:
        report = {"live": live(arguments.images, arguments.preset, arguments.texts)}
    for name, numbers in report.items():
        print(name, numbers, flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
