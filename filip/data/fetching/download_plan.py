"""Plan a folder of shards: passes over lists, in ``_work/plan.json``, and how they change.

The first pass is the list itself. A pass of retries follows for URLs lost to transient failures, and one of
additions when the folder is requested with another list or other image rules.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby, takewhile
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from filip.data.cards import SourceCard
from filip.data.fetching.outcomes import TRANSIENT, reason_of
from filip.data.fetching.revision import revise
from filip.data.lists.parquet_rows import content_hash, whole_file
from filip.data.shard_set import set_aside
from filip.errors import UserError
from filip.files import replacing, write_json
from filip.progress import say

SHARD, ROW = "_shard_", "_row_"  # in a list of retries: where the previous pass had the URL


def make_plan(list_path: Path, folder: Path, card: SourceCard, columns: list[str], memory: str) -> dict[str, Any]:
    """Return the plan of the folder; it is written before the first byte is fetched, and compared on every rerun."""
    path = folder / "_work" / "plan.json"
    load = card.download
    wanted = {
        "content": content_hash(list_path, columns),
        "rows": pq.read_metadata(list_path).num_rows,
        "columns": columns,
        "settings": {
            "image_rules": asdict(card.image_rules),
            "image_size": load.image_size,
            "resize_mode": load.resize_mode,
            "only_if_bigger": load.only_if_bigger,
            "encode_format": load.encode_format,
            "encode_quality": load.quality,
            "samples_per_shard": load.samples_per_shard,
            **({"allow_private_hosts": True} if card.allow_private_hosts else {}),
        },
    }
    if not wanted["rows"]:
        raise UserError(f"{list_path} is empty: nothing to download")
    if path.exists():
        plan = json.loads(path.read_text())
        _refuse_other_pictures(plan, wanted, list_path, folder, card)
        if plan["passes"][0]["list"] is not None and _same(plan, wanted):
            plan["passes"][0]["list"] = str(list_path.resolve())  # the same list may have moved
        elif not _same(plan, wanted) or missing_shards(plan, 0, folder):
            _revise(plan, wanted, list_path, folder, card, memory)
        return plan
    if any(folder.glob("*.tar")):
        raise UserError(f"{folder} has shards of unknown origin (no _work/plan.json): give another out=FOLDER")
    shards = -(-wanted["rows"] // load.samples_per_shard)
    first = {"list": str(list_path.resolve()), "rows": wanted["rows"], "first_shard": 0, "shards": shards}
    plan = {**wanted, "passes": [first]}
    write_json(path, plan)
    return plan


def _refuse_other_pictures(
    plan: dict[str, Any], wanted: dict[str, Any], list_path: Path, folder: Path, card: SourceCard
) -> None:
    """Raise UserError if the folder's images are stored differently from what is asked for now."""

    def pictures(of: dict[str, Any]) -> dict[str, Any]:
        others = ("image_rules", "allow_private_hosts")
        return {key: value for key, value in of["settings"].items() if key not in others}

    changed = ["columns"] if plan["columns"] != wanted["columns"] else []
    changed += [key for key, value in pictures(wanted).items() if pictures(plan).get(key) != value]
    if changed:
        raise UserError(
            f"{folder} was filled with another {', '.join(changed)} than {list_path} and the card '{card.name}' now "
            "ask for: give another out=FOLDER, or delete this one"
        )


def _same(plan: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(plan.get(key) == wanted[key] for key in ("content", "settings"))


def missing_shards(plan: dict[str, Any], number: int, folder: Path) -> set[int]:
    """Return the shards of a pass that lack a file."""
    there = {entry.name for entry in os.scandir(folder)}
    parts = (".tar", ".parquet", "_stats.json")
    shards = shards_of(plan["passes"][number])
    return {shard for shard in shards if not all(f"{shard:05d}{part}" in there for part in parts)}


def _revise(
    plan: dict[str, Any], wanted: dict[str, Any], list_path: Path, folder: Path, card: SourceCard, memory: str
) -> None:
    """Keep what was fetched for another list or other rules, and plan a pass for what is missing.

    The first list is not kept, so the rows of a lost shard go into that pass, too.
    """
    complete: list[int] = []
    for number, one_pass in enumerate(plan["passes"]):
        missing = missing_shards(plan, number, folder)
        complete += [shard for shard in shards_of(one_pass) if shard not in missing]
        one_pass["given_up"] = sorted({*one_pass.get("given_up", []), *missing})
        for shard in missing:
            for part in (".tar", ".index", ".answers", ".parquet", "_stats.json"):
                (folder / f"{shard:05d}{part}").unlink(missing_ok=True)
    plan["passes"][0]["list"] = None
    added = folder / "_work" / f"added_{len(plan['passes'])}.parquet"
    rows, repeated = revise(folder, complete, list_path, wanted["columns"], card, added, memory)
    say(f"download: {folder} keeps what was fetched; {rows:,} of {wanted['rows']:,} URLs are left to fetch")
    plan |= {**wanted, "revised_at": len(plan["passes"]), "repeated": repeated}
    if rows:
        _append_pass(plan, added, rows, "added")
    write_json(folder / "_work" / "plan.json", plan)


def _append_pass(plan: dict[str, Any], path: Path, rows: int, kind: str) -> None:
    last = plan["passes"][-1]
    shards = -(-rows // plan["settings"]["samples_per_shard"])
    first_shard = last["first_shard"] + last["shards"]
    plan["passes"].append({"list": str(path), "rows": rows, "first_shard": first_shard, "shards": shards, "kind": kind})


def is_retry(one_pass: dict[str, Any]) -> bool:
    return bool(one_pass.get("kind", "retry" if one_pass["first_shard"] else "first") == "retry")


def retries_at_the_end(plan: dict[str, Any]) -> int:
    return len(list(takewhile(is_retry, reversed(plan["passes"]))))


def add_retry_pass(plan: dict[str, Any], folder: Path, columns: list[str]) -> None:
    """Plan shards for the URLs that the last pass lost to transient failures, if there are any.

    The list says where each was, so that a shard that is made again leaves them to that pass.
    """
    last = plan["passes"][-1]
    path = folder / "_work" / f"retry_{len(plan['passes'])}.parquet"
    rows = 0
    aside = dict(set_aside(folder)) if plan.get("revised_at") == len(plan["passes"]) else {}
    with replacing(path) as part:
        writer = None
        for shard in shards_of(last):
            table = whole_file(folder / f"{shard:05d}.parquet")
            reasons = [reason_of(status, error)[0] for status, error in outcomes(table)]
            unwanted = aside.get(shard, {})
            chosen = [row for row, reason in enumerate(reasons) if reason in TRANSIENT and row not in unwanted]
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
    _append_pass(plan, path, rows, "retry")
    write_json(folder / "_work" / "plan.json", plan)


def retried_rows(plan: dict[str, Any], number: int) -> Iterator[tuple[int, set[int]]]:
    """Yield, in order, each shard of pass ``number`` with rows that the next pass retries, and these rows."""
    if number + 1 == len(plan["passes"]) or not is_retry(plan["passes"][number + 1]):
        return
    with pq.ParquetFile(plan["passes"][number + 1]["list"]) as retries:
        batches = retries.iter_batches(columns=[SHARD, ROW])
        places = (place for batch in batches for place in zip(*batch.to_pydict().values(), strict=True))
        for shard, found in groupby(places, key=itemgetter(0)):
            yield shard, {row for _, row in found}


def shards_of(one_pass: dict[str, Any]) -> list[int]:
    """Return the shards of a pass, in order, without those that were lost before the list was replaced by another."""
    given_up = set(one_pass.get("given_up", []))
    first = one_pass["first_shard"]
    return [shard for shard in range(first, first + one_pass["shards"]) if shard not in given_up]


def outcomes(table: Any) -> list[tuple[str, str | None]]:
    return list(zip(table["status"].to_pylist(), table["error_message"].to_pylist(), strict=True))
