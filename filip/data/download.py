"""Download images: kept.parquet → webdataset shards as img2dataset writes them, and a funnel that counts each URL once.

    python -m filip.data.download source=cc12m list=kept.parquet out=shards funnel=download.json

The folder is restartable at any moment: finished shards stay, others are fetched again. URLs that failed for a
reason that may have passed (time-out, connection, 5xx, ...) are tried once more after all others, in separate
shards. A missing shard is an error. If the list has grown, its new rows make new shards, and rows that it no longer has
leave theirs: what is there is not fetched again.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from contextlib import closing
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
from filip.data.fetching import download_plan as plans
from filip.data.fetching.shard_maker import WORK
from filip.data.funnel import Fragment
from filip.data.lists import duckdb_io
from filip.data.lists.columns import RESERVED
from filip.data.stage import PART, Part, account_for, parse_part, share, sharing, sweep, tell
from filip.data.text_rules import check_list
from filip.sets.image_set import Account


@dataclass
class DownloadConfig:
    source: str = option(MISSING, "source card (name or path): image rules, sizes, timeouts")
    list: str = option(MISSING, "Parquet file with the columns url and caption; the others are carried along")
    out: str = option(MISSING, "folder of the shards: NNNNN.tar, NNNNN.parquet, NNNNN_stats.json", writes="store")
    funnel: str | None = option(None, "funnel fragment to write, JSON", writes="file")
    download: dict[str, Any] = option({}, "overrides of the card's, e.g. download={processes:8,threads:64}")
    part: str | None = option(None, PART)


def main(config: DownloadConfig) -> None:
    """Download the images of a list into webdataset shards, with the card's image rules."""
    card = overridden(load_source(config.source), "download", config.download)
    fragment = download(config.list, config.out, card, parse_part(config.part))
    if fragment is None:
        return
    head = f"{config.out}: {fragment.n_out:,} of {fragment.n_in:,} images in {fragment.notes['shards']} shards"
    tell(fragment, config.funnel, head, lambda reason: fragment.notes["examples"].get(reason, [""])[0][:90])


def download(list_path: str | Path, out: str | Path, card: SourceCard, part: Part = None) -> Fragment | None:
    """Fill the folder ``out`` with the images of ``list_path`` and account for every URL.

    part: fetch its shards alone, and return None: nothing is tried again or accounted for.

    Raises UserError when the folder was filled from another list or with other settings, when another process is
    filling it, when a shard could not be completed, or when no image could be fetched.
    """
    columns = check_list(list_path)
    if card.download.engine == "img2dataset":
        from filip.data.by_img2dataset import NOT_HEEDED, check_card

        check_card(card)
        say(f"download: {NOT_HEEDED}")
    reserved = sorted(set(columns) & set(RESERVED) - {"url", "caption"})
    if reserved:
        raise UserError(
            f"{list_path} has the columns {', '.join(reserved)}, which the shards have themselves: "
            "`filip data prepare` renames them"
        )
    folder = Path(out).resolve()
    work = folder / WORK
    with sharing(work, folder, part):
        with locked(work / "plan.lock"):
            plan = plans.make_plan(Path(list_path), folder, card, columns)
        sweep(work, part)
        number = 0
        while number < len(plan["passes"]):
            _run_pass(plan, number, folder, card, part)
            number += 1
            if number == len(plan["passes"]):
                with locked(work / "plan.lock"):
                    plan = _next_passes(plan, Path(list_path), folder, card, part)
        if part is not None:
            return None
        sweep(work, finished=True)
        shutil.rmtree(plans.in_progress(folder), ignore_errors=True)  # of parts that were started again
        fragment = account(folder, card)
        if not fragment.n_out:
            raise UserError(
                f"not one of {fragment.n_in:,} images could be downloaded: {counted(fragment.dropped)}, e.g. "
                f"{next(iter(fragment.notes['examples'].values()))[0]}. Is the network up? To try again: delete "
                f"{folder}, or give download={{retry_passes:{card.download.retry_passes + 1}}}"
            )
    return fragment


def _next_passes(plan: dict[str, Any], list_path: Path, folder: Path, card: SourceCard, part: Part) -> dict[str, Any]:
    """Return the plan with a pass for the list's new rows, or else for what is to be tried again, if there are any."""
    grown, plan = plan.get("grown"), plans.read_plan(folder)  # another part may have it already
    if grown in (None, plan["content"]):
        if part is None:
            plans.add_retry_pass(plan, folder, card.download.retry_passes)
    elif any(plans.missing_shards(plan, number, folder) for number in range(len(plan["passes"]))):
        say("download: the list has new rows; start this part again for its share, when all other parts are done")
    else:
        with closing(duckdb_io.connect(2, "2GB", folder / WORK / "spill")) as con:
            plans.grow(plan, grown, list_path, folder, card, con)
    return plan


def _run_pass(plan: dict[str, Any], number: int, folder: Path, card: SourceCard, part: Part = None) -> None:
    """Download the incomplete shards of one pass. Raises UserError when one cannot be completed."""
    this = plan["passes"][number]
    shards = plans.shards_of(this)
    todo = set(share(plans.missing_shards(plan, number, folder), part))
    if not todo:
        return
    for shard in todo:  # its remains must not look complete
        (folder / f"{shard:05d}_stats.json").unlink(missing_ok=True)
    left_out = {shard: rows for shard, rows in plans.left_out_rows(plan, number, folder) if shard in todo}
    totals: Counter[str] = Counter()
    with Progress("download, retry" if plans.is_retry(this) else "download", "shards", len(todo)) as progress:

        def finished(shard: int) -> None:
            totals.update({key: stats_of(folder, shard)[key] for key in ("count", "successes")})
            urls, images = totals["count"], totals["successes"]
            progress.add(note=f"{images:,} images of {urls:,} URLs ({images / max(1, urls):.1%})")

        of_pass: Any = {"card": card, "final_folder": folder, "columns": plan["columns"], "left_out": left_out}
        of_pass |= {"listed": plans.list_of(this, folder), "first_shard": this["first_shard"]}
        if card.download.engine == "img2dataset":
            from filip.data.by_img2dataset import Img2dataset

            name = f"{number}-{'all' if part is None else f'{part[0]}-of-{part[1]}'}"
            failures = Img2dataset(**of_pass, name=name).download_shards(todo, finished)
        else:
            # the process that workers are forked from imports OpenCV and the rest while this process does
            context = get_context("forkserver")
            context.set_forkserver_preload(["filip.data.fetching.workers", "filip.data.fetching.image_rules"])
            with deaf_to_ctrl_c():
                forkserver.ensure_running()
            # imported only now: it takes seconds, and a rerun with nothing to do should not
            from filip.data.fetching.workers import ShardDownloader, download_shards

            failures = download_shards(ShardDownloader(**of_pass, patient=plans.is_retry(this)), todo, finished)
    if failures:
        listed = "; ".join(f"{shard:05d}: {why}" for shard, why in sorted(failures.items())[:5])
        raise UserError(
            f"{len(failures)} of {len(shards)} shards of {folder} could not be completed ({listed}). The others are "
            "kept: fix the cause and run the same command again"
        )


def stats_of(folder: Path, shard: int) -> dict[str, Any]:
    """Return the statistics of a finished shard."""
    return json.loads((folder / f"{shard:05d}_stats.json").read_text())


def account(folder: Path, card: SourceCard) -> Fragment:
    """Return the funnel of a filled folder: each URL of the list is in exactly one bucket.

    A URL that was retried is counted in its last pass only, one that the list has lost not at all.
    """
    plan = plans.read_plan(folder)
    dropped = Account()
    images, seconds, urls = 0, 0.0, 0
    for number, one_pass in enumerate(plan["passes"]):
        images += account_for(folder, plans.shards_of(one_pass), dropped, plans.left_out_rows(plan, number, folder))
        for shard in plans.shards_of(one_pass):
            stats = stats_of(folder, shard)
            seconds, urls = seconds + stats["duration"], urls + stats["count"]
    notes = {
        "engine": card.download.engine,
        "shards": sum(len(plans.shards_of(one_pass)) for one_pass in plan["passes"]),
        "retried": [one_pass["rows"] for one_pass in plan["passes"] if plans.is_retry(one_pass)],
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
