"""Share what every data command does: open a work folder with DuckDB, resume in it, and report the dropped rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import duckdb

from filip.common.errors import UserError
from filip.common.files import digest, locked, replacing, scratch_folder
from filip.data.fetching.outcomes import reason_of
from filip.data.funnel import Fragment, write_fragment
from filip.data.lists import duckdb_io
from filip.data.lists.parquet_rows import whole_file
from filip.sets.image_set import Account


@contextmanager
def work_folder(
    out: str | Path, threads: int = 2, memory: str = "1GB", *, keep_on_failure: bool = False
) -> Iterator[tuple[Path, duckdb.DuckDBPyConnection]]:
    """Yield a folder next to ``out`` for intermediate files, see scratch_folder, and DuckDB, which spills into it."""
    with scratch_folder(out, keep_on_failure) as scratch:
        con = duckdb_io.connect(threads, memory, scratch / "spill")
        try:
            yield scratch, con
        finally:
            con.close()


def filling(folder: Path, shared: bool = False) -> AbstractContextManager[None]:
    """Hold the lock of a folder of shards, alone or ``shared``. Raises UserError if another process holds it."""
    busy = f"{folder} is being filled by another process: wait for it or stop it"
    return locked(folder / "_work" / "lock", busy, shared)


def resume(folder: Path, identity: Any) -> None:
    """Delete the Parquet files that a killed run left in ``folder``, unless it had the same ``identity`` (JSON)."""
    stamp, identity_hash = folder / "identity", digest(identity)
    if stamp.exists() and stamp.read_text() == identity_hash:
        return
    for path in folder.rglob("*.parquet"):
        path.unlink()
    with replacing(stamp) as part:
        part.write_text(identity_hash)


def tell(fragment: Fragment, funnel: str | None, head: str, example: Callable[[str], str]) -> None:
    """Write a command's funnel, and print ``head`` and a line with an example for each reason."""
    if funnel:
        write_fragment(funnel, fragment)
    print(head)
    for reason, count in fragment.as_dict()["dropped"].items():
        print(f"  {reason:<16} {count:>10,}  {example(reason)}".rstrip())


def parse_part(part: str | None) -> tuple[int, int] | None:
    """Parse "3/16" into (3, 16), None and "" into None. Raises UserError for anything else."""
    if not part:
        return None
    index, _, count = part.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        last = f", here 0/{count} to {int(count) - 1}/{count}" if count.isdecimal() and int(count) else ""
        raise UserError(
            f"part={part}: parts are counted from 0{last}; e.g. part=$SLURM_ARRAY_TASK_ID/8 with sbatch --array=0-7"
        )
    return int(index), int(count)


def account_for(described: Path, account: Account, left_out: Collection[int] = ()) -> int:
    """Add the rows of a shard's Parquet file that gave no image to an account; return how many did.

    left_out: rows that are counted elsewhere.
    """
    table = whole_file(described, ["url", "status", "error_message"])
    images = 0
    for row, (url, status, error) in enumerate(zip(*(column.to_pylist() for column in table.columns), strict=True)):
        reason, detail = reason_of(status, error)
        if row in left_out:
            continue
        if reason is None:
            images += 1
        else:
            account.add(url, f"{reason}: {detail}" if detail else reason)
    return images


class ByShard:
    """Look-up, shard after shard, in an iterator that is in their order; ``nothing`` for a shard without an entry."""

    def __init__(self, found: Iterator[tuple[Any, Any]], nothing: Any) -> None:
        self._found, self._nothing = found, nothing
        self._next = next(found, None)

    def of(self, shard: Any) -> Any:
        while self._next is not None and self._next[0] < shard:
            self._next = next(self._found, None)
        return self._next[1] if self._next is not None and self._next[0] == shard else self._nothing
