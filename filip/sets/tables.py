"""Read the rows of a table, one after the other: CSV, TSV, JSON lines (plain or compressed), a list in JSON, Parquet.

A line that cannot be read is a :class:`Broken` row, so that nothing is lost silently. Memory is bounded by the longest
row, except for JSON, which is read whole.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from filip.common.errors import UserError, first_line
from filip.common.text_files import NotAFileError, TextLine, decoded, lines, read_file

KINDS = {  # of a table, by the end of its name
    ".csv": "csv",
    ".tsv": "tsv",
    **dict.fromkeys((".jsonl", ".jsonlines", ".ndjson"), "jsonl"),
    ".parquet": "parquet",
}
PACKED = (".gz", ".zst", ".bz2")
SUFFIXES = (*KINDS, *(table + packed for table in KINDS if table != ".parquet" for packed in PACKED))
JSON_PACKED = tuple(".json" + packed for packed in PACKED)
LOOKED_AT = 1000  # the keys in this many lines of JSON are the columns
LONGEST_RECORD = 100  # maximum lines of a quoted cell
csv.field_size_limit(10_000_000)


@dataclass(frozen=True)
class Broken:
    """A line, or a row of a Parquet file, that cannot be read."""

    number: int
    why: str
    reason: str = "broken_line"


Record = dict[str, Any]


@dataclass
class Rows:
    """Rows of a table, to be iterated over once, and the names of its columns."""

    names: list[str]
    rows: Iterator[tuple[int, Record] | Broken]  # with the number of the line or row, from 1


def read_table(
    path: Path, header: bool = True, names: Sequence[str] = (), kind: str | None = None, encoding: str | None = None
) -> Rows:
    """Return the rows of a table. Raises UserError if nothing in it can be understood.

    header: the first line names the columns. names: of the columns, if it does not. kind: csv, tsv, txt (either), json,
    jsonl or parquet; None: by the suffix. encoding: of the lines; None: found out.
    """
    kind = kind or _kind(path)
    try:
        if kind == "parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            try:
                columns = list(pq.read_schema(path).names)
            except pa.ArrowException as error:
                raise UserError(f"{path} is not Parquet, or not whole ({first_line(error)})") from error
            return Rows(columns, parquet_rows(path, columns))
        if kind == "json":
            return _numbered(_objects_of(path))
        source = _lines(_opened(path), encoding)
        if kind == "jsonl":
            return _numbered(_json_lines(source))
        return _csv(path, source, kind, header, names)
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, NotAFileError):
            raise
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error


def _kind(path: Path) -> str:
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return {**KINDS, ".txt": "txt", ".json": "json"}.get(Path(name).suffix, "jsonl")


def _opened(path: Path) -> BinaryIO:
    read_file(path, size=0)  # a pipe is never opened
    name = path.name.lower()
    if name.endswith(".gz"):
        return cast(BinaryIO, gzip.open(path))
    if name.endswith(".bz2"):
        return cast(BinaryIO, bz2.open(path))
    if name.endswith(".zst"):
        import pyarrow as pa

        return cast(BinaryIO, pa.input_stream(str(path), compression="zstd"))
    return open(path, "rb")


def _lines(stream: BinaryIO, encoding: str | None = None) -> Iterator[TextLine]:
    """Yield the lines; if a compressed file is cut off, the last one reports it."""
    number = 0
    try:
        with stream:
            for line in lines(stream, encoding):
                number = line.number
                yield line
    except (EOFError, OSError, zlib.error) as error:
        if getattr(error, "errno", None) is not None:
            raise
        yield TextLine(number + 1, None, f"the file is cut off or damaged here, and the rest is lost ({error})")


# ---- CSV ---------------------------------------------------------------------------------------------


def _csv(path: Path, lines: Iterator[TextLine], kind: str, header: bool, names: Sequence[str]) -> Rows:
    source = (line for line in lines if line.text is None or line.text.strip())
    first = next(source, None)
    if first is None:
        raise UserError(f"{path} is empty: it needs a line with the names of its columns, and rows")
    names_delimiter = (first.text or "").lower().strip().startswith("sep=")  # Excel's way to name the delimiter
    delimiter = "\t" if kind == "tsv" else _delimiter(first.text or "", kind, len(names))
    if names_delimiter:
        delimiter = (first.text or "").strip()[4:5] or "\t"
        first = next(source, TextLine(2, ""))
    rows = _records(chain([first], source), delimiter)
    if names:
        columns = list(names)
    else:
        line = next(rows)
        if isinstance(line, Broken):
            raise UserError(f"{path}: the first line cannot be read: {line.why}")
        columns = [name.strip() for name in line[1]]
        if not header:
            columns, rows = [f"column{n}" for n in range(len(columns))], chain([line], rows)
    return Rows(columns, _named(rows, columns))


def _delimiter(first: str, kind: str, columns: int) -> str:
    """Return the separator of the columns: a comma, or what Excel writes where the comma is decimal.

    columns: how many there are, if the first line does not name them.
    """
    if kind == "txt" and "\t" in first:
        return "\t"
    if columns:
        return next((sign for sign in ",;\t|" if first.count(sign) == columns - 1), ",")
    return max(",;\t|", key=first.count)


def _records(source: Iterator[TextLine], delimiter: str) -> Iterator[tuple[int, list[str]] | Broken]:
    """Yield the cells of each row; a quoted cell may have several lines. An open quote costs only its line."""
    ahead: deque[TextLine] = deque()
    while True:
        line = ahead.popleft() if ahead else next(source, None)
        if line is None:
            return
        if line.text is None:
            yield Broken(line.number, line.problem)
            continue
        # tab-separated lists never quote: captions hold stray quotes
        if delimiter == "\t" or '"' not in line.text:
            yield line.number, line.text.split(delimiter)
            continue
        cells, why = _cells(line.text, delimiter)
        used = 0
        while cells is None and why == OPEN and used < LONGEST_RECORD:
            if used == len(ahead):
                more = next(source, None)
                if more is None:
                    break
                ahead.append(more)
            if ahead[used].text is None:
                break
            used += 1
            cells, why = _cells(
                "\n".join([line.text, *(str(line_used.text) for line_used in islice(ahead, used))]), delimiter
            )
        if cells is None:
            yield Broken(line.number, "a quote is not closed" if why == OPEN else why)
            continue
        for _ in range(used):
            ahead.popleft()
        yield line.number, cells


OPEN = "unexpected end of data"


def _cells(text: str, delimiter: str) -> tuple[list[str] | None, str]:
    try:
        # as a stream, so that a line end inside a quoted cell stays one
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        return None, str(error)
    return (rows[0], "") if len(rows) == 1 else (None, "several rows in one")


def _named(rows: Iterator[tuple[int, list[str]] | Broken], columns: list[str]) -> Iterator[tuple[int, Record] | Broken]:
    for line in rows:
        if isinstance(line, Broken):
            yield line
        elif len(line[1]) != len(columns):
            yield Broken(line[0], f"it has {len(line[1])} cells, the table has {len(columns)} columns")
        else:
            yield line[0], dict(zip(columns, line[1], strict=True))


# ---- JSON --------------------------------------------------------------------------------------------


def json_in(path: Path) -> Any:
    """Return the content of a JSON file, compressed or not. Raises UserError if it is not JSON."""
    try:
        with _opened(path) as stream:
            text = decoded(stream.read())
        if text is None:
            raise ValueError("its bytes are not text")
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({first_line(error)}); JSON lines end in .jsonl") from error


def _objects_of(path: Path) -> Iterator[tuple[int, Record] | Broken]:
    try:
        content = json_in(path)
    except UserError:
        objects = _json_lines(_lines(_opened(path)))
        first = next(objects, None)
        if first is None or isinstance(first, Broken):
            raise
        yield from chain([first], objects)  # JSON lines under another name
        return
    if isinstance(content, dict):
        content = list(content.values())
    if not isinstance(content, list):
        raise UserError(f"{path} is not a readable json table: it should be a list of objects")
    for number, row in enumerate(content, 1):
        yield (number, row) if isinstance(row, dict) else Broken(number, "it is not an object")


def _json_lines(source: Iterator[TextLine]) -> Iterator[tuple[int, Record] | Broken]:
    for line in source:
        if line.text is None:
            yield Broken(line.number, line.problem)
        elif line.text.strip():
            try:
                row = json.loads(line.text)
            except (ValueError, RecursionError) as error:
                yield Broken(line.number, f"not JSON ({first_line(error)})")
                continue
            yield (line.number, row) if isinstance(row, dict) else Broken(line.number, "it is not an object")


def _numbered(rows: Iterator[tuple[int, Record] | Broken]) -> Rows:
    """Return the rows, with the keys of the first ones as columns."""
    start = list(islice(rows, LOOKED_AT))
    keys = dict.fromkeys(key for row in start if not isinstance(row, Broken) for key in row[1])
    return Rows(list(keys), chain(start, rows))


# ---- Parquet -----------------------------------------------------------------------------------------


def parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Record] | Broken]:
    """Yield the rows of a Parquet file with these columns; those on a damaged page are broken."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        number, batches = 0, map(batch_rows, file.iter_batches(1000, columns=list(columns)))
        try:
            for number, row in enumerate(chain.from_iterable(batches), 1):
                yield number, row
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            for lost in range(number + 1, file.metadata.num_rows + 1):
                yield Broken(lost, f"the file is damaged ({first_line(error)})", "unreadable")


def batch_rows(batch: Any) -> Iterable[Record]:
    """Return the rows of a record batch; a text that is not UTF-8 is decoded as in a text file, or None."""
    try:
        return cast("list[Record]", batch.to_pylist())
    except UnicodeDecodeError:
        columns = [[_value(cell) for cell in column] for column in batch.columns]
        return [dict(zip(batch.schema.names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return decoded(cell.as_buffer().to_pybytes()) if hasattr(cell, "as_buffer") else None
