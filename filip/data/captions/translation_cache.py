"""Cache translations on disk by engine, model and text: they are planned, made in blocks and reused by later runs.

A plan is the list of captions that the cache does not hold, sorted by length and cut into blocks. It is made
once and kept until the run is over, so that a rerun after a crash works through the very same blocks: with some
engines a translation may depend on what shares its batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from filip.common.files import digest, replacing, sha256_of
from filip.data.engines import Engine, load_engine, round_trips
from filip.data.lists import duckdb_io
from filip.data.lists.parquet_rows import row_group
from filip.data.stage import Part, do_blocks

# Captions per block. Each is one file, written in milliseconds, and a killed run loses at most one: a few captions
# make FEW_BLOCKS for the processes to share, many make MANY_BLOCKS, and in between a block has MEDIUM_BLOCK.
SMALLEST_BLOCK, MEDIUM_BLOCK, LARGEST_BLOCK = 256, 2048, 20_000
FEW_BLOCKS, MANY_BLOCKS = 32, 2000
SCHEMA = pa.schema([("text", pa.string()), ("back", pa.string())])
_engines: list[Engine] = []  # a worker process loads them once


class TranslationCache:
    """Translations by one engine, pivot and model: a folder of Parquet files (text, back)."""

    def __init__(self, root: Path, engine: str, pivot: str, models: str | None, model: str) -> None:
        self.engine, self.pivot, self.models = engine, pivot, models
        self.folder = root / f"{engine}-{pivot}-{digest(model)[:12]}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def sql(self) -> str:
        """Return SQL of (text, back), with each text once even if two runs translated it."""
        files = sorted(self.folder.glob("*.parquet"))
        if not files:
            return "(SELECT NULL::VARCHAR AS text, NULL::VARCHAR AS back WHERE false)"
        return f"(SELECT text, min(back) AS back FROM {duckdb_io.parquet(files)} GROUP BY text)"

    def plan(self, con: duckdb.DuckDBPyConnection, captions: Path, work: Path) -> Path:
        """Write the captions (column ``caption``) that are not translated yet, one row group per block."""
        path = work / f"todo-{self.folder.name}.parquet"
        if not path.exists():
            path.with_suffix(".sha256").unlink(missing_ok=True)  # the hash of an earlier plan
            total = pq.read_metadata(captions).num_rows
            shared = min(MEDIUM_BLOCK, total // FEW_BLOCKS)
            size = min(LARGEST_BLOCK, max(SMALLEST_BLOCK, shared, total // MANY_BLOCKS))
            duckdb_io.write_parquet(
                con,
                f"SELECT caption FROM {duckdb_io.parquet(captions)} ANTI JOIN {self.sql()} ON caption = text "
                "ORDER BY length(caption), caption",
                path,
                "translate: plan",
                size,
            )
        self._name(path)
        return path

    def _name(self, plan: Path) -> str:
        """Return the prefix of the block files of a plan: its hash, computed once and stored next to it.

        The plan of 300 million captions takes 10 GB, and hundreds of jobs share it.
        """
        hash_file = plan.with_suffix(".sha256")
        if not hash_file.exists():
            with replacing(hash_file, shared=True) as part:
                part.write_text(sha256_of(plan)[:16])
        return hash_file.read_text()

    def fill(self, plan: Path, processes: int, part: Part = None) -> None:
        """Translate the plan's missing blocks, or those of a part."""
        shown: Any = {"what": f"translate by {self.engine} through {self.pivot}", "unit": "captions"}
        shown |= {"start": start_engine, "start_arguments": (self.engine, self.pivot, self.models)}
        do_blocks(translate_block, plan, f"{self.folder}/{self._name(plan)}-", part, processes, **shown)


def start_engine(engine: str, pivot: str, models: str | None) -> None:
    """Load the engine in this process."""
    _engines[:] = [load_engine(engine, pivot, models)]


def translate_block(plan: Path, group: int, file: Path) -> int:
    """Translate a row group of the plan; return the number of captions."""
    texts = row_group(plan, group)["caption"].to_pylist()
    table = pa.table({"text": texts, "back": round_trips(_engines[0], texts)}, SCHEMA)
    with replacing(file, shared=True) as part:  # two runs may share a cache
        # texts are distinct: dictionaries and statistics only cost space
        pq.write_table(table, part, compression="zstd", use_dictionary=False, write_statistics=False)
    return len(texts)
