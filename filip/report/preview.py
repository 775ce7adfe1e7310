"""What training sees: samples of a source's shards, augmented as the loader does, with their candidate captions."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image, ImageOps

from filip.data.loading.config import AugmentConfig
from filip.data.loading.transforms import TrainTransform, denormalize
from filip.eval.pictures import INK, MUTED, Cell, sheet

IMAGES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass
class ShardSample:
    """An image of a shard, and its captions: the original first, then its back-translations."""

    key: str
    image: Image.Image
    captions: list[str]


def read_samples(shards: Path, captions: Path | None, count: int) -> list[ShardSample]:
    """Up to ``count`` samples, spread over the first shard; those with a back-translation come first.

    Captions are those of the side-car where there is one, else of the tar.
    """
    tars = sorted(shards.glob("*.tar")) if shards.is_dir() else []
    if not tars:
        return []
    tar = tars[0]
    sidecar = captions / f"{tar.stem}.parquet" if captions else None
    texts: dict[str, list[str]] = {}
    if sidecar and sidecar.is_file():
        table = pq.read_table(sidecar, columns=["key", "captions"]).to_pydict()
        texts = dict(zip(table["key"], table["captions"], strict=True))
    with tarfile.open(tar) as file:
        members = {m.name: m for m in file.getmembers() if m.name.lower().endswith(IMAGES)}
        several = [n for n in members if len(texts.get(Path(n).stem, [])) > 1]
        names = several if len(several) >= count else list(members)
        step = max(1, len(names) // max(1, count))
        samples = []
        for name in names[::step][:count]:
            data = file.extractfile(members[name])
            if data is None:
                continue
            key = Path(name).stem
            image = Image.open(io.BytesIO(data.read())).convert("RGB")
            samples.append(ShardSample(key, image, texts.get(key) or _text_of(file, key)))
    return samples


def _text_of(file: tarfile.TarFile, key: str) -> list[str]:
    try:
        member = file.extractfile(f"{key}.txt")
    except KeyError:
        return []
    return [member.read().decode("utf-8", "replace").strip()] if member else []


def augmentation_sheet(
    samples: Sequence[ShardSample],
    size: int,
    augmented: int = 7,
    seed: int = 0,
    augment: AugmentConfig | None = None,
) -> Image.Image:
    """A page: per sample the original and ``augmented`` draws of the training transform, captions below."""
    augment = augment or AugmentConfig()
    transform = TrainTransform(size, augment)
    side, gap = 96, 6
    cells = []
    for number, sample in enumerate(samples):
        strip = Image.new("RGB", ((augmented + 1) * (side + gap) - gap, side), "white")
        original = ImageOps.contain(sample.image, (side, side), Image.Resampling.LANCZOS)
        strip.paste(original, ((side - original.width) // 2, (side - original.height) // 2))
        for draw in range(augmented):
            pixels = denormalize(transform(sample.image, seed=seed + 1000 * number + draw))
            picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)
            strip.paste(picture, ((draw + 1) * (side + gap), 0))
        words = [(text, INK if i == 0 else MUTED) for i, text in enumerate(sample.captions[1:3])]
        words = [(f"→ {text}", MUTED) for text, _ in words]
        cells.append(Cell(strip, sample.captions[0] if sample.captions else sample.key, words))
    policy = f"AutoAugment (on {100 * augment.auto_augment_probability:.0f} % of the images)"
    note = (
        f"Left: as downloaded. Then {augmented} draws of random resized crop ({100 * augment.crop_scale_min:.0f} to "
        f"100 % of the image), flip and {policy} at {size} px. "
        "Below, after the arrow: back-translations that may stand in for the caption."
    )
    return sheet(
        cells, 1, "What training sees", note, cell_width=(augmented + 1) * (side + gap) - gap, gap=20
    )
