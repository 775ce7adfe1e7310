"""Download images: kept.parquet → webdataset shards as img2dataset writes them, and a funnel that counts each URL once.

    python -m filip.data.download source=cc12m list=kept.parquet out=shards funnel=download.json

The folder is restartable at any moment: finished shards stay, others are fetched again. URLs that failed for a
reason that may have passed (time-out, connection, 5xx, ...) are tried once more after all others, in separate
shards. A missing shard is an error.

On a cluster, ``part=3/16`` downloads a sixteenth of the shards into the same folder and stops there; a last run without
``part`` tries again what failed and writes the funnel.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from multiprocessing import forkserver, get_context
from pathlib import Path
from typing import Any

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError, counted
from filip.common.files import locked
from filip.common.progress import Progress, say
from filip.common.worker_pool import deaf_to_ctrl_c
from filip.data.cards import SourceCard, load_source, overridden
from filip.data.fetching.download_plan import (
    add_retry_pass,
    in_progress,
    make_plan,
    missing_shards,
    retried_rows,
    shards_of,
)
from filip.data.funnel import Fragment
from filip.data.lists.columns import RESERVED
from filip.data.stage import ByShard, account_for, filling, parse_part, tell
from filip.data.text_rules import check_list
from filip.sets.image_set import Account

Part = tuple[int, int] | None


@dataclass
class DownloadConfig:
    source: str = option(MISSING, "source card (name or path): image rules, sizes, timeouts")
    list: str = option(MISSING, "Parquet file with the columns url and caption; the others are carried along")
    out: str = option(MISSING, "folder of the shards: NNNNN.tar, NNNNN.parquet, NNNNN_stats.json", writes="store")
    funnel: str | None = option(None, "funnel fragment to write, JSON", writes="file")
    download: dict[str, Any] = option({}, "overrides of the card's, e.g. download={processes:8,threads:64}")
    part: str | None = option(None, "0/8 to 7/8: download only this eighth of the shards, and stop")


def main(config: DownloadConfig) -> None:
    """Download the images of a list into webdataset shards, with the card's image rules."""
    card = overridden(load_source(config.source), "download", config.download)
    fragment = download(config.list, config.out, card, parse_part(config.part))
    if fragment is None:
        print(f"part {config.part} is in {config.out}; run again without part= when all are")
        return
    head = f"{config.out}: {fragment.n_out:,} of {fragment.n_in:,} images in {fragment.notes['shards']} shards"
    tell(fragment, config.funnel, head, lambda reason: fragment.notes["examples"].get(reason, [""])[0][:90])


def download(list_path: str | Path, out: str | Path, card: SourceCard, part: Part = None) -> Fragment | None:
    """Fill the folder ``out`` with the images of ``list_path`` and account for every URL.

    part (i, n): fetch the planned shards i, i + n, i + 2n, … alone, and return None: nothing is tried again or
    accounted for.

    Raises UserError when the folder was filled from another list or with other settings, when another process is
    filling it, when a shard could not be completed, or when no image could be fetched.
    """
    columns = check_list(list_path)
    if card.download.engine == "img2dataset":
        from filip.data.by_img2dataset import NOT_HEEDED, check_card

        check_card(card)
        say(f"download: {NOT_HEEDED}; engine: own heeds them")
    reserved = sorted(set(columns) & set(RESERVED) - {"url", "caption"})
    if reserved:
        raise UserError(
            f"{list_path} has the columns {', '.join(reserved)}, which the shards have themselves: "
            "`filip data prepare` renames them"
        )
    folder = Path(out).resolve()
    work = folder / "_work"
    alone: AbstractContextManager[None] = nullcontext()
    if part is not None:  # not the same part twice at once
        name = f"{part[0]}-of-{part[1]}"
        alone = locked(work / f"part-{name}.lock", f"part {name} of {folder} is being filled by another process")
    with filling(folder, shared=part is not None), alone:
        with locked(work / "plan.lock"):
            plan = make_plan(Path(list_path), folder, card, columns)
        sweep(work, part=part)
        number = 0
        while number < len(plan["passes"]):
            _run_pass(plan, number, folder, card, columns, part)
            number += 1
            if part is None and number == len(plan["passes"]) <= card.download.retry_passes:
                add_retry_pass(plan, folder, columns)
        if part is not None:
            return None
        sweep(work, finished=True)
        shutil.rmtree(in_progress(folder), ignore_errors=True)  # of parts that were started again
        fragment = account(folder, card)
        if not fragment.n_out:
            raise UserError(
                f"not one of {fragment.n_in:,} images could be downloaded: {counted(fragment.dropped)}, e.g. "
                f"{next(iter(fragment.notes['examples'].values()))[0]}. Is the network up? To try again: delete "
                f"{folder}, or give download={{retry_passes:{len(plan['passes'])}}}"
            )
    return fragment


def sweep(work: Path, finished: bool = False, part: Part = None) -> None:
    """Remove the half-finished shards that killed workers left; when all are ``finished``, also their progress.

    part: leave the shards of other parts, which may be running.
    """
    files = (".feather", ".progress", ".lock") if finished else (".feather",)
    for path in work.iterdir():
        shard = path.name.partition(".")[0]
        if part is not None and not (shard.isdigit() and int(shard) % part[1] == part[0]):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix in files:
            path.unlink()


def _run_pass(
    plan: dict[str, Any], number: int, folder: Path, card: SourceCard, columns: list[str], part: Part = None
) -> None:
    """Download the incomplete shards of one pass. Raises UserError when one cannot be completed."""
    this = plan["passes"][number]
    shards = shards_of(this)
    missing = missing_shards(plan, number, folder)
    todo = {shard for shard in missing if part is None or shard % part[1] == part[0]}
    if not todo:
        return
    for shard in todo:  # its remains must not look complete
        (folder / f"{shard:05d}_stats.json").unlink(missing_ok=True)
    retried = {shard: rows for shard, rows in retried_rows(plan, number) if shard in todo}
    totals: Counter[str] = Counter()
    with Progress("download, retry" if number else "download", "shards", len(todo)) as progress:

        def finished(shard: int) -> None:
            totals.update({key: stats_of(folder, shard)[key] for key in ("count", "successes")})
            urls, images = totals["count"], totals["successes"]
            progress.add(note=f"{images:,} images of {urls:,} URLs ({images / max(1, urls):.1%})")

        of_pass: dict[str, Any] = {"card": card, "final_folder": folder, "columns": columns, "retried": retried}
        of_pass |= {"listed": Path(this["list"]), "first_shard": this["first_shard"]}
        if card.download.engine == "img2dataset":
            from filip.data.by_img2dataset import Img2dataset

            name = f"{number}-{'all' if part is None else f'{part[0]}-of-{part[1]}'}"
            failures = Img2dataset(**of_pass, name=name).download_shards(todo, finished)
        else:
            failures = _by_our_own(of_pass, number > 0, todo, finished)
    if failures:
        listed = "; ".join(f"{shard:05d}: {why}" for shard, why in sorted(failures.items())[:5])
        raise UserError(
            f"{len(failures)} of {len(shards)} shards of {folder} could not be completed ({listed}). The others are "
            "kept: fix the cause and run the same command again"
        )


def _by_our_own(
    of_pass: dict[str, Any], patient: bool, todo: set[int], finished: Callable[[int], None]
) -> dict[int, str]:
    """Download these shards of a pass; return {shard: why it could not be completed}."""
    # the process that workers are forked from imports OpenCV and the rest while this process does
    get_context("forkserver").set_forkserver_preload(["filip.data.fetching.workers", "filip.data.fetching.image_rules"])
    with deaf_to_ctrl_c():
        forkserver.ensure_running()
    # imported only now: it takes seconds, and a rerun with nothing to do should not
    from filip.data.fetching.workers import LocalWorkers, ShardDownloader, download_shards

    downloader = ShardDownloader(**of_pass, patient=patient)
    processes = min(downloader.card.download.processes, len(todo))
    return download_shards(LocalWorkers(downloader, processes), todo, finished)


def stats_of(folder: Path, shard: int) -> dict[str, Any]:
    """Return the statistics of a finished shard."""
    stats: dict[str, Any] = json.loads((folder / f"{shard:05d}_stats.json").read_text())
    return stats


def account(folder: Path, card: SourceCard) -> Fragment:
    """Return the funnel of a filled folder: each URL of the list is in exactly one bucket.

    A URL that was retried is counted in its last pass only.
    """
    plan = json.loads((folder / "_work" / "plan.json").read_text())
    dropped = Account()
    images, seconds, urls = 0, 0.0, 0
    for number, one_pass in enumerate(plan["passes"]):
        retries = ByShard(retried_rows(plan, number), set())
        for shard in shards_of(one_pass):
            images += account_for(folder / f"{shard:05d}.parquet", dropped, retries.of(shard))
            stats = stats_of(folder, shard)
            seconds, urls = seconds + stats["duration"], urls + stats["count"]
    notes = {
        "engine": card.download.engine,
        "shards": sum(len(shards_of(one_pass)) for one_pass in plan["passes"]),
        "retried": [one_pass["rows"] for one_pass in plan["passes"][1:]],
        "success_rate": round(images / plan["rows"], 4),
        "urls_per_second_and_process": round(urls / seconds, 1) if seconds else None,
        "image_rules": asdict(card.image_rules),
        "examples": dropped.examples,
    }
    normal = card.download.normal_success_rate
    if normal and notes["success_rate"] < 0.8 * normal:
        notes["warning"] = f"{images / plan['rows']:.0%} of the URLs gave an image; {normal:.0%} is normal here"
        say(f"warning: {notes['warning']}")
    return Fragment("download", card.name, plan["rows"], images, dict(dropped.counts), "pairs", notes)


if __name__ == "__main__":
    run_command(main, DownloadConfig)
