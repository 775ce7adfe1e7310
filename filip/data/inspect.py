"""A contact sheet of random samples: the picture, both augmentations of it, and every candidate caption.

    python -m filip.data.inspect shards=SHARDS captions=CAPTIONS out=sheet.html
    python -m filip.data.inspect shards=SHARDS captions=CAPTIONS out=sheet.png count=12

Samples are drawn from the shards as the training reads them, so what is wrong here is wrong there.
"""

from __future__ import annotations

import base64
import html
import io
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from filip.command import MISSING, option, run_command
from filip.data.loading.config import AugmentConfig, Source
from filip.data.loading.pair_index import index_source, sidecar_path
from filip.data.loading.transforms import TrainTransform
from filip.data.sidecar import read_sidecar
from filip.errors import UserError
from filip.files import replacing
from filip.rgb import UNDECODABLE

TEXT_WIDTH = 520  # pixels of the captions' column in a PNG
STYLE = """body{font:15px/1.5 sans-serif;margin:2em;color:#222}td{padding:6px 10px;vertical-align:top}
img{display:inline-block;margin:1px}tr{border-top:1px solid #ddd}table{border-collapse:collapse}
small{color:#777}th{text-align:left;padding:6px 10px}"""


@dataclass
class InspectConfig:
    shards: str = option(MISSING, "folder of the shards")
    captions: str = option(MISSING, "folder of the side-cars")
    out: str = option(MISSING, "sheet to write: .html or .png", writes="file")
    count: int = option(24, "samples", at_least=1)
    views: int = option(3, "augmented views of each kind", at_least=0)
    image_size: int = option(128, "pixels of each view", at_least=1)
    seed: int = option(0, "of the choice and of the augmentations", at_least=0)


@dataclass(frozen=True)
class Sample:
    """What the sheet shows of one pair. Views are uint8 [S, S, 3]."""

    key: str
    data: bytes  # the image as it lies in the shard
    captions: list[str]
    origins: list[str]
    group: int
    plain: list[np.ndarray]  # random crop and flip
    augmented: list[np.ndarray]  # and AutoAugment


def main(config: InspectConfig) -> None:
    """Show random samples with all candidate captions and both augmentations, as HTML or PNG."""
    suffix = Path(config.out).suffix.lower()
    if suffix not in (".html", ".png"):
        raise UserError(f"out={config.out}: the name must end in .html or .png")
    found = list(samples(config))
    if suffix == ".html":
        with replacing(config.out) as part:
            part.write_text(as_html(found, config), encoding="utf-8")
    else:
        with replacing(config.out) as part:
            as_picture(found, config.image_size).save(part, "PNG")
    print(f"{config.out}: {len(found)} of {config.shards}'s samples")


def samples(config: InspectConfig) -> Iterator[Sample]:
    """Random samples, in the order of the shards. Raises UserError when there is nothing to show."""
    source = Source(config.shards, config.captions)
    index = index_source(source)
    rng = random.Random(config.seed)
    plain, augmented = (
        TrainTransform(config.image_size, AugmentConfig(auto_augment=auto_augment))
        for auto_augment in (False, True)
    )
    for number in sorted(rng.sample(range(len(index)), min(config.count, len(index)))):
        tar = index.tars[index.shard_of(number)]
        row = read_sidecar(sidecar_path(source, tar))[int(index.row[number])]
        file = os.open(tar, os.O_RDONLY)
        try:
            data = os.pread(file, int(index.size[number]), int(index.offset[number]))
        finally:
            os.close(file)
        try:
            views = [
                [
                    make.pixels(data, random.Random(f"{config.seed} {row['key']} {n}"))
                    for n in range(config.views)
                ]
                for make in (plain, augmented)
            ]
        except UNDECODABLE:
            continue
        yield Sample(row["key"], data, row["captions"], row["origins"], row["group"], *views)


def as_html(found: list[Sample], config: InspectConfig) -> str:
    """One self-contained page."""
    rows = []
    for sample in found:
        captions = "<br>".join(
            f"{html.escape(text)} <small>{html.escape(origin)}</small>"
            for text, origin in zip(sample.captions, sample.origins, strict=True)
        )
        views = ["".join(_tag(_png(view)) for view in kind) for kind in (sample.plain, sample.augmented)]
        original = _tag(sample.data, config.image_size)
        rows.append(
            f"<tr><td>{original}</td><td>{views[0]}</td><td>{views[1]}</td><td>{captions}<br>"
            f"<small>{html.escape(sample.key)}, group {sample.group}</small></td></tr>"
        )
    return (
        f"<!DOCTYPE html><html lang='en'><meta charset='utf-8'><title>Contact sheet</title><style>{STYLE}</style>"
        f"<h1>{len(found)} random samples of {html.escape(config.shards)}</h1><table><tr><th>image<th>crop and flip"
        f"<th>and AutoAugment<th>candidate captions</tr>{''.join(rows)}</table></html>"
    )


def _tag(data: bytes, height: int | None = None) -> str:
    kind = {b"\xff\xd8": "jpeg", b"\x89P": "png", b"RI": "webp"}.get(data[:2], "png")
    size = f" height={height}" if height else ""
    return f"<img{size} alt='' src='data:image/{kind};base64,{base64.b64encode(data).decode()}'>"


def _png(view: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(view).save(out, "PNG")
    return out.getvalue()


def as_picture(found: list[Sample], size: int) -> Image.Image:
    """One picture: a row per sample with the image, its views and its captions."""
    views = max((len(s.plain) + len(s.augmented) for s in found), default=0)
    sheet = Image.new("RGB", ((1 + views) * (size + 4) + TEXT_WIDTH, len(found) * (size + 4)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for y, sample in enumerate(found):
        original = Image.open(io.BytesIO(sample.data)).convert("RGB")
        original.thumbnail((size, size))
        pictures = [original, *map(Image.fromarray, [*sample.plain, *sample.augmented])]
        for x, picture in enumerate(pictures):
            sheet.paste(picture, (x * (size + 4), y * (size + 4)))
        lines = [f"{t[:70]}  ({o})" for t, o in zip(sample.captions, sample.origins, strict=True)]
        draw.multiline_text(
            ((1 + views) * (size + 4) + 6, y * (size + 4) + 4), "\n".join(lines), "black", font
        )
    return sheet


if __name__ == "__main__":
    run_command(main, InspectConfig)
