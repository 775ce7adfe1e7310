"""DuckDB as the out-of-core engine of the list stages: one way to connect, one way to write a result."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from filip.data.atomic import replacing

ROWS_PER_GROUP = 100_000


def connect(threads: int, memory: str, spill: Path) -> duckdb.DuckDBPyConnection:
    """A connection bounded to ``memory`` (e.g. "1GB"); what does not fit goes to files in the folder ``spill``."""
    con = duckdb.connect()
    con.execute(f"SET threads = {int(threads)}")
    con.execute(f"SET memory_limit = {quote(memory)}")
    con.execute(f"SET temp_directory = {quote(str(spill))}")
    con.execute("SET enable_progress_bar = false")
    return con


def quote(text: str) -> str:
    """``text`` as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def name(column: str) -> str:
    """``column`` as an SQL identifier."""
    return '"' + column.replace('"', '""') + '"'


def write_parquet(con: duckdb.DuckDBPyConnection, query: str, path: str | Path, what: str) -> int:
    """Stream the rows of ``query``, in its order, into a Parquet file (atomically); return how many.

    Arrow writes the file, not DuckDB's COPY: row groups then depend on the rows alone and not on the threads,
    so that the same rows give the same bytes.
    """
    reader = con.sql(query).to_arrow_reader(ROWS_PER_GROUP)
    rows, told = 0, time.monotonic()
    with replacing(path) as part, pq.ParquetWriter(part, reader.schema, compression="zstd") as writer:
        pending: list[pa.RecordBatch] = []
        held = 0
        for batch in reader:
            pending.append(batch)
            held += batch.num_rows
            while held >= ROWS_PER_GROUP:
                table = pa.Table.from_batches(pending)
                writer.write_table(table.slice(0, ROWS_PER_GROUP), ROWS_PER_GROUP)
                pending = table.slice(ROWS_PER_GROUP).to_batches()
                held -= ROWS_PER_GROUP
                rows += ROWS_PER_GROUP
                if time.monotonic() - told > 5:
                    told = time.monotonic()
                    print(f"{what}: {rows:,} rows written", file=sys.stderr, flush=True)
        if held:
            writer.write_table(pa.Table.from_batches(pending), ROWS_PER_GROUP)
            rows += held
    return rows
