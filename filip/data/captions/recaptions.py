"""Caption images anew by an engine that sees them: candidates next to the translations, kept in a file per shard.

They stand last among the captions of an image, and training draws them with a weight (``data.recaption_weight``).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from filip.data.captions.acceptance import loops
from filip.data.engines import Captioner, load_captioner
from filip.data.lists.language import are_english
from filip.data.lists.parquet_rows import whole_file
from filip.data.scoring.measuring import shard_images
from filip.data.sidecar import OF_IMAGE, SCHEMA
from filip.files import digest, file_state, replacing
from filip.rgb import UNDECODABLE
from filip.words import words_of
from filip.worker_pool import run_blocks

BATCH = 16  # images
SAMPLES = 10  # candidates shown per reason
_captioners: list[Captioner] = []  # a worker process loads it once


class Recaptions:
    """Captions of a folder's images by one engine and model, and the account of those that were accepted."""

    def __init__(self, root: Path, engine: str, models: str | None, shards: Path, english: bool) -> None:
        self.engine, self.models, self.shards, self.english = engine, models, shards, english
        self.origin = f"{engine}{OF_IMAGE}"
        self.folder = root / f"{engine}-image-{digest(load_captioner(engine, models).model)[:12]}"
        self.counts: Counter[str | None] = Counter()
        self.samples: dict[str, list[dict[str, str]]] = defaultdict(list)

    def _file(self, shard: str) -> Path:
        # a tar in a bucket has no time here; what describes it changes with it
        state = file_state(self.shards / f"{shard}.tar") or file_state(self.shards / f"{shard}.parquet")
        return self.folder / f"{shard}-{digest(state)[:12]}.parquet"

    def fill(self, processes: int, part: tuple[int, int] | None = None) -> None:
        """Caption the images of all shards that are not done; part (i, n): only of every n-th, from the i-th."""
        index, count = part or (0, 1)
        tars = sorted(self.shards.glob("*.tar"))[index::count]
        todo = [(tar, file) for tar in tars if not (file := self._file(tar.stem)).exists()]
        run_blocks(
            caption_shard,
            todo,
            processes,
            what=f"captions of images by {self.engine}",
            unit="images",
            total=sum(pq.read_metadata(tar.with_suffix(".parquet")).num_rows for tar, _ in todo),
            start=start_captioner,
            start_arguments=(self.engine, self.models),
        )

    def add(self, shard: str, sidecar: pa.Table) -> pa.Table:
        """Return a side-car with the accepted captions of its images, and count all of them."""
        made = whole_file(self._file(shard))
        texts = dict(zip(made["key"].to_pylist(), made["text"].to_pylist(), strict=True))
        rows = sidecar.to_pylist()
        found = [" ".join((texts.get(row["key"]) or "").split()) for row in rows]
        english = are_english(found) if self.english else [True] * len(found)
        for row, text, understood in zip(rows, found, english, strict=True):
            reason = _rejection(text, row["captions"]) or (None if understood else "not_english")
            self.counts[reason] += 1
            if len(shown := self.samples[reason or "accepted"]) < SAMPLES:
                shown.append(
                    {"caption": row["captions"][0], "back": text, "pivot": "image", "shard": shard, "key": row["key"]}
                )
            if reason is None:
                row["captions"].append(text)
                row["origins"].append(self.origin)
        return pa.Table.from_pylist(rows, SCHEMA)


def _rejection(text: str, captions: list[str]) -> str | None:
    words = words_of(text)
    if not words:
        return "empty"
    if any(words == words_of(caption) for caption in captions):
        return "identical"
    return "repetitive" if loops([], words) else None


def start_captioner(engine: str, models: str | None) -> None:
    """Load the engine in this process."""
    _captioners[:] = [load_captioner(engine, models)]


def caption_shard(tar: Path, file: Path) -> int:
    """Write key and caption of each image of a shard that can be decoded; return how many."""
    from filip.data.loading.images import decode

    rows = whole_file(tar.with_suffix(".parquet"))
    several = "captions" in rows.column_names
    known = rows["captions" if several else "caption"].to_pylist()
    first = {
        key: (text[0] if text else "") if several else text or ""
        for key, text in zip(rows["key"].to_pylist(), known, strict=True)
    }
    keys: list[str] = []
    texts: list[str] = []
    waiting: list[tuple[str, Any]] = []

    def flush() -> None:
        names, images = zip(*waiting, strict=True)
        made = _captioners[0].captions(images, [first.get(name, "") for name in names])
        if len(made) != len(names):
            raise RuntimeError(f"{type(_captioners[0]).__name__} gave {len(made)} captions of {len(names)} images")
        keys.extend(names)
        texts.extend(made)
        waiting.clear()

    for key, data in shard_images(tar):
        try:
            waiting.append((key, Image.fromarray(decode(data))))
        except UNDECODABLE:
            continue
        if len(waiting) == BATCH:
            flush()
    if waiting:
        flush()
    with replacing(file, shared=True) as part:
        pq.write_table(pa.table({"key": pa.array(keys, pa.string()), "text": pa.array(texts, pa.string())}), part)
    return len(keys)
