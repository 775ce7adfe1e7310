"""Export an index for a Qdrant server, once one machine is too small: ``filip index export index=INDEX out=FOLDER``.

``collection.json`` is the body of ``PUT /collections/NAME``; each line of ``points.jsonl`` is the body of one
``PUT /collections/NAME/points``. The server ranks by the same late interaction as the index itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

from torch import Tensor

from filip.cli.command import MISSING, option, run_command
from filip.common.files import replacing, write_json
from filip.common.progress import Progress
from filip.index.store import Index

POINTS_PER_REQUEST = 64
TOKENS = "tokens"  # name of the vectors


@dataclass
class IndexExport:
    index: str = option(MISSING, "folder that `filip index build` has written")
    out: str = option(MISSING, "folder to write to", writes="folder")


def main(config: IndexExport) -> None:
    """Write an index as the requests that a Qdrant server takes."""
    index = Index.open(config.index)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    with Progress("exporting", "images", len(index)) as progress:
        to_qdrant(index, out, progress)
    index.close()


def to_qdrant(index: Index, out: Path, progress: Progress) -> None:
    vectors = {"size": index.about.dim, "distance": "Dot", "multivector_config": {"comparator": "max_sim"}}
    datatype = "float32" if index.about.dtype == "float32" else "float16"
    vectors |= {"datatype": datatype, "on_disk": True, "hnsw_config": {"m": 0}}  # exact search
    write_json(out / "collection.json", {"vectors": {TOKENS: vectors}})

    def lines() -> Iterator[Any]:
        number = count()
        for group in _batches(index, POINTS_PER_REQUEST):
            points = [
                {"id": next(number), "vector": {TOKENS: tokens.tolist()}, "payload": {"path": path}}
                for path, tokens in group
            ]
            progress.add(len(points))
            yield {"points": points}

    _write_lines(out / "points.jsonl", lines())


def _batches(index: Index, size: int) -> Iterator[list[tuple[str, Tensor]]]:
    images = index.tokens()
    while group := list(islice(images, size)):
        yield group


def _write_lines(path: Path, lines: Iterator[Any]) -> None:
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    run_command(main, IndexExport)
