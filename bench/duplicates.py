"""How many planted copies of pictures are found, and how many pairs of different ones: ``filip data score``'s hashes.

python -m bench.duplicates folder=/usr/share/tuxpaint/stamps     # Debian's tuxpaint-stamps-default
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from filip.cli.command import MISSING, option, run_command
from filip.data.score import NEAR, picture_hashes
from filip.images.rgb import read_rgb

Picture = Image.Image
SIDE = 320  # pixels of the longer side


def jpeg(image: Picture) -> Picture:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    return Image.open(file)


def inside(share: float) -> Callable[[Picture], Picture]:
    return lambda image: ImageOps.crop(image, round(share * min(image.size)))


KINDS: dict[str, Callable[[Picture], Picture]] = {
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "JPEG of quality 30": jpeg,
    "grey": lambda image: image.convert("L"),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "mirrored": ImageOps.mirror,
    "2 % cut at each side": inside(0.02),
    "5 % cut": inside(0.05),
    "10 % cut": inside(0.1),
    "5 % cut at a corner": lambda image: image.crop((image.width // 20, image.height // 20, *image.size)),
    "framed, blue": lambda image: ImageOps.expand(image, 20, "navy"),
    "framed, white": lambda image: ImageOps.expand(image, 20, "white"),
    "turned by 90 degrees": lambda image: image.rotate(90, expand=True),
}


def distance(one: list[int], other: list[int]) -> int:
    """Return the bits in which a picture differs from the nearest form of another, either way."""
    pairs = [(one[0], form) for form in other] + [(form, other[0]) for form in one]
    return min(((a ^ b) & (1 << 64) - 1).bit_count() for a, b in pairs)


@dataclass
class DuplicatesConfig:
    folder: str = option(MISSING, "pictures, also in folders below it")
    most: int = option(388, "pictures, evenly spaced", at_least=2)


def main(config: DuplicatesConfig) -> None:
    """Print how many copies are found, by kind, and the pairs of different pictures that are taken for copies."""
    files = sorted(path for path in Path(config.folder).rglob("*") if path.suffix in (".jpg", ".png"))
    files = [files[i] for i in np.linspace(0, len(files) - 1, min(config.most, len(files))).round().astype(int)]
    pictures = [read_rgb(path) for path in files]
    for picture in pictures:
        picture.thumbnail((SIDE, SIDE))
    hashes = [picture_hashes(picture) for picture in pictures]
    for kind, change in KINDS.items():
        copies = [picture_hashes(change(picture)) for picture in pictures]
        found = sum(distance(*pair) <= NEAR for pair in zip(hashes, copies, strict=True))
        print(f"{kind:24} {found:4} of {len(files)} found")
    pairs = [(a, b) for b in range(len(files)) for a in range(b) if distance(hashes[a], hashes[b]) <= NEAR]
    print(f"{len(pairs)} pairs of the {len(files)} pictures taken for copies")
    for a, b in pairs:
        print(f"  {files[a].relative_to(config.folder)}  {files[b].relative_to(config.folder)}")


if __name__ == "__main__":
    run_command(main, DuplicatesConfig)
