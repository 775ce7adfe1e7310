"""Draw samples of a source's shards as training sees them: augmented, with their candidate captions.

filip report preview shards=SHARDS captions=CAPTIONS out=sheet.png
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from filip.command import MISSING, option, run_command
from filip.data.loading.config import AugmentConfig
from filip.data.loading.shard_index import shard_index
from filip.data.loading.transforms import TrainTransform
from filip.data.preprocessing import denormalize
from filip.data.sidecar import read_sidecar
from filip.errors import UserError
from filip.eval.pictures.drawing import INK, MUTED, Cell, sheet
from filip.files import replacing
from filip.rgb import read_rgb


@dataclass
class Preview:
    shards: str = option(MISSING, "folder of the shards")
    captions: str = option(MISSING, "folder of the side-cars")
    out: str = option(MISSING, "picture to write, .png", writes="file")
    count: int = option(24, "samples", at_least=1)
    image_size: int = option(128, "pixels at which images are augmented", at_least=1)
    seed: int = option(0, "seed of the augmentations", at_least=0)


def main(config: Preview) -> None:
    """Show samples of a source as training sees them: augmented, with their candidate captions."""
    if Path(config.out).suffix.lower() != ".png":
        raise UserError(f"out={config.out}: the name must end in .png")
    samples = read_samples(Path(config.shards), Path(config.captions), config.count)
    if not samples:
        raise UserError(
            f"no samples: shards={config.shards} has no tar whose side-car is in captions={config.captions}"
        )
    with replacing(config.out) as part:
        augmentation_sheet(samples, config.image_size, seed=config.seed).save(part, "PNG")
    print(f"{config.out}: {len(samples)} samples of {config.shards}")


@dataclass
class ShardSample:
    """An image of a shard, and its captions: the original first, then its back-translations."""

    key: str
    image: Image.Image
    captions: list[str]


def read_samples(shards: Path, captions: Path, count: int) -> list[ShardSample]:
    """Read up to ``count`` pairs, spread over the first shard: those with a back-translation, if there are that many.

    shards, captions: folders of a source's tars and side-cars, read as the loader reads them. Empty if there are none.
    """
    tar = min(shards.glob("*.tar"), default=None)
    sidecar = captions / f"{tar.stem}.parquet" if tar else None
    if tar is None or sidecar is None or not sidecar.is_file():
        return []
    texts = {row["key"]: row["captions"] for row in read_sidecar(sidecar)}
    index = shard_index(tar)
    images = {key: number for key, number in index.images().items() if key in texts}
    translated = [key for key in images if len(texts[key]) > 1]
    keys = translated if len(translated) >= count else list(images)
    samples = []
    with tar.open("rb") as file:
        for key in keys[:: max(1, len(keys) // max(1, count))][:count]:
            file.seek(index.offsets[images[key]])
            image = read_rgb(io.BytesIO(file.read(index.sizes[images[key]])))
            samples.append(ShardSample(key, image, texts[key]))
    return samples


def augmentation_sheet(
    samples: Sequence[ShardSample],
    size: int,
    augmented: int = 7,
    seed: int = 0,
    augment: AugmentConfig | None = None,
) -> Image.Image:
    """Draw a page: per sample the original and ``augmented`` draws of the training transform, captions below."""
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
    policy = f"AutoAugment (on {100 * augment.auto_augment:.0f} % of the images)"
    note = (
        f"Left: as downloaded. Then {augmented} draws of random resized crop ({100 * augment.crop_scale_min:.0f} to "
        f"100 % of the image), flip and {policy} at {size} px. "
        "Below, after the arrow: back-translations that may stand in for the caption."
    )
    return sheet(
        cells, 1, "What training sees", note, cell_width=(augmented + 1) * (side + gap) - gap, gap=20
    )


if __name__ == "__main__":
    run_command(main, Preview)
