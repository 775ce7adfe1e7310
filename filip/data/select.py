"""Select the pairs to train on by the scores in their side-cars.

    python -m filip.data.select source=cc12m captions=SCORED out=SELECTED funnel=select.json \\
        keep=["similarity > 0.25", "near_distance > 3", "test_distance > 6"]

The images stay where they are: the result is a folder of side-cars with the rows that meet all conditions, so that
another threshold takes seconds. A condition is SQL over the side-car's columns (see :mod:`filip.data.score`); the
funnel counts each row under the first that it does not meet.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError, counted
from filip.common.progress import track
from filip.data.cards import load_source
from filip.data.funnel import Fragment, write_fragment
from filip.data.lists.columns import where_condition
from filip.data.lists.duckdb_io import parquet, plain_errors, sql_identifier
from filip.data.sidecar import SCHEMA, write_sidecar

SAMPLES = 10  # pairs shown per condition
Conditions = list[str]


@dataclass
class SelectConfig:
    source: str = option(MISSING, "source card (name or path)")
    captions: str = option(MISSING, "folder of the scored side-cars")
    out: str = option(MISSING, "folder of the side-cars that are kept", writes="folder")
    keep: Conditions = option(MISSING, 'conditions that a pair has to meet, e.g. keep=["similarity > 0.25"]')
    funnel: str | None = option(None, "funnel fragment to write, JSON", writes="file")


def main(config: SelectConfig) -> None:
    """Keep the pairs with scores that meet all conditions, by writing side-cars without the others."""
    fragment = select(config)
    if config.funnel:
        write_fragment(config.funnel, fragment)
    print(f"{config.out}: {fragment.n_out:,} of {fragment.n_in:,} pairs; dropped {counted(fragment.dropped)}")


def select(config: SelectConfig) -> Fragment:
    """Write the selected side-cars and account for the pairs. Raises UserError for a condition that cannot be read."""
    card = load_source(config.source)
    files = sorted(Path(config.captions).glob("*.parquet"))
    if not files:
        raise UserError(f"no *.parquet in {config.captions}: give the folder that `filip data score` wrote")
    out = Path(config.out)
    if out.resolve() == Path(config.captions).resolve():
        raise UserError(f"out={config.out} is the folder of the side-cars themselves: give another one")
    if not config.keep:
        raise UserError('nothing to select by: give conditions, e.g. keep=["similarity > 0.25"]')
    con = duckdb.connect()
    con.execute("SET threads = 1")  # the rows keep the side-car's order
    con.execute(f"CREATE TEMP VIEW listed AS SELECT * FROM {parquet(files[0])}")
    types = {row[0]: row[1] for row in con.sql("DESCRIBE listed").fetchall()}
    conditions = [where_condition(con, text, types, is_text=False, setting="keep") for text in config.keep]
    first = " ".join(f"WHEN NOT {sql} THEN {number}" for number, sql in enumerate(conditions))
    scores = [sql_identifier(name) for name in types if name not in (*SCHEMA.names, "phash")]
    shown = ", ".join(["caption := captions[1]", "key := key", *(f"{name} := {name}" for name in scores)])
    counts = dict.fromkeys(config.keep, 0)
    samples: dict[str, list[dict[str, Any]]] = {text: [] for text in config.keep}
    n_kept = 0
    for path in track(files, "select", "shards", total=len(files)):
        with plain_errors(con, "select"):
            judged = f"(SELECT *, CASE {first} END AS _failed FROM {parquet(path)})"
            table = con.sql(f"SELECT * EXCLUDE (_failed) FROM {judged} WHERE _failed IS NULL").to_arrow_table()
            dropped = con.sql(
                f"SELECT _failed, count(*), list(struct_pack({shown}))[:{SAMPLES}] FROM {judged} "
                "WHERE _failed IS NOT NULL GROUP BY 1"
            ).fetchall()
        write_sidecar(out / path.name, table)
        n_kept += len(table)
        for number, count, pairs in dropped:
            text = config.keep[number]
            counts[text] += count
            samples[text] = [*samples[text], *({**pair, "shard": path.stem} for pair in pairs)][:SAMPLES]
    con.close()
    for path in out.glob("*.parquet"):
        if path.name not in {file.name for file in files}:
            path.unlink()
    if not n_kept:
        raise UserError(f"the conditions leave nothing of {config.captions}: {counted(counts)}")
    unit = "images" if card.images else "pairs"
    return Fragment("select", card.name, n_kept + sum(counts.values()), n_kept, counts, unit, {"samples": samples})


if __name__ == "__main__":
    run_command(main, SelectConfig)
