"""Select the pairs to train on by the scores in their side-cars.

    python -m filip.data.select captions=SCORED out=SELECTED keep=["similarity > 0.25", "near_distance > 3"]

The images stay where they are: the result is a folder of side-cars with the rows that meet all conditions, so that
another threshold takes seconds. A condition is SQL over the side-car's columns (see :mod:`filip.data.score`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import duckdb

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError, counted
from filip.common.progress import track
from filip.data.lists.columns import where_condition
from filip.data.lists.duckdb_io import parquet, plain_errors
from filip.data.sidecar import write_sidecar


@dataclass
class SelectConfig:
    captions: str = option(MISSING, "folder of the scored side-cars")
    out: str = option(MISSING, "folder of the side-cars that are kept", writes="folder")
    keep: list[str] = option(MISSING, 'conditions that a pair has to meet, e.g. keep=["similarity > 0.25"]')


def main(config: SelectConfig) -> None:
    """Keep the pairs with scores that meet all conditions, by writing side-cars without the others."""
    kept, dropped = select(config)
    print(f"{config.out}: {kept:,} of {kept + dropped.total():,} pairs; dropped {counted(dropped)}")


def select(config: SelectConfig) -> tuple[int, Counter[str]]:
    """Write the selected side-cars; return how many pairs are kept, and how many meet not even this condition first.

    Raises UserError for a condition that cannot be read.
    """
    files, out = sorted(Path(config.captions).glob("*.parquet")), Path(config.out)
    if not files:
        raise UserError(f"no *.parquet in {config.captions}: give the folder that `filip data score` wrote")
    if out.resolve() == Path(config.captions).resolve():
        raise UserError(f"out={config.out} is the folder of the side-cars themselves: give another one")
    if not config.keep:
        raise UserError('nothing to select by: give conditions, e.g. keep=["similarity > 0.25"]')
    with duckdb.connect() as con, plain_errors(con, "select"):
        con.execute("SET threads = 1")  # the rows keep the side-car's order
        con.execute(f"CREATE TEMP VIEW listed AS SELECT * FROM {parquet(files[0])}")
        types = {row[0]: row[1] for row in con.sql("DESCRIBE listed").fetchall()}
        conditions = [where_condition(con, text, types, is_text=False, setting="keep") for text in config.keep]
        first = " ".join(f"WHEN NOT {sql} THEN {number}" for number, sql in enumerate(conditions))
        kept, dropped = 0, Counter[str]()
        for path in track(files, "select", "shards", total=len(files)):
            table = con.sql(f"SELECT *, CASE {first} END AS _failed FROM {parquet(path)}").to_arrow_table()
            failed = table["_failed"]
            dropped.update(config.keep[number] for number in failed.drop_null().to_pylist())
            chosen = table.filter(failed.is_null()).drop_columns("_failed")
            write_sidecar(out / path.name, chosen)
            kept += len(chosen)
    for path in {*out.glob("*.parquet")} - {out / file.name for file in files}:
        path.unlink()
    if not kept:
        raise UserError(f"the conditions leave nothing of {config.captions}: {counted(dropped)}")
    return kept, dropped


if __name__ == "__main__":
    run_command(main, SelectConfig)
