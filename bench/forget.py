"""Measure how long forgetting images takes: `filip data forget` by SHA-256, then a search of all files for their bytes.

    python -m bench.forget images=100000 forgotten=1000

Small pictures of noise in shards of 10,000, with side-cars and a manifest. The search reads every file of the data set,
Parquet files unpacked, for the bytes, the URL and the caption of each forgotten image.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from filip.command import option, run_command
from filip.data.cards import SourceCard
from filip.data.fetching.shard_maker import OrderedWriter
from filip.data.forget import ForgetConfig, forget
from filip.data.loading.config import Source
from filip.data.loading.pair_index import index_source
from filip.data.manifest import make_manifest
from filip.data.scoring.measuring import shard_images
from filip.data.sidecar import write_sidecar
from filip.data.verify import verify
from filip.files import write_json

PER_SHARD = 10_000
WORDS = re.compile(rb"https://example.org/\d+.jpg|thing number \d+")
SIDE = 24  # pixels
SCHEMA = pa.schema([(name, pa.string()) for name in ("key", "url", "caption", "status", "error_message", "sha256")])


@dataclass
class ForgetBench:
    images: int = option(100_000, "how many images")
    forgotten: int = option(1000, "how many of them are forgotten")


def url_of(number: int) -> str:
    return f"https://example.org/{number:08d}.jpg"


def picture(number: int) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG", quality=80)
    return file.getvalue()


def write_data_set(root: Path, count: int) -> None:
    for folder in ("shards/_work", "captions"):
        (root / folder).mkdir(parents=True)
    for start in range(0, count, PER_SHARD):
        shard = start // PER_SHARD
        writer = OrderedWriter(root / f"shards/{shard:05d}", SCHEMA, "jpg")
        rows = []
        for number in range(start, min(count, start + PER_SHARD)):
            data, key, caption = (picture(number), f"{shard:05d}{number - start:06d}", f"thing number {number:08d}")
            about = {"url": url_of(number), "caption": caption, "sha256": hashlib.sha256(data).hexdigest()}
            writer.write(data, key, caption, {**about, "key": key, "status": "success", "error_message": None})
            rows.append({"key": key, "captions": [caption], "origins": ["original"], "group": number})
        writer.close()
        stats = {"count": len(rows), "successes": len(rows), "failed_to_download": 0, "failed_to_resize": 0}
        write_json(root / "shards" / f"{shard:05d}_stats.json", stats)
        write_sidecar(root / "captions" / f"{shard:05d}.parquet", rows)
    urls = [url_of(number) for number in range(count)]
    pq.write_table(pa.table({"url": urls, "caption": urls}), root / "list.parquet")
    listed, shards, captions = root / "list.parquet", root / "shards", root / "captions"
    described = make_manifest(SourceCard("bench"), listed, listed, shards, captions, [], scratch=root / "m.json")
    write_json(root / "m.json", described)


def left_over(root: Path, numbers: list[int]) -> int:
    """Return how many of the images still have their bytes, URL or caption in some file."""
    wanted = {hashlib.sha256(picture(number)).digest() for number in numbers}
    texts = {text.encode() for n in numbers for text in (url_of(n), f"thing number {n:08d}")}
    found = 0
    for path in sorted(root.rglob("*")):
        if path.suffix == ".tar":
            found += sum(hashlib.sha256(data).digest() in wanted for _, data in shard_images(path))
            content = path.read_bytes()
            found += sum(picture(number)[200:] in content for number in numbers[:: max(1, len(numbers) // 20)])
        if path.suffix in (".parquet", ".index", ".json"):
            content = path.read_bytes()
            if path.suffix != ".json":
                content = json.dumps(pq.read_table(path).to_pylist(), default=str).encode()
            found += len(texts.intersection(WORDS.findall(content)))
    return found


def main(config: ForgetBench) -> None:
    """Print one JSON object: seconds and processor seconds of forgetting, and what is left (0)."""
    rng = np.random.default_rng(0)
    numbers = sorted(rng.choice(config.images, config.forgotten, replace=False).tolist())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_data_set(root, config.images)
        index_source(Source(str(root / "shards"), str(root / "captions")))
        asked = root / "asked.txt"
        asked.write_text("".join(f"{hashlib.sha256(picture(n)).hexdigest()}\n" for n in numbers))
        before = left_over(root, numbers)
        started, cpu = time.monotonic(), time.process_time()
        shards, captions = str(root / "shards"), [str(root / "captions")]
        lists, manifests = [str(root / "list.parquet")], [str(root / "m.json")]
        forget(ForgetConfig(shards, captions, lists, manifests, sha256=str(asked)))
        seconds, cpu = time.monotonic() - started, time.process_time() - cpu
        index = index_source(Source(str(root / "shards"), str(root / "captions")))
        result = {
            "images": config.images,
            "forgotten": config.forgotten,
            "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu, 1),
            "found_before": before,
            "left": left_over(root, numbers),
            "usable": len(index),
            "faults": verify(root / "m.json"),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    run_command(main, ForgetBench)
