"""Plan a folder of shards in passes over lists, in ``_work/plan.json``.

The first pass is the list itself. Passes of retries follow for URLs lost to transient failures, and when the list has
grown, a pass for its new rows. Rows that the list no longer has leave the shards that have them.
"""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import groupby, takewhile
from operator import itemgetter
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from filip.common.errors import UserError
from filip.common.files import write_json
from filip.data.cards import SourceCard
from filip.data.fetching.outcomes import TRANSIENT, reason_of
from filip.data.fetching.shard_maker import WORK, remove_images
from filip.data.lists import duckdb_io
from filip.data.lists.parquet_rows import content_hash, whole_file

# Options of img2dataset that do not decide on the pictures.
WHERE_IT_RUNS = ("distributor", "subjob_size", "max_shard_retry", "enable_wandb", "wandb_project")
SHARD, ROW = "_shard_", "_row_"  # in a list of retries: where an earlier pass had the URL
GONE = "gone.parquet"  # the places of rows that the list no longer has
MOST_GONE = 0.5  # of the rows of a folder: more, and it is another list


def make_plan(list_path: Path, folder: Path, card: SourceCard, columns: list[str]) -> dict[str, Any]:
    """Return the plan of the folder; it is written before the first byte is fetched, and compared on every rerun.

    Its ``grown`` is the hash of a list with other rows, which is planned once all present shards are complete.
    """
    path = folder / WORK / "plan.json"
    load = card.download
    same = ("image_size", "resize_mode", "only_if_bigger", "encode_format", "samples_per_shard")
    settings = {
        "image_rules": asdict(card.image_rules),
        **{name: getattr(load, name) for name in same},
        "encode_quality": load.quality,
        **({"allow_private_hosts": True} if card.allow_private_hosts else {}),
        **({"full_decoding": True} if load.full_decoding else {}),
        **({"engine": load.engine} if load.engine == "img2dataset" else {}),
        # what decides on the pictures of that engine
        **{key: v for key, v in load.img2dataset.items() if load.engine == "img2dataset" and key not in WHERE_IT_RUNS},
    }
    rows = pq.read_metadata(list_path).num_rows
    content = {"list": content_hash(list_path, columns), "columns": columns, **settings}
    if not rows:
        raise UserError(f"{list_path} is empty: nothing to download")
    if path.exists():
        plan = read_plan(folder)
        filled = {"columns": plan["columns"], **plan["settings"]}
        if changed := [key for key in {**content, **filled} if key != "list" and filled.get(key) != content.get(key)]:
            raise UserError(_another(folder, list_path, card, ", ".join(changed)))
        old = Path(plan["passes"][0]["list"]).is_absolute()  # not of lists with a row group for each shard
        if old and any(missing_shards(plan, number, folder) for number in range(len(plan["passes"]))):
            raise UserError(f"{folder} was begun by an earlier version: finish it by that, or give another out=FOLDER")
        return plan | ({} if plan["content"] == content["list"] else {"grown": content["list"]})
    if any(folder.glob("*.tar")):
        raise UserError(f"{folder} has shards of unknown origin (no _work/plan.json): give another out=FOLDER")
    plan = {"content": content["list"], "rows": rows, "columns": columns, "settings": settings, "passes": []}
    with pq.ParquetFile(list_path) as parquet:
        _append_pass(plan, folder, "list", parquet.iter_batches(columns=columns), parquet.schema_arrow)
    write_json(path, plan)
    return plan


def read_plan(folder: Path) -> dict[str, Any]:
    return json.loads((folder / WORK / "plan.json").read_text())


def _another(folder: Path, list_path: Path, card: SourceCard, what: str) -> str:
    return (
        f"{folder} was filled with another {what} than {list_path} and the card '{card.name}' now ask for: give "
        f"another out=FOLDER. `filip data ingest source={card.name} images={folder}` makes shards of what is here by "
        "other rules, without another download"
    )


def grow(
    plan: dict[str, Any], content: str, list_path: Path, folder: Path, card: SourceCard, con: duckdb.DuckDBPyConnection
) -> None:
    """Plan shards for the rows of a list that the complete ``folder`` does not have; take out those that are gone.

    content: hash of the list. Raises UserError if most of the folder's rows are not in the list.
    """
    work, shards = folder / WORK, [shard for one_pass in plan["passes"] for shard in shards_of(one_pass)]
    columns = ", ".join(map(duckdb_io.sql_identifier, plan["columns"]))
    # equal rows are told apart by their number
    row = f"md5_number(CAST(ROW({columns}) AS VARCHAR)) AS hash"
    copy = "row_number() OVER (PARTITION BY hash ORDER BY {}) AS copy"
    lists = [list_of(one_pass, folder) for one_pass in plan["passes"] if is_retry(one_pass)]
    lists += [work / GONE] if (work / GONE).exists() else []
    elsewhere = f"SELECT {SHARD}, {ROW} FROM {duckdb_io.parquet(lists)}" if lists else "SELECT -1, -1"
    files = duckdb_io.parquet([folder / f"{shard:05d}.parquet" for shard in shards], duckdb_io.WITH_FILE, duckdb_io.ROW)
    with duckdb_io.plain_errors(con, f"comparing {list_path} with {folder}"):
        con.execute(
            f"""CREATE TEMP TABLE old AS SELECT *, {copy.format(f"{SHARD}, {ROW}")} FROM (
                SELECT CAST({duckdb_io.FILE_STEM} AS BIGINT) AS {SHARD}, file_row_number AS {ROW}, key,
                    status = 'success' AS is_image, {row} FROM {files}
            ) ANTI JOIN ({elsewhere}) AS e({SHARD}, {ROW}) USING ({SHARD}, {ROW})"""
        )
        con.execute(
            f"""CREATE TEMP TABLE new AS SELECT *, {copy.format("place")} FROM (
                SELECT file_row_number AS place, {row} FROM {duckdb_io.parquet(list_path, duckdb_io.ROW)})"""
        )
        con.execute(f"CREATE TEMP TABLE gone AS FROM old ANTI JOIN new USING (hash, copy) ORDER BY {SHARD}, {ROW}")
        lost, had = con.sql("SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM old)").fetchall()[0]
        if lost > MOST_GONE * had:
            raise UserError(_another(folder, list_path, card, f"list ({lost:,} of {had:,} rows are not in this one)"))
        taken = con.sql(f"SELECT {SHARD}, list(key) FROM gone WHERE is_image GROUP BY 1 ORDER BY 1").fetchall()
    for shard, keys in taken:
        remove_images(folder / f"{shard:05d}.parquet", set(keys), "unlisted: the list no longer has it")
    gone = f"SELECT {SHARD}, {ROW} FROM gone"
    if (work / GONE).exists():
        gone += f" UNION FROM {duckdb_io.parquet(work / GONE)}"
    duckdb_io.write_parquet(con, f"{gone} ORDER BY ALL", work / GONE, "download: gone rows")
    query = f"""SELECT {columns} FROM {duckdb_io.parquet(list_path, duckdb_io.ROW)} SEMI JOIN (
        SELECT place AS _place_ FROM new ANTI JOIN old USING (hash, copy)
        ) ON file_row_number = _place_ ORDER BY file_row_number"""
    with duckdb_io.plain_errors(con, "download: new rows"):
        reader = con.sql(query).to_arrow_reader()
        _append_pass(plan, folder, "list", reader, reader.schema)
    plan |= {"rows": pq.read_metadata(list_path).num_rows, "content": content}
    write_json(work / "plan.json", plan)


def in_progress(folder: Path) -> Path:
    """Return the folder of img2dataset's own files while it fills the shards of ``folder``."""
    return folder.with_name(f"{folder.name}.in_progress")


def missing_shards(plan: dict[str, Any], number: int, folder: Path) -> set[int]:
    """Return the shards of a pass that lack a file."""
    there = {entry.name for entry in os.scandir(folder)}
    parts = (".tar", ".parquet", "_stats.json")
    shards = shards_of(plan["passes"][number])
    return {shard for shard in shards if not all(f"{shard:05d}{part}" in there for part in parts)}


def is_retry(one_pass: dict[str, Any]) -> bool:
    """Return whether a pass tries URLs again."""
    return Path(one_pass["list"]).name.startswith("retry_")


def list_of(one_pass: dict[str, Any], folder: Path) -> Path:
    """Return the list of a pass, which lies with the plan."""
    return folder / WORK / one_pass["list"]


def _append_pass(
    plan: dict[str, Any], folder: Path, kind: str, batches: Iterable[pa.RecordBatch], schema: pa.Schema
) -> None:
    """Write the list of a pass, a row group for each shard, and add the pass to the plan unless it is empty."""
    passes, size = plan["passes"], plan["settings"]["samples_per_shard"]
    name = f"{kind}_{len(passes)}.parquet"
    if rows := duckdb_io.write_batches(batches, schema, folder / WORK / name, "download: plan", size):
        first = sum(one_pass["shards"] for one_pass in passes)
        passes.append({"list": name, "rows": rows, "first_shard": first, "shards": -(-rows // size)})


def add_retry_pass(plan: dict[str, Any], folder: Path, most: int) -> None:
    """Plan shards for the URLs that were lost to transient failures, unless ``most`` passes have tried again.

    They are those of the passes since the last retries, or of these. The list has the place of each, so that a shard
    that is made again leaves them to that pass.
    """
    passes = plan["passes"]
    since = max((n + 1 for n, one_pass in enumerate(passes) if is_retry(one_pass)), default=0)
    if sum(1 for _ in takewhile(is_retry, reversed(passes))) >= most:
        return
    with pq.ParquetFile(list_of(passes[0], folder)) as parquet:
        schema = pa.schema([*parquet.schema_arrow, (SHARD, pa.int64()), (ROW, pa.int64())])

    def lost() -> Iterator[pa.RecordBatch]:
        for shard in (shard for one_pass in passes[since:] or passes[-1:] for shard in shards_of(one_pass)):
            table = whole_file(folder / f"{shard:05d}.parquet")
            outcomes = zip(table["status"].to_pylist(), table["error_message"].to_pylist(), strict=True)
            reasons = [reason_of(status, error)[0] for status, error in outcomes]
            rows = [row for row, reason in enumerate(reasons) if reason in TRANSIENT]
            places = pa.array([shard] * len(rows), pa.int64()), pa.array(rows, pa.int64())
            columns = [*table.select(plan["columns"]).take(pa.array(rows, pa.int64())).columns, *places]
            yield from pa.table(columns, schema=schema).to_batches()

    _append_pass(plan, folder, "retry", lost(), schema)
    write_json(folder / WORK / "plan.json", plan)


def left_out_rows(plan: dict[str, Any], number: int, folder: Path) -> Iterator[tuple[int, set[int]]]:
    """Yield, in order, each shard of a pass with the rows that a later pass retries, or that the list has lost."""
    shards = shards_of(plan["passes"][number])
    lists = [list_of(one_pass, folder) for one_pass in plan["passes"][number + 1 :] if is_retry(one_pass)][:1]
    places = heapq.merge(*(_places(path) for path in [*lists, folder / WORK / GONE] if path.exists()))
    for shard, rows_of_shard in groupby(places, key=itemgetter(0)):
        if shard in shards:
            yield shard, {row for _, row in rows_of_shard}


def _places(path: Path) -> Iterator[tuple[int, int]]:
    with pq.ParquetFile(path) as parquet:
        for batch in parquet.iter_batches(columns=[SHARD, ROW]):
            yield from zip(*batch.to_pydict().values(), strict=True)


def shards_of(one_pass: dict[str, Any]) -> range:
    """Return the numbers of the shards of a pass."""
    return range(one_pass["first_shard"], one_pass["first_shard"] + one_pass["shards"])
