"""Search a gallery: any text against all images, and pictures that the user uploads. Thread-safe by one lock."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from filip.errors import UserError
from filip.eval.scorer import Texts
from filip.explore.gallery import THUMBNAIL, Gallery, ViewedImages, ViewedText, Viewer
from filip.explore.packing import base64_of
from filip.sets.pictures import thumbnail

MOST_RANKED = 60  # as many as the page can show
WITH_MAPS = 12  # as many as it shows first
TEXTS_KEPT = 32  # recent texts, so that looking at their images does not encode them again
UPLOADS_KEPT = 20


@dataclass
class RankedGallery:
    """A text encoded by one model, and the score of every image."""

    text: ViewedText
    scores: Tensor


@dataclass
class Upload:
    """A user's picture encoded by every model."""

    features: list[ViewedImages]
    thumbnail: bytes


class GallerySearch:
    """Answers to the requests of the live page."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self.lock = threading.Lock()  # one request at a time: torch itself uses all cores
        self.recent: OrderedDict[str, list[RankedGallery]] = OrderedDict()
        self.uploads: OrderedDict[str, Upload] = OrderedDict()
        self.things = dict(zip(gallery.texts, gallery.things, strict=True))
        self.encoded_texts: list[Texts] | None = None

    def search(self, text: str) -> dict[str, Any]:
        """Return each model's best images, their scores, and the cosines of all pairs of tokens for the first ones."""
        with self.lock:
            return {"models": [self._found(n, ranked) for n, ranked in enumerate(self._ranked(text))]}

    def look(self, text: str, images: list[str]) -> dict[str, Any]:
        """Return for each model the score, rank and cosines of some images. Raises UserError for an unknown one."""
        with self.lock:
            found = self._ranked(text)
            return {"models": [[self._seen(n, ranked, image) for image in images] for n, ranked in enumerate(found)]}

    def texts(self, image: str, count: int) -> dict[str, Any]:
        """Return for each model the gallery's texts that fit an image best by s^I, with their scores."""
        with self.lock:
            if not self.gallery.texts:
                return {"models": [[] for _ in self.gallery.viewers]}
            if self.encoded_texts is None:
                self.encoded_texts = [v.scorer.encode_texts(self.gallery.texts) for v in self.gallery.viewers]
            lists = []
            for number, viewer in enumerate(self.gallery.viewers):
                features = self._features(number, image)
                scores = viewer.scorer.similarity(features.scored, self.encoded_texts[number]).i2t[0]
                best = scores.argsort(descending=True, stable=True)[:count].tolist()
                lists.append([[self.gallery.texts[text], float(scores[text])] for text in best])
            return {"models": lists}

    def upload(self, image: Image.Image) -> tuple[str, bytes]:
        """Encode a picture; return its new name and its thumbnail. The oldest of many is forgotten."""
        with self.lock:
            features = [viewer.images(viewer.scorer.transform(image)[None]) for viewer in self.gallery.viewers]
            name = f"u{secrets.token_urlsafe(12)}"
            self.uploads[name] = Upload(features, thumbnail(image, THUMBNAIL))
            while len(self.uploads) > UPLOADS_KEPT:
                self.uploads.popitem(last=False)
            return name, self.uploads[name].thumbnail

    # ---- inside the lock --------------------------------------------------------------------------

    def _ranked(self, text: str) -> list[RankedGallery]:
        if text not in self.recent:
            self.recent[text] = [
                self._rank(viewer, features, text)
                for viewer, features in zip(self.gallery.viewers, self.gallery.features, strict=True)
            ]
            if len(self.recent) > TEXTS_KEPT:
                self.recent.popitem(last=False)
        self.recent.move_to_end(text)
        return self.recent[text]

    def _rank(self, viewer: Viewer, features: ViewedImages, text: str) -> RankedGallery:
        encoded = viewer.text(text, self.things.get(text, ()))
        return RankedGallery(encoded, viewer.scores(features, encoded))

    def _found(self, number: int, ranked: RankedGallery) -> dict[str, Any]:
        order = ranked.scores.argsort(descending=True, stable=True)[:MOST_RANKED].tolist()
        features = self.gallery.features[number]
        return {
            **self.gallery.viewers[number].about(),
            "order": order,
            "scores": ranked.scores[order].tolist(),
            "total": len(ranked.scores),
            "tokens": ranked.text.tokens,
            "names": ranked.text.names,
            "counted": ranked.text.counted,
            "unknown": ranked.text.unknown,
            "maps": [_map(features[[image]], ranked.text) for image in order[:WITH_MAPS]],
        }

    def _seen(self, number: int, ranked: RankedGallery, image: str) -> dict[str, Any]:
        features = self._features(number, image)
        if image in self.uploads:
            score = float(self.gallery.viewers[number].scores(features, ranked.text)[0])
            rank = int((ranked.scores > score).sum()) + 1
        else:
            position = int(image)
            score = float(ranked.scores[position])
            # the first of equal ones, as in the order
            rank = int((ranked.scores > score).sum() + (ranked.scores[:position] == score).sum()) + 1
        return {"score": score, "rank": rank, "map": _map(features, ranked.text)}

    def _features(self, number: int, image: str) -> ViewedImages:
        """Return the features of one image: a position in the gallery, or the name of an upload."""
        if image in self.uploads:
            return self.uploads[image].features[number]
        # isdecimal alone would let other alphabets' digits and numbers of any length pass
        if image.isascii() and image.isdecimal() and len(image) < 10 and int(image) < len(self.gallery.keys):
            return self.gallery.features[number][[int(image)]]
        gone = " (the server keeps the last few)" if image.startswith("u") else ""
        raise UserError(f"there is no image {image[:40]!r}{gone}")


def _map(features: ViewedImages, text: ViewedText) -> str:
    """Return the cosines of all tokens of one image with all tokens of a text, [rows, tokens] float32."""
    if not text.tokens:
        return ""
    return base64_of((features.map[0] @ text.vectors.T).float())


def warm(search: GallerySearch) -> None:
    """Do the work of the first search in advance: compile kernels, touch memory."""
    search.search("")
    with search.lock:
        search.recent.clear()
