"""Many Parquet files in one query, captions gathered from sorted rows, and errors in the middle of a result."""

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filip.common.errors import UserError
from filip.data.lists import duckdb_io

COLUMNS = ["key", "caption", "sha256", "team"]


def test_columns_of_files_that_differ_are_those_of_union_by_name(tmp_path: Path) -> None:
    tables = [
        pa.table({"key": ["a", "b"], "caption": ["one", None], "sha256": ["x", "y"], "more": [1, 2]}),
        pa.table({"sha256": ["z"], "key": ["c"], "caption": ["three"]}),  # another order, a column less
        pa.table({"key": ["d"], "caption": ["four"], "sha256": pa.nulls(1), "team": [7]}),
        pa.table({"key": ["e"], "caption": ["five"], "sha256": ["v"], "team": ["7b"]}),  # another type
    ]
    files = [tmp_path / f"{number:05d}.parquet" for number in range(len(tables))]
    for table, path in zip(tables, files, strict=True):
        pq.write_table(table, path)
    result = duckdb_io.columns_of_many(files, COLUMNS, duckdb_io.WITH_FILE, duckdb_io.ROW)
    whole = duckdb_io.parquet(files, duckdb_io.WITH_FILE, duckdb_io.ROW, "union_by_name = true")
    con = duckdb_io.connect(2, "1GB", tmp_path / "spill")
    names = f"{', '.join(COLUMNS)}, {duckdb_io.FILE_STEM} AS file, file_row_number"
    rows, expected = (
        con.sql(f"SELECT {names} FROM {source} ORDER BY file, file_row_number").fetchall() for source in (result, whole)
    )
    assert rows == expected and rows[3] == ("d", "four", None, "7", "00002", 0)
    nowhere = duckdb_io.columns_of_many(files, ["key", "nowhere"])
    assert con.sql(f"SELECT key FROM {nowhere} WHERE nowhere IS NULL ORDER BY key").fetchall() == [
        (key,) for key in "abcde"
    ]


def test_a_file_among_many_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "0.parquet")
    (tmp_path / "1.parquet").write_text("no Parquet")
    with pytest.raises(UserError, match=r"1\.parquet is not Parquet"):
        duckdb_io.columns_of_many([tmp_path / "0.parquet", tmp_path / "1.parquet"], ["key"])


def test_an_error_after_the_first_rows_is_a_sentence(tmp_path: Path) -> None:
    """Arrow makes an OSError of it, which would be taken for an error of the disk."""
    con = duckdb_io.connect(2, "1GB", tmp_path / "spill")
    late = "SELECT i, CASE WHEN i > 2000000 THEN error('boom') END FROM range(3000000) t(i)"
    with pytest.raises(UserError, match=r"^numbers: Invalid Input Error: boom"):
        duckdb_io.write_parquet(con, late, tmp_path / "out.parquet", "numbers", 1000)
    assert not list(tmp_path.glob("*.parquet"))
    with pytest.raises(duckdb.Error), duckdb_io.plain_errors(con, "numbers"):
        con.sql("SELECT nothing")  # a mistake of ours stays one
