"""Plan a folder of shards in passes over lists, in ``_work/plan.json``.

The first pass is the list itself. Passes of retries follow for URLs lost to transient failures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from filip.common.errors import UserError
from filip.common.files import replacing, write_json
from filip.data.cards import SourceCard
from filip.data.fetching.outcomes import TRANSIENT, reason_of
from filip.data.lists.parquet_rows import content_hash, whole_file

# Options of img2dataset that do not decide on the pictures.
WHERE_IT_RUNS = ("distributor", "subjob_size", "max_shard_retry", "enable_wandb", "wandb_project")
SHARD, ROW = "_shard_", "_row_"  # in a list of retries: where the previous pass had the URL


def make_plan(list_path: Path, folder: Path, card: SourceCard, columns: list[str]) -> dict[str, Any]:
    """Return the plan of the folder; it is written before the first byte is fetched, and compared on every rerun."""
    path = folder / "_work" / "plan.json"
    load = card.download
    settings = {
        "image_rules": asdict(card.image_rules),
        "image_size": load.image_size,
        "resize_mode": load.resize_mode,
        "only_if_bigger": load.only_if_bigger,
        "encode_format": load.encode_format,
        "encode_quality": load.quality,
        "samples_per_shard": load.samples_per_shard,
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
        plan = json.loads(path.read_text())
        filled = {"list": plan["content"], "columns": plan["columns"], **plan["settings"]}
        if changed := [key for key in {**content, **filled} if filled.get(key) != content.get(key)]:
            raise UserError(
                f"{folder} was filled with another {', '.join(changed)} than {list_path} and the card '{card.name}' "
                f"now ask for: give another out=FOLDER. `filip data ingest images={folder}` makes shards of what is "
                "here by other rules, without another download"
            )
        plan["passes"][0]["list"] = str(list_path.resolve())  # the same list may have moved
        return plan
    if any(folder.glob("*.tar")):
        raise UserError(f"{folder} has shards of unknown origin (no _work/plan.json): give another out=FOLDER")
    plan = {"content": content["list"], "rows": rows, "columns": columns, "settings": settings, "passes": []}
    _append_pass(plan, list_path.resolve(), rows)
    write_json(path, plan)
    return plan


def in_progress(folder: Path) -> Path:
    """Return the folder of img2dataset's own files while it fills the shards of ``folder``."""
    return folder.with_name(f"{folder.name}.in_progress")


def missing_shards(plan: dict[str, Any], number: int, folder: Path) -> set[int]:
    """Return the shards of a pass that lack a file."""
    there = {entry.name for entry in os.scandir(folder)}
    parts = (".tar", ".parquet", "_stats.json")
    shards = shards_of(plan["passes"][number])
    return {shard for shard in shards if not all(f"{shard:05d}{part}" in there for part in parts)}


def _append_pass(plan: dict[str, Any], path: Path, rows: int) -> None:
    shards = -(-rows // plan["settings"]["samples_per_shard"])
    first = sum(one_pass["shards"] for one_pass in plan["passes"])
    plan["passes"].append({"list": str(path), "rows": rows, "first_shard": first, "shards": shards})


def add_retry_pass(plan: dict[str, Any], folder: Path, columns: list[str]) -> None:
    """Plan shards for the URLs that the last pass lost to transient failures, if there are any.

    The list has the place of each, so that a shard that is made again leaves them to that pass.
    """
    last = plan["passes"][-1]
    path = folder / "_work" / f"retry_{len(plan['passes'])}.parquet"
    rows = 0
    with replacing(path) as part:
        writer = None
        for shard in shards_of(last):
            table = whole_file(folder / f"{shard:05d}.parquet")
            outcomes = zip(table["status"].to_pylist(), table["error_message"].to_pylist(), strict=True)
            reasons = [reason_of(status, error)[0] for status, error in outcomes]
            chosen = [row for row, reason in enumerate(reasons) if reason in TRANSIENT]
            retried = table.select(columns).take(pa.array(chosen, pa.int64()))
            for name, values in ((SHARD, [shard] * len(chosen)), (ROW, chosen)):
                retried = retried.append_column(name, pa.array(values, pa.int64()))
            retried = retried.replace_schema_metadata(None)  # drop the metadata of this shard's tar
            writer = writer or pq.ParquetWriter(part, retried.schema)
            writer.write_table(retried)
            rows += len(chosen)
        assert writer is not None
        writer.close()
    if not rows:
        return
    _append_pass(plan, path, rows)
    write_json(folder / "_work" / "plan.json", plan)


def retried_rows(plan: dict[str, Any], number: int) -> Iterator[tuple[int, set[int]]]:
    """Yield, in order, each shard of pass ``number`` with rows that the next pass retries, and these rows."""
    if number + 1 == len(plan["passes"]):
        return
    with pq.ParquetFile(plan["passes"][number + 1]["list"]) as retries:
        batches = retries.iter_batches(columns=[SHARD, ROW])
        places = (place for batch in batches for place in zip(*batch.to_pydict().values(), strict=True))
        for shard, rows_of_shard in groupby(places, key=itemgetter(0)):
            yield shard, {row for _, row in rows_of_shard}


def shards_of(one_pass: dict[str, Any]) -> range:
    """Return the numbers of the shards of a pass."""
    return range(one_pass["first_shard"], one_pass["first_shard"] + one_pass["shards"])
