"""Look for pictures of the test sets that are, pixel by pixel, pictures of the training list.

    python -m filip_demo.twins corpus=results/demo/corpus

Prints how many pictures each test set has and how many of them are also trained on, and ends with 1 if any is. Other
copies, which differ in some pixels, are what ``filip data score test_sets=…`` looks for.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow.parquet as pq
from PIL import Image

from filip.command import MISSING, option, run_command
from filip.errors import UserError


@dataclass
class Twins:
    corpus: str = option(MISSING, "folder that filip_demo.corpus wrote")


def main(config: Twins) -> None:
    """Count the pictures of the demo's test sets that are also trained on, pixel by pixel."""
    corpus = Path(config.corpus)
    if not (corpus / "list.parquet").is_file():
        raise UserError(f"corpus={corpus} has no list.parquet: make it with `python -m filip_demo.corpus out=DIR`")
    trained = trained_pixels(corpus)
    print(f"{len(trained):,} different pictures in the training list of {corpus}")
    n_twins = 0
    for folder in sorted(path for path in (corpus / "eval").iterdir() if path.is_dir()):
        pictures = [(name, _pixels(data)) for name, data in _pictures(folder)]
        twins = [f"{name} = {trained[pixels]}" for name, pixels in pictures if pixels in trained]
        n_twins += len(twins)
        print(f"  {folder.name:<24} {len(pictures):>6,} pictures, {len(twins)} of them trained on", *twins[:3])
    if n_twins:
        raise UserError(f"{n_twins} pictures of the test sets are also in the training list")


def trained_pixels(corpus: Path) -> dict[bytes, str]:
    """Return the pictures of the training list by their pixels, without pictures that do not decode."""
    by_pixels: dict[bytes, str] = {}
    for url in pq.read_table(corpus / "list.parquet", columns=["url"])["url"].to_pylist():
        path = corpus / urlsplit(url).path.lstrip("/")
        if path.is_file():
            try:
                by_pixels.setdefault(_pixels(path.read_bytes()), str(path.relative_to(corpus)))
            except (OSError, SyntaxError):  # one of the faults that are planted in the list
                continue
    return by_pixels


def _pictures(benchmark: Path) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of the pictures of a test set, without the masks."""
    for path in sorted(benchmark.glob("test/*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.count(".") == 1 and member.name.endswith(".png"):
                    file = tar.extractfile(member)
                    assert file is not None
                    yield member.name, file.read()


def _pixels(data: bytes) -> bytes:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()


if __name__ == "__main__":
    run_command(main, Twins)
