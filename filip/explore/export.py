"""Write the explorer to a file: ``filip explore export models=[clip.safetensors,filip.safetensors] labels=[CLIP,FILIP]
images=demo_scenes_new root=DIR out=explore.html``.

It opens from disk and needs no server: thumbnails and 8-bit image tokens are inside, and the page itself computes the
late interaction of a text with all images, every token with every patch. The towers of small models are inside as well
(:mod:`filip.explore.towers`), so that it takes any text and any picture. Where they are not, it has the tokens of its
captions and takes no other text.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from filip import resources
from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError
from filip.common.files import replacing
from filip.common.progress import say, track
from filip.explore.gallery import Gallery, ViewedImages, ViewedText, Viewer, load_viewers, read_texts
from filip.explore.packing import base64_of, packed
from filip.explore.pictures import open_pictures
from filip.explore.towers import NotInPage, image_tower, text_tower
from filip.text.tokenizer import MERGES
from filip.text.words import FUNCTION_WORDS

ASSETS = Path(__file__).resolve().parent / "assets"
# of the page, in this order
SCRIPTS = ("tokenizer.js", "towers.js", "pixels.js", "feed_static.js", "pictures.js", "panel.js", "search.js", "app.js")
MOST_BYTES = 16_000_000


@dataclass
class ExplorerExport:
    models: list[str] = option(MISSING, "one to three models of `filip eval model=`, shown side by side")
    labels: list[str] = option([], "names of the models in the page; the files' names if empty")
    images: str = option(MISSING, "a folder of images, a set with captions, or a benchmark card")
    root: str | None = option(None, "folder below which a card's data lie")
    count: int | None = option(
        500, "maximum number of images, evenly spread; null = all. A page of 500 has 5 to 50 MB", at_least=1
    )
    texts: str | None = option(None, "file with further texts to choose from, one a line")
    title: str | None = option(None, "title of the page; the card's or the folder's if not given")
    device: str = option("auto", "torch device; auto = a GPU where there is one")
    towers: str = option(
        "auto",
        "models in the page, which then takes any text and picture: none, or auto = if that gives at most 16 MB",
        choices=("auto", "none"),
    )
    out: str = option(MISSING, "the page (HTML)", writes="file")


def main(config: ExplorerExport) -> None:
    """Write the explorer as one self-contained HTML file, with the images and captions of a card or folder."""
    viewers = load_viewers(config.models, config.labels, config.device)
    pictures = open_pictures(config.images, config.root, config.count)
    gallery = Gallery.of(viewers, pictures, read_texts(config.texts))
    gallery.title = config.title or gallery.title
    towers = PageTowers.of(gallery) if config.towers == "auto" else PageTowers("towers=none")
    data = static_data(gallery, towers)
    if towers.missing == "" and _size(data) > MOST_BYTES:
        towers = PageTowers(f"the page would have {_size(data) / 1e6:.1f} MB with them: count= takes fewer images")
        data = static_data(gallery, towers)
    if towers.missing and not gallery.texts:
        raise UserError(
            f"images={config.images} come without captions, and this page cannot encode a text ({towers.missing}): "
            "give texts=FILE, one a line"
        )
    takes = f"its own captions only: {towers.missing}" if towers.missing else "any text and any picture"
    with replacing(config.out) as part:
        part.write_text(page(data), encoding="utf-8")
    counts = f"{len(data['images']):,} images, {len(data['texts']):,} texts, {_size(data) / 1e6:.1f} MB"
    say(f"{config.out}: {counts}; it takes {takes}")


def _size(data: dict[str, Any]) -> int:
    return len(json.dumps(data))


@dataclass
class PageTowers:
    """The models inside the page: for each its towers, and the stems below them. missing: why there are none."""

    missing: str
    models: tuple[dict[str, Any], ...] = ()
    stems: tuple[dict[str, Any], ...] = ()

    @classmethod
    def of(cls, gallery: Gallery) -> PageTowers:
        """Pack the towers of all viewers; a stem that two models share is stored once."""
        models: list[dict[str, Any]] = []
        stems: list[dict[str, Any]] = []
        try:
            for viewer in gallery.viewers:
                image, stem = image_tower(viewer.encoder)
                if stem is not None and stem not in stems:
                    stems.append(stem)
                text = text_tower(viewer.encoder, gallery.texts)
                below = None if stem is None else stems.index(stem)
                models.append({"text_tower": text, "image_tower": image, "stem": below})
        except NotInPage as reason:
            return cls(str(reason))
        return cls("", tuple(models), tuple(stems))


def static_data(gallery: Gallery, towers: PageTowers) -> dict[str, Any]:
    """Return all data that the page needs; arrays are base64."""
    named = list(zip(gallery.texts, gallery.things, strict=True))
    texts = [[viewer.text(*text) for text in track(named, "encoding", "texts")] for viewer in gallery.viewers]
    ranks = {}  # of each caption: how many images each model scores above the caption's own
    for text, image in {text: image for image, text in enumerate(gallery.own_text) if text is not None}.items():
        scores = [v.scores(f, seen[text]) for v, f, seen in zip(gallery.viewers, gallery.features, texts, strict=True)]
        ranks[text] = [int((score > score[image]).sum()) for score in scores]
    data: dict[str, Any] = {
        "title": gallery.title,
        "texts": gallery.texts,
        "images": [gallery.alternative(index) for index in range(len(gallery.keys))],
        "own": gallery.own_text,
        # of the captions with which the last model finds their own picture, the one that the first model ranks worst
        "opening": max(ranks, key=lambda text: (ranks[text][-1] == 0) * ranks[text][0], default=0),
        "thumbnails": [base64.b64encode(data).decode("ascii") for data in gallery.thumbnails],
        "models": [
            _model_data(viewer, features, seen, with_texts=bool(towers.missing))
            for viewer, features, seen in zip(gallery.viewers, gallery.features, texts, strict=True)
        ],
    }
    if not towers.missing:
        for model, inside in zip(data["models"], towers.models, strict=True):
            model |= inside
        merges = base64_of(np.frombuffer(MERGES.read_bytes(), np.uint8))  # CLIP's byte-pair encoding, gzipped
        data |= {"stems": towers.stems, "merges": merges, "function_words": " ".join(sorted(FUNCTION_WORDS))}
    return data


def _model_data(viewer: Viewer, features: ViewedImages, texts: list[ViewedText], with_texts: bool) -> dict[str, Any]:
    """Return a model's images, the names in its captions, and with_texts also its captions' tokens."""
    data: dict[str, Any] = {"label": viewer.label, "token_wise": viewer.token_wise, "grid": list(viewer.grid)}
    if viewer.has_map:
        image_tokens = features.map.flatten(0, 1)
        # the rounding keeps the products with these
        text_tokens = torch.cat([text.vectors for text in texts] or [image_tokens])
        data |= {
            "dim": features.map.shape[-1],
            "rows": features.map.shape[1],
            "image_tokens": packed(image_tokens, text_tokens),
            "names": [text.names for text in texts],
        }
        if with_texts:
            data |= {"text_tokens": packed(text_tokens, image_tokens), "tokens": [text.tokens for text in texts]}
            data["counted"] = [text.counted for text in texts]
    if not viewer.token_wise:
        # A vector per image or caption is small next to the tokens, so it is not rounded.
        data |= {"pooled_dim": features.scored.shape[-1], "image_vectors": base64_of(features.scored.float())}
        if with_texts:
            vectors = torch.cat([text.scored.values for text in texts]).float()
            data["text_vectors"] = base64_of(vectors)
    return data


def page(data: dict[str, Any]) -> str:
    """Return the whole page, which loads nothing: its content security policy allows its own parts and the pictures
    inside it. data: see :func:`static_data`."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    parts = {
        "style": resources.page_style() + (ASSETS / "style.css").read_text(encoding="utf-8"),
        "script": "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS),
        # safe inside a <script>, even if a caption contains </script>
        "data": text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
    }
    frame = (ASSETS / "page.html").read_text(encoding="utf-8")
    whole = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], frame)
    return resources.sealed(whole)


if __name__ == "__main__":
    run_command(main, ExplorerExport)
