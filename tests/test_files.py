"""Files that exist whole or not at all."""

import os
import sqlite3
from pathlib import Path

import pytest

from filip.common.files import explained, naming, replacing, write_json


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a power cut could leave a finished-looking file without its bytes."""
    done: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(file: int) -> None:
        fsync(file)
        done.append(("fsync", Path(os.readlink(f"/proc/self/fd/{file}")).name))

    def recorded_replace(part: Path, path: Path) -> None:
        replace(part, path)
        done.append(("replace", Path(path).name))

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    write_json(tmp_path / "f.json", {"a": 1})
    assert done == [("fsync", ".f.json.part"), ("replace", "f.json"), ("fsync", tmp_path.name)]


def test_what_fails_half_way_leaves_the_file_as_it_was_and_says_which(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    write_json(path, 1)
    with pytest.raises(OSError) as full, replacing(path) as part:
        part.write_text("2")
        os.write(os.open("/dev/full", os.O_WRONLY), b"x")
    assert full.value.filename == str(path) and path.read_text() == "1\n"
    assert [one.name for one in tmp_path.iterdir()] == ["f.json"]


def test_a_table_that_finds_the_disk_full_is_answered_as_any_other_file(tmp_path: Path) -> None:
    table = sqlite3.connect(tmp_path / "images.sqlite")
    table.execute("PRAGMA max_page_count = 2")
    with pytest.raises(OSError, match="No space left on device") as full, naming(tmp_path / "index"):
        table.execute("CREATE TABLE a (b)")
        table.execute("INSERT INTO a VALUES (zeroblob(100000))")
    assert "No space left" in str(explained(full.value, []))
