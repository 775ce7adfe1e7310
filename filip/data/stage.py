"""Cut, lock, resume and count every data stage in one way.

A stage plans numbered blocks of work, does them, and merges what they leave. ``part=3/16`` does every sixteenth block,
from the fourth, beside the other parts, and stops. A run without ``part=`` does the blocks that are missing, merges,
and writes the funnel. A block leaves one file, under its name when it is complete: so a killed part goes on where it
was, and parts give the bytes of one process.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from filip.common.errors import UserError
from filip.common.files import digest, locked, naming
from filip.common.progress import say
from filip.common.worker_pool import run_blocks
from filip.data.fetching.outcomes import reason_of
from filip.data.funnel import Fragment, write_fragment
from filip.data.lists import duckdb_io
from filip.data.lists.parquet_rows import whole_file
from filip.sets.image_set import Account

Part = tuple[int, int] | None  # (3, 16); None: the whole
PART = "0/8 to 7/8: do only this eighth, beside the others, and stop"


def parse_part(part: str | None) -> Part:
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


def share(blocks: Iterable[int], part: Part) -> list[int]:
    """Return the blocks of a part: the same ones, whatever is done already."""
    return [block for block in blocks if part is None or block % part[1] == part[0]]


@contextmanager
def sharing(work: Path, out: Path, part: Part = None) -> Iterator[None]:
    """Hold the locks of a stage that fills ``out``: the whole alone, a part together with the other parts.

    work: folder of the locks. Raises UserError if another process is at it.
    """
    busy = "{} is being filled by another process: wait for it or stop it"
    name = "" if part is None else f"part {part[0]}/{part[1]} of {out}"
    mine = locked(work / f"{part[0]}-of-{part[1]}.lock", busy.format(name)) if part else nullcontext()
    with locked(work / "lock", busy.format(out), shared=part is not None), mine:
        yield
    if part is not None:
        say(f"{name} is done; when all parts are, run the same without part=")


def do_blocks(
    function: Callable[..., int],
    table: Path,
    blocks: str,
    part: Part,
    processes: int,
    *arguments: Any,
    is_done: Callable[[int], bool] | None = None,
    **shown: Any,
) -> list[Path]:
    """Call ``function(table, group, file, *arguments)`` for each row group of a part that is not done.

    Return the files of all row groups. blocks: how their names begin. is_done: default, whether the file is there.
    shown: further arguments of :func:`filip.common.worker_pool.run_blocks`.
    """
    with pq.ParquetFile(table) as parquet:
        groups = parquet.metadata
    files = [Path(f"{blocks}{group:05d}.parquet") for group in range(groups.num_row_groups)]
    todo = [n for n in share(range(len(files)), part) if not (is_done(n) if is_done else files[n].exists())]
    total = sum(groups.row_group(group).num_rows for group in todo)
    run_blocks(function, [(table, n, files[n], *arguments) for n in todo], processes, total=total, **shown)
    return files


def sweep(work: Path, part: Part = None, finished: bool = False) -> None:
    """Remove the half-finished shards that killed workers of a part left; ``finished``: also notes and locks."""
    for path in work.iterdir():
        shard = path.name.partition(".")[0]
        if shard.isdigit() and share([int(shard)], part) and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif finished and path.suffix in (".progress", ".lock"):
            path.unlink()


@contextmanager
def work_folder(
    out: str | Path, part: Part = None, identity: Any = None, threads: int = 2, memory: str = "1GB"
) -> Iterator[tuple[Path, duckdb.DuckDBPyConnection]]:
    """Yield a folder next to ``out`` for the blocks of its stage, and DuckDB, which spills beside it.

    Parts, and the run after a killed one, find each other's blocks if their ``identity`` (JSON) is equal. A run of the
    whole removes other blocks before it begins, and all of them at its end. A mistake that is found before the first
    block leaves nothing.
    """
    out = Path(out).resolve()
    place = out.with_name(f".{out.name}.work")
    folder = place / digest(identity)[:12]
    with naming(out), sharing(place, out, part):
        for other in place.iterdir() if part is None else ():
            if other.is_dir() and other != folder:
                shutil.rmtree(other)
        folder.mkdir(exist_ok=True)
        worthless = False
        con = duckdb_io.connect(threads, memory, place / f"spill-{os.uname().nodename}-{os.getpid()}")
        try:
            yield folder, con
            worthless = True
        except UserError:
            worthless = not any(folder.glob("*-[0-9]*.parquet"))
            raise
        finally:
            con.close()
            if part is None and worthless:
                shutil.rmtree(place)


def tell(fragment: Fragment, funnel: str | None, head: str, example: Callable[[str], str]) -> None:
    """Write a command's funnel, and print ``head`` and a line with an example for each reason."""
    if funnel:
        write_fragment(funnel, fragment)
    print(head)
    for reason, count in fragment.as_dict()["dropped"].items():
        print(f"  {reason:<16} {count:>10,}  {example(reason)}".rstrip())


def account_for(
    folder: Path, shards: Iterable[int], account: Account, left_out: Iterable[tuple[int, set[int]]] = ()
) -> int:
    """Add the rows of shards that gave no image to an account; return how many did.

    left_out: shards in order, each with its rows that are counted elsewhere.
    """
    images, places = 0, iter(left_out)
    next_shard, elsewhere = next(places, (None, set()))
    for shard in shards:
        table = whole_file(folder / f"{shard:05d}.parquet", ["url", "status", "error_message"])
        for row, (url, status, error) in enumerate(zip(*(column.to_pylist() for column in table.columns), strict=True)):
            if shard == next_shard and row in elsewhere:
                continue
            reason, detail = reason_of(status, error)
            images += reason is None
            if reason is not None:
                account.add(url, f"{reason}: {detail}" if detail else reason)
        if shard == next_shard:
            next_shard, elsewhere = next(places, (None, set()))
    return images
