"""Write the explorer to a file: ``filip explore export models=[clip.safetensors,filip.safetensors] labels=[CLIP,FILIP]
images=demo_scenes_new root=DIR out=explore.html``.

It opens from disk and needs no server: thumbnails, 8-bit image tokens and 8-bit tokens of the captions are
inside, and the page itself computes the late interaction of a caption with all images, every token with every patch.
Any other text needs a model: ``filip explore serve``.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import torch

from filip.command import MISSING, option, run_command
from filip.errors import UserError
from filip.explore.gallery import Gallery, GalleryOptions, ImageFeatures, Viewer
from filip.explore.packing import base64_of, packed
from filip.explore.page import page
from filip.files import replacing
from filip.progress import say, track


@dataclass
class Export(GalleryOptions):
    count: int | None = option(
        500, "maximum number of images, evenly spread; null = all. A page of 500 has 5 to 50 MB", at_least=1
    )
    out: str = option(MISSING, "the page (HTML)", writes="file")


def main(config: Export) -> None:
    """Write the explorer as one self-contained HTML file, with the images and captions of a card or folder."""
    gallery = config.gallery()
    if not gallery.texts:
        raise UserError(
            f"images={config.images} come without captions, and a page without a model cannot encode a text: give "
            "texts=FILE, one a line, or take `filip explore serve`"
        )
    text = page(static_data(gallery))
    with replacing(config.out) as part:
        part.write_text(text, encoding="utf-8")
    size = len(text.encode()) / 1e6
    say(f"{config.out}: {len(gallery.keys):,} images, {len(gallery.texts):,} texts, {size:.1f} MB")


def static_data(gallery: Gallery) -> dict[str, Any]:
    """Return all data that the page needs; arrays are base64."""
    return {
        **common_data(gallery),
        "live": False,
        "thumbnails": [base64.b64encode(data).decode("ascii") for data in gallery.thumbnails],
        "models": [
            _model_data(viewer, features, gallery)
            for viewer, features in zip(gallery.viewers, gallery.features, strict=True)
        ],
    }


def common_data(gallery: Gallery) -> dict[str, Any]:
    """Return the data of both feeds: the title, the texts to choose from, and what each image shows."""
    return {
        "title": gallery.title,
        "texts": gallery.texts,
        "images": [gallery.alternative(index) for index in range(len(gallery.keys))],
        "own": gallery.own_text,
    }


def _model_data(viewer: Viewer, features: ImageFeatures, gallery: Gallery) -> dict[str, Any]:
    texts = [
        viewer.text(text, things)
        for text, things in track(list(zip(gallery.texts, gallery.things, strict=True)), "encoding", "texts")
    ]
    data = viewer.about()
    if viewer.has_map:
        image_tokens, text_tokens = features.map.flatten(0, 1), torch.cat([text.vectors for text in texts])
        data |= {
            "dim": features.map.shape[-1],
            "rows": features.map.shape[1],
            "image_tokens": packed(image_tokens, text_tokens),
            "text_tokens": packed(text_tokens, image_tokens),
            "tokens": [text.tokens for text in texts],
            "names": [text.names for text in texts],
        }
    if not viewer.token_wise:
        # Two vectors per image and caption are small next to the tokens, so they are not rounded.
        data |= {
            "pooled_dim": features.scored.shape[-1],
            "image_vectors": base64_of(features.scored.float()),
            "text_vectors": base64_of(torch.cat([text.scored.values for text in texts]).float()),
        }
    return data


if __name__ == "__main__":
    run_command(main, Export)
