"""Measure the cost of storing an image, per core: checked, resized and encoded as in `ingest` and `download`.

    python -m bench.ingest images=200

Beside it img2dataset's own resizer on the same files, a plain copy of them, and their perceptual hash.
The files are JPEGs of 640 x 480 pixels, smooth noise. Processor time, so that other work on the machine does not count.
"""

import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from filip.command import option, run_command


@dataclass
class IngestBench:
    images: int = option(200, "how many files")


def write_images(folder: Path, count: int) -> list[Path]:
    paths = []
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (480, 640, 3), np.uint8)
        paths.append(folder / f"{number:05d}.jpg")
        Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1.5)).save(paths[-1], quality=90)
    return paths


def per_second(function: Callable[[Path], object], paths: list[Path]) -> float:
    """Return the files per second on one core."""
    started = time.process_time()
    for path in paths:
        function(path)
    return round(len(paths) / (time.process_time() - started), 1)


def main(config: IngestBench) -> None:
    """Print one JSON object: images per second and core."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # img2dataset's library would ask the network
    import cv2
    import imagehash
    from img2dataset.resizer import Resizer

    from filip.data.cards import DownloadSettings, ImageRuleSettings
    from filip.data.fetching.image_rules import CheckedResizer

    cv2.setNumThreads(1)
    ours = CheckedResizer(DownloadSettings(), ImageRuleSettings())
    theirs = Resizer(256, "keep_ratio", True, encode_quality=95, encode_format="jpg")
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(Path(folder), config.images)
        stored = ours(io.BytesIO(paths[0].read_bytes()))
        assert stored[-1] is None and min(stored[1:3]) == 256
        result = {
            "stored": per_second(lambda path: ours(io.BytesIO(path.read_bytes())), paths),
            "img2dataset's resizer": per_second(lambda path: theirs(io.BytesIO(path.read_bytes())), paths),
            "copied": per_second(lambda path: shutil.copyfile(path, path.with_suffix(".copy")), paths),
            "hashed": per_second(lambda path: imagehash.phash(Image.open(path)), paths),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    run_command(main, IngestBench)
