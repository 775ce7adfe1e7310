"""An index for a server, once one machine is too small: ``filip index export index=INDEX to=qdrant out=FOLDER``.

qdrant: ``collection.json`` is the body of ``PUT /collections/NAME``; each line of ``points.jsonl`` is the body of one
``PUT /collections/NAME/points``. vespa: ``image.sd`` is the schema, whose rank profile is s^T; ``feed.jsonl`` is for
``vespa feed``. Both rank by the same late interaction as the index itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

from torch import Tensor

from filip.command import MISSING, option, run_command
from filip.files import replacing, write_json
from filip.index.store import TOKENS, Index
from filip.progress import Progress

POINTS_PER_REQUEST = 64
VESPA = """schema image {{
    document image {{
        field path type string {{ indexing: summary | attribute }}
        field tokens type tensor<float>(patch{{}}, x[{dim}]) {{ indexing: attribute }}
    }}
    rank-profile late_interaction {{
        inputs {{
            query(words) tensor<float>(word{{}}, x[{dim}])
        }}
        # s^T: the mean over the words of the largest cosine with any patch
        first-phase {{
            expression: reduce(reduce(sum(query(words) * attribute(tokens), x), max, patch), avg, word)
        }}
    }}
}}
"""


@dataclass
class Export:
    index: str = option(MISSING, "folder that `filip index build` has written")
    to: str = option(MISSING, "qdrant or vespa", choices=("qdrant", "vespa"))
    out: str = option(MISSING, "folder to write to", writes="folder")


def main(config: Export) -> None:
    """Write an index in the format of a server: Qdrant's requests or Vespa's feed."""
    index = Index.open(config.index)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    with Progress(f"exporting to {config.to}", "images", len(index)) as progress:
        FORMATS[config.to](index, out, progress)
    index.close()


def to_qdrant(index: Index, out: Path, progress: Progress) -> None:
    vectors = {"size": index.about.dim, "distance": "Dot", "multivector_config": {"comparator": "max_sim"}}
    vectors |= {"datatype": index.about.dtype, "on_disk": True, "hnsw_config": {"m": 0}}  # exact search
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


def to_vespa(index: Index, out: Path, progress: Progress) -> None:
    (out / "image.sd").write_text(VESPA.format(dim=index.about.dim), encoding="utf-8")

    def lines() -> Iterator[Any]:
        for number, (path, tokens) in enumerate(index.tokens()):
            progress.add(1)
            blocks = {str(patch): values for patch, values in enumerate(tokens.tolist())}
            yield {"put": f"id:image:image::{number}", "fields": {"path": path, "tokens": {"blocks": blocks}}}

    _write_lines(out / "feed.jsonl", lines())


FORMATS: dict[str, Callable[[Index, Path, Progress], None]] = {"qdrant": to_qdrant, "vespa": to_vespa}


def _batches(index: Index, size: int) -> Iterator[list[tuple[str, Tensor]]]:
    images = index.tokens()
    while group := list(islice(images, size)):
        yield group


def _write_lines(path: Path, lines: Iterator[Any]) -> None:
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    run_command(main, Export)
