"""Download with img2dataset: kept.parquet → webdataset shards, and a funnel in which every URL ends in one bucket.

    python -m filip.data.download source=cc12m list=kept.parquet out=shards funnel=download.json

The folder is restartable at any moment: finished shards stay, others are fetched again. URLs that failed for a
reason that may have passed (time-out, connection, 5xx, ...) are tried once more after all others, in shards of
their own. img2dataset exits with 0 whatever happened; here a missing shard is an error.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from multiprocessing import forkserver, get_context
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from filip.command import MISSING, option, run_command
from filip.data.cards import SourceCard, load_source
from filip.data.fetching.outcomes import TRANSIENT, reason_of
from filip.data.funnel import Fragment, write_fragment
from filip.data.prepare import RESERVED
from filip.data.text_rules import check_list
from filip.errors import UserError
from filip.files import locked, replacing, sha256_of, write_json
from filip.progress import Progress, say

SHARD, ROW = "_shard_", "_row_"  # in a list of retries: where the pass before had the URL
SHOWN_ERRORS = 5  # examples per reason in the funnel's notes
OPT_OUT_DIRECTIVES = ["noai", "noimageai", "noindex", "noimageindex"]  # img2dataset's default


@dataclass
class DownloadConfig:
    source: str = option(MISSING, "source card (name or path): image rules, sizes, timeouts")
    list: str = option(MISSING, "Parquet file with the columns url and caption; the others are carried along")
    out: str = option(MISSING, "folder of the shards: NNNNN.tar, NNNNN.parquet, NNNNN_stats.json")
    funnel: str | None = option(None, "funnel fragment to write, JSON")
    retry_passes: int | None = option(
        None, "passes over transient failures; a higher number later adds passes"
    )
    processes: int | None = option(None, "default: the card's")
    threads: int | None = option(None, "per process; default: the card's")
    timeout: int | None = option(None, "seconds; default: the card's")
    distributor: str | None = option(None, "multiprocessing, pyspark or ray; default: the card's")


def main(config: DownloadConfig) -> None:
    """Download the images of a list into webdataset shards, with the card's image rules."""
    card = load_source(config.source)
    for key in ("retry_passes", "processes", "threads", "timeout", "distributor"):
        if getattr(config, key) is not None:
            setattr(card.download, key, getattr(config, key))
    fragment = download(config.list, config.out, card)
    if config.funnel:
        write_fragment(config.funnel, fragment)
    print(
        f"{config.out}: {fragment.n_out:,} of {fragment.n_in:,} images in {fragment.notes['shards']} shards"
    )
    for reason, count in fragment.as_dict()["dropped"].items():
        print(f"  {reason:<16} {count:>10,}  {fragment.notes['examples'][reason][0][:90]}")


def download(list_path: str | Path, out: str | Path, card: SourceCard) -> Fragment:
    """Fill the folder ``out`` with the images of ``list_path`` and account for every URL.

    Raises UserError when the folder belongs to another list or other settings, when another process is filling
    it, when a shard could not be completed, or when no image could be fetched.
    """
    columns = check_list(list_path)
    reserved = sorted(set(columns) & set(RESERVED) - {"url", "caption"})
    if reserved:
        raise UserError(
            f"{list_path} has the columns {', '.join(reserved)}, which img2dataset writes itself: "
            "`filip data prepare` renames them"
        )
    folder = Path(out).resolve()
    busy = f"{folder} is being filled by another process: wait for it or stop it"
    with locked(folder / "_work" / "lock", busy):
        plan = _plan(Path(list_path), folder, card, columns)
        _sweep(folder / "_work")
        number = 0
        while number < len(plan["passes"]):
            _run_pass(plan, number, folder, card, columns)
            number += 1
            if number == len(plan["passes"]) and number <= card.download.retry_passes:
                _add_retry_pass(plan, folder, columns)
        _sweep(folder / "_work")
        fragment = account(folder, card)
        if not fragment.n_out:
            raise UserError(
                f"not one of {fragment.n_in:,} images could be downloaded: {fragment.as_dict()['dropped']}, e.g. "
                f"{next(iter(fragment.notes['examples'].values()))[0]}. Is the network up? To try again: delete "
                f"{folder}, or give retry_passes={len(plan['passes'])}"
            )
    return fragment


def _sweep(work: Path) -> None:
    """Remove the half-finished shards that killed workers left."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix == ".feather":
            path.unlink()


def _plan(list_path: Path, folder: Path, card: SourceCard, columns: list[str]) -> dict[str, Any]:
    """What the folder is to hold; written before the first byte is fetched, and compared on every rerun."""
    path = folder / "_work" / "plan.json"
    load = card.download
    wanted = {
        "list_sha256": sha256_of(list_path),
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
        },
    }
    if path.exists():
        plan = json.loads(path.read_text())
        changed = sorted(key for key in wanted if plan[key] != wanted[key])
        if changed:
            raise UserError(
                f"{folder} was filled with another {', '.join(changed)} than {list_path} and the card "
                f"'{card.name}' now ask for: give another out=FOLDER, or delete this one"
            )
        plan["passes"][0]["list"] = str(list_path.resolve())  # the same list may have moved
        return plan
    if any(folder.glob("*.tar")):
        raise UserError(
            f"{folder} has shards of unknown origin (no _work/plan.json): give another out=FOLDER"
        )
    if not wanted["rows"]:
        raise UserError(f"{list_path} is empty: nothing to download")
    shards = -(-wanted["rows"] // load.samples_per_shard)
    first = {"list": str(list_path.resolve()), "rows": wanted["rows"], "first_shard": 0, "shards": shards}
    plan = {**wanted, "passes": [first]}
    write_json(path, plan)
    return plan


def _run_pass(plan: dict[str, Any], number: int, folder: Path, card: SourceCard, columns: list[str]) -> None:
    """Download the shards of one pass of which a file is missing. Raises UserError when one cannot be completed."""
    this = plan["passes"][number]
    shards = _shards_of(this)
    there = {entry.name for entry in os.scandir(folder)}
    parts = (".tar", ".parquet", "_stats.json")
    todo = {shard for shard in shards if not all(f"{shard:05d}{part}" in there for part in parts)}
    if not todo:
        return
    for shard in todo:  # what is left of it must not look complete
        (folder / f"{shard:05d}_stats.json").unlink(missing_ok=True)
    load = card.download
    # img2dataset imports albumentations, which asks the network for a newer version of itself whenever it is imported
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    if load.distributor == "multiprocessing":
        _start_fork_server()
    # imported only now: it takes seconds, and a rerun with nothing to do should not
    from filip.data.fetching import img2dataset_setup
    from filip.data.fetching.shards import ListReader, run_cluster, run_processes, shard_name

    reader = ListReader(
        Path(this["list"]), load.samples_per_shard, this["first_shard"], columns, folder / "_work"
    )
    reader.wanted = todo
    downloader = img2dataset_setup.make_downloader(card, folder, columns, OPT_OUT_DIRECTIVES)
    downloader.retried = {shard: rows for shard, rows in _retried_rows(plan, number) if shard in todo}
    if load.distributor == "multiprocessing":
        what = "download" if this["first_shard"] == 0 else "download, retry"
        with Progress(what, "shards", len(todo)) as progress:
            finished = _ShardProgress(folder, progress)
            failures = run_processes(downloader, reader, min(load.processes, len(todo)), finished)
    else:
        failures = run_cluster(load.distributor, downloader, reader, load.processes)
    if failures:
        listed = "; ".join(f"{shard_name(shard)}: {why}" for shard, why in sorted(failures.items())[:5])
        raise UserError(
            f"{len(failures)} of {len(shards)} shards of {folder} could not be completed ({listed}). The others are "
            "kept: fix the cause and run the same command again"
        )


def _start_fork_server() -> None:
    """The workers are forked from a process that has img2dataset imported; it imports while this process does."""
    get_context("forkserver").set_forkserver_preload(
        ["filip.data.fetching.shards", "filip.data.fetching.image_rules"]
    )
    forkserver.ensure_running()


class _ShardProgress:
    """To be called with each finished shard: progress, with the share of URLs that gave an image."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self.folder, self.progress = folder, progress
        self.urls = self.images = 0

    def __call__(self, shard: int) -> None:
        stats = json.loads((self.folder / f"{shard:05d}_stats.json").read_text())
        self.urls += stats["count"]
        self.images += stats["successes"]
        share = self.images / max(1, self.urls)
        self.progress.add(note=f"{self.images:,} images of {self.urls:,} URLs ({share:.1%})")


def _add_retry_pass(plan: dict[str, Any], folder: Path, columns: list[str]) -> None:
    """Plan shards for the URLs that the last pass lost to something transient, if there are any.

    The list says where each was, so that a shard that has to be made again leaves them to their pass.
    """
    last = plan["passes"][-1]
    path = folder / "_work" / f"retry_{len(plan['passes'])}.parquet"
    rows = 0
    with replacing(path) as part:
        writer = None
        for shard in _shards_of(last):
            table = pq.read_table(folder / f"{shard:05d}.parquet")
            reasons = [reason_of(status, error)[0] for status, error in _outcomes(table)]
            chosen = [row for row, reason in enumerate(reasons) if reason in TRANSIENT]
            retried = table.select(columns).take(pa.array(chosen, pa.int64()))
            for name, values in ((SHARD, [shard] * len(chosen)), (ROW, chosen)):
                retried = retried.append_column(name, pa.array(values, pa.int64()))
            retried = retried.replace_schema_metadata(None)  # of this shard's tar
            writer = writer or pq.ParquetWriter(part, retried.schema)
            writer.write_table(retried)
            rows += len(chosen)
        assert writer is not None
        writer.close()
    if not rows:
        return
    first_shard = last["first_shard"] + last["shards"]
    shards = -(-rows // plan["settings"]["samples_per_shard"])
    plan["passes"].append({"list": str(path), "rows": rows, "first_shard": first_shard, "shards": shards})
    write_json(folder / "_work" / "plan.json", plan)


def _retried_rows(plan: dict[str, Any], number: int) -> Iterator[tuple[int, set[int]]]:
    """Of pass ``number``: shard, and which of its rows the next pass has; in order, without shards that have none."""
    if number + 1 == len(plan["passes"]):
        return
    with pq.ParquetFile(plan["passes"][number + 1]["list"]) as retries:
        if ROW not in retries.schema_arrow.names:
            raise UserError(
                f"{plan['passes'][number + 1]['list']} does not say where each URL was: an earlier version of FILIP "
                "made it. Give another out=FOLDER"
            )
        batches = retries.iter_batches(columns=[SHARD, ROW])
        places = (place for batch in batches for place in zip(*batch.to_pydict().values(), strict=True))
        for shard, found in groupby(places, key=itemgetter(0)):
            yield shard, {row for _, row in found}


def _shards_of(one_pass: dict[str, Any]) -> range:
    return range(one_pass["first_shard"], one_pass["first_shard"] + one_pass["shards"])


def _outcomes(table: Any) -> list[tuple[str, str | None]]:
    return list(zip(table["status"].to_pylist(), table["error_message"].to_pylist(), strict=True))


def account(folder: Path, card: SourceCard) -> Fragment:
    """The funnel of a filled folder: each URL of the list in exactly one bucket.

    A URL that was tried again is counted in its last pass only.
    """
    plan = json.loads((folder / "_work" / "plan.json").read_text())
    dropped: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    images, seconds, urls = 0, 0.0, 0
    for number, one_pass in enumerate(plan["passes"]):
        retries = _retried_rows(plan, number)
        following, rows = next(retries, (-1, set()))
        for shard in _shards_of(one_pass):
            retried: set[int] = set()
            if shard == following:
                retried = rows
                following, rows = next(retries, (-1, set()))
            table = pq.read_table(folder / f"{shard:05d}.parquet", columns=["url", "status", "error_message"])
            urls_of_shard = table["url"].to_pylist()
            for row, (url, (status, error)) in enumerate(zip(urls_of_shard, _outcomes(table), strict=True)):
                if row in retried:
                    continue
                reason, detail = reason_of(status, error)
                if reason is None:
                    images += 1
                else:
                    dropped[reason] += 1
                    if len(examples.setdefault(reason, [])) < SHOWN_ERRORS:
                        examples[reason].append(f"{url} ({detail})" if detail else url)
            stats = json.loads((folder / f"{shard:05d}_stats.json").read_text())
            seconds, urls = seconds + stats["duration"], urls + stats["count"]
    notes = {
        "shards": sum(one_pass["shards"] for one_pass in plan["passes"]),
        "retried": [one_pass["rows"] for one_pass in plan["passes"][1:]],
        "success_rate": round(images / plan["rows"], 4),
        "urls_per_second_and_process": round(urls / seconds, 1) if seconds else None,
        "image_rules": asdict(card.image_rules),
        "examples": examples,
    }
    normal = card.download.normal_success_rate
    if normal and notes["success_rate"] < 0.8 * normal:
        notes["warning"] = (
            f"{images / plan['rows']:.0%} of the URLs gave an image; {normal:.0%} is normal here"
        )
        say(f"warning: {notes['warning']}")
    return Fragment("download", card.name, plan["rows"], images, dict(dropped), "pairs", notes)


if __name__ == "__main__":
    run_command(main, DownloadConfig)
