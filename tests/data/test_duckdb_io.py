"""Many Parquet files in one query, captions gathered from sorted rows, and errors in the middle of a result."""

from pathlib import Path

import duckdb
import pytest

from filip.common.errors import UserError
from filip.data.lists import duckdb_io


def test_an_error_after_the_first_rows_is_a_sentence(tmp_path: Path) -> None:
    """Arrow makes an OSError of it, which would be taken for an error of the disk."""
    con = duckdb_io.connect(2, "1GB", tmp_path / "spill")
    late = "SELECT i, CASE WHEN i > 2000000 THEN error('boom') END FROM range(3000000) t(i)"
    with pytest.raises(UserError, match=r"^numbers: Invalid Input Error: boom"):
        duckdb_io.write_parquet(con, late, tmp_path / "out.parquet", "numbers", 1000)
    assert not list(tmp_path.glob("*.parquet"))
    with pytest.raises(duckdb.Error), duckdb_io.plain_errors(con, "numbers"):
        con.sql("SELECT nothing")  # a mistake of ours stays one
