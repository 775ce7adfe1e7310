"""Use DuckDB as the out-of-core engine of the list stages: one way to connect, one way to write a result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from filip.common.errors import UserError, first_line
from filip.common.files import replacing
from filip.common.progress import Progress
from filip.data.lists.parquet_rows import rebatched

ROWS_PER_GROUP = 100_000
# A folder results/caption=x would become a column `caption` in place of the file's own.
NO_FOLDER_IS_A_COLUMN = "hive_partitioning = false"
# Files may well have a column `filename`, which is what DuckDB calls it otherwise.
WITH_FILE = "filename = '_file_'"
FILE_STEM = "parse_filename(_file_, true)"
ROW = "file_row_number = true"


def connect(threads: int, memory: str, spill: Path) -> duckdb.DuckDBPyConnection:
    """Open a connection bounded to ``memory`` (e.g. "1GB"); the rest spills to files in the folder ``spill``."""
    con = duckdb.connect()
    con.execute(f"SET threads = {int(threads)}")
    try:
        con.execute(f"SET memory_limit = {sql_literal(memory)}")
    except duckdb.Error as error:
        raise UserError(f"memory={memory} is not a size; write e.g. memory=2GB or memory=500MB") from error
    con.execute(f"SET temp_directory = {sql_literal(str(spill))}")
    con.execute("SET enable_progress_bar = false")
    return con


def sql_literal(text: str) -> str:
    """Return ``text`` as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def sql_identifier(column: str) -> str:
    """Return ``column`` as an SQL identifier."""
    return '"' + column.replace('"', '""') + '"'


@contextmanager
def plain_errors(con: duckdb.DuckDBPyConnection, what: str) -> Iterator[None]:
    """Turn a lack of memory or disk, or a file that cannot be read, into a UserError that names it."""
    errors = (duckdb.OutOfMemoryException, duckdb.IOException, duckdb.InvalidInputException, duckdb.ConversionException)
    try:
        yield
    except (*errors, OSError) as error:  # in the middle of a stream Arrow makes of them an OSError without a number
        if getattr(error, "errno", None) is not None:
            raise
        lacking = ""
        if isinstance(error, duckdb.OutOfMemoryException) or str(error).startswith("Out of Memory"):
            limit = con.sql("SELECT current_setting('memory_limit')").fetchall()[0][0]
            lacking = f"DuckDB needs more than {limit}: give more by memory=2GB, or data.memory in a study; "
        raise UserError(f"{what}: {lacking}{first_line(error)}") from error


def write_parquet(
    con: duckdb.DuckDBPyConnection,
    query: str,
    path: str | Path,
    what: str,
    rows_per_group: int | None = None,
    through: Callable[[pa.RecordBatchReader], Iterator[pa.Table]] | None = None,
) -> int:
    """Stream the rows of ``query``, in its order, into a Parquet file (atomically); return how many.

    Arrow writes the file, not DuckDB's COPY, and each row group from one chunk: row groups and their pages then
    depend on the rows alone and not on the threads, so that the same rows give the same bytes. ``through`` makes other
    tables of the rows on their way, at least one. Errors: plain_errors.
    """
    size = rows_per_group or ROWS_PER_GROUP
    with plain_errors(con, what):
        reader = con.sql(query).to_arrow_reader(size)
        if through is None:
            return write_batches(reader, reader.schema, path, what, size)
        tables = through(reader)
        first = next(tables)
        batches = (batch for table in chain([first], tables) for batch in table.to_batches())
        return write_batches(batches, first.schema, path, what, size)


def write_batches(batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: str | Path, what: str, size: int) -> int:
    """Write batches into a Parquet file (atomically), in row groups of ``size``; return the number of rows."""
    rows = 0
    with (
        replacing(path) as part,
        # URLs and captions are all different: a dictionary would not be smaller
        pq.ParquetWriter(part, schema, compression="zstd", use_dictionary=False) as writer,
        Progress(what, "rows written") as progress,
    ):
        for table in rebatched(batches, size):
            writer.write_table(table.combine_chunks(), size)
            rows += table.num_rows
            progress.add(table.num_rows)
    return rows


def parquet(paths: str | Path | Sequence[str | Path], *options: str) -> str:
    """Return SQL that reads one or several Parquet files. options: e.g. WITH_FILE."""
    # never a pattern: a bracket in a folder's name would be part of it
    files = [sql_literal(str(path)) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    listed = f"[{', '.join(files)}]"
    return f"read_parquet({', '.join([listed, NO_FOLDER_IS_A_COLUMN, *options])})"
