"""Write the hits of a search as one page: the pictures, and where each word of the text is in them."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

from filip.errors import UserError
from filip.files import replacing
from filip.report.style import COLOURS, page
from filip.sets.pictures import read_image

SIDE = 480  # pixels of a picture's longer side


def write_hits(file: Path, answer: dict[str, Any]) -> None:
    """Write what `filip search json=true` prints. Boxes are drawn in a picture's own pixels, whatever its size here."""
    words = list(dict.fromkeys(word["word"] for hit in answer["hits"] for word in hit.get("words", ())))
    colours = {word: COLOURS[number % len(COLOURS)] for number, word in enumerate(words)}
    shown = "".join(_figure(place, hit, colours) for place, hit in enumerate(answer["hits"], 1))
    title = f"{answer['text']} ({answer['reason']})"
    with replacing(file) as part:
        part.write_text(page(title, f'<div class="hits">{shown}</div>'), encoding="utf-8")


def _figure(place: int, hit: dict[str, Any], colours: dict[str, str]) -> str:
    try:
        image = read_image(Path(hit["file"]))
    except UserError as error:
        return (
            f"<figure><figcaption>{place}. {html.escape(hit['path'])}: {html.escape(str(error))}</figcaption></figure>"
        )
    width, height = hit.get("size") or image.size
    image.thumbnail((SIDE, SIDE))
    stored = io.BytesIO()
    image.save(stored, "WEBP", quality=80)
    data = base64.b64encode(stored.getvalue()).decode("ascii")
    drawn, letters = "", max(width, height) / 22
    for word in hit.get("words", ()):
        left, top, right, bottom = word["box"]
        for colour, line in (("#ffffff", letters / 3), (colours[word["word"]], letters / 6)):
            drawn += (
                f'<rect x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" fill="none" '
                f'stroke="{colour}" stroke-width="{line:.1f}"/>'
            )
        drawn += (
            f'<text x="{left + letters / 3:.0f}" y="{min(top + letters * 1.2, height):.0f}" font-size="{letters:.1f}" '
            f'fill="{colours[word["word"]]}" stroke="#ffffff" stroke-width="{letters / 5:.1f}" paint-order="stroke">'
            f"{html.escape(word['word'])}</text>"
        )
    caption = f"{place}. {hit['path']}, {hit['score']:.3f}, stands out by {hit['stands_out']:+.1f}"
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(hit["path"])}">'
        f'<image href="data:image/webp;base64,{data}" width="{width}" height="{height}"/>{drawn}</svg>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>\n"
    )
