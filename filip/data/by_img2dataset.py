"""Download by img2dataset itself, in a process and an environment of its own: ``download: {engine: img2dataset}``.

Its folder of tars is beside the shards and comes in by :mod:`filip.data.ingest`, so that the shards and the
funnel are the same; its failures are in the funnel under our names. ``download.img2dataset`` has any
of its own options (https://github.com/rom1504/img2dataset). It asks for inner addresses as well: what
``allow_private_hosts`` forbids, our own engine alone refuses.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from filip.data.cards import ImageRuleSettings, SourceCard, TextRuleSettings
from filip.data.funnel import Fragment
from filip.data.ingest import IngestConfig, ingest
from filip.data.stage import filling
from filip.errors import UserError
from filip.progress import say

VERSIONS = "img2dataset>=1.45,<1.48"
# The first of these that is found in the message is the reason, as our own engine calls it.
REASONS = {
    r"HTTP Error 5\d\d": "http_5xx",
    r"HTTP Error (\d{3})": r"http_\1",
    "timed out": "timeout",
    "Name or service not known|name resolution|nodename nor": "dns",
    "SSL|CERTIFICATE": "tls",
    "Use of image disallowed": "opted_out",
    "unknown url type|no host given|can't contain": "malformed_url",
    "IncompleteRead": "cut_off",
    "Connection|Remote end|reset by peer|refused": "connection",
    "too small": "too_small",
    "aspect ratio": "aspect",
    "decod|image file": "not_an_image",
}
# The list has been judged before, and img2dataset has judged the pictures in their own sizes.
ANY_TEXT = TextRuleSettings(False, False, [], 0, 0, sys.maxsize, 0, sys.maxsize)
ANY_IMAGE = ImageRuleSettings(0, float("inf"))


def download_by_img2dataset(list_path: str | Path, out: str | Path, card: SourceCard, tars: str | None) -> Fragment:
    """Fill ``out`` as :func:`filip.data.download.download` does. Raises UserError if img2dataset fails."""
    folder = Path(out).resolve()
    theirs = folder.with_name(f"{folder.name}.img2dataset")
    columns = [name for name in pq.read_schema(list_path).names if name not in ("url", "caption")]
    if not card.allow_private_hosts:
        say("download: img2dataset asks private addresses as well, although the card has allow_private_hosts: false")
    with filling(theirs):
        command = [*_program(), *_arguments(Path(list_path), theirs, card, columns)]
        done = subprocess.run(command, env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}, stdout=sys.stderr)
    if done.returncode:
        raise UserError(f"img2dataset ended with status {done.returncode}; it says above why. The same command goes on")
    dropped: Counter[str] = Counter()
    rows = pq.read_metadata(list_path).num_rows
    fetched = 0
    for path in sorted(theirs.glob("*.parquet")):
        for row in pq.read_table(path, columns=["status", "error_message"]).to_pylist():
            if row["status"] == "success":
                fetched += 1
            else:
                dropped[reason_of_message(row["error_message"] or row["status"])] += 1
    if missing := rows - fetched - dropped.total():
        dropped["lost_shard"] = missing  # img2dataset counts a shard that failed on its screen alone
    if not fetched:
        raise UserError(f"img2dataset fetched not one of {rows:,} images: {dict(dropped)}")
    source = replace(card, images=str(theirs), layout="tars", list=None, split="all")
    source = replace(source, text_rules=ANY_TEXT, image_rules=ANY_IMAGE)
    _, images = ingest(source, IngestConfig(card.name, out=str(folder), tars=tars, shuffle=False))
    dropped.update({reason: n for reason, n in images.dropped.items() if reason != "other_file"})
    notes = {**images.notes, "engine": "img2dataset", "success_rate": round(fetched / rows, 4)}
    return Fragment("download", card.name, rows, images.n_out, dict(dropped), "pairs", notes)


def reason_of_message(message: str) -> str:
    """Return our name for img2dataset's status of a URL; "other" for an unknown one."""
    for pattern, reason in REASONS.items():
        if match := re.search(pattern, message, re.IGNORECASE):
            return match.expand(reason)
    return "other"


def _program() -> list[str]:
    """Return img2dataset of this environment, or one that uv fetches into an environment of its own."""
    program = Path(sys.executable).with_name("img2dataset")
    if program.exists():
        return [str(program)]
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        raise UserError(f"engine: img2dataset needs it: pip install '{VERSIONS}', or uv, which fetches it by itself")
    return [str(uv), "tool", "run", "--from", VERSIONS, "img2dataset"]


def _arguments(listed: Path, out: Path, card: SourceCard, columns: list[str]) -> list[str]:
    load, rules = card.download, card.image_rules
    options = {
        "url_list": str(listed),
        "input_format": "parquet",
        "url_col": "url",
        "caption_col": "caption",
        "save_additional_columns": columns or None,
        "output_folder": str(out),
        "output_format": "webdataset",
        "image_size": load.image_size,
        "resize_mode": load.resize_mode,
        "resize_only_if_bigger": load.only_if_bigger,
        "encode_format": load.encode_format,
        "encode_quality": load.quality,
        "min_image_size": rules.min_side,
        "max_aspect_ratio": rules.max_aspect,
        "processes_count": load.processes,
        "thread_count": load.threads,
        "number_sample_per_shard": load.samples_per_shard,
        "timeout": load.timeout,
        "retries": load.retries,
        "incremental_mode": "incremental",
        **load.img2dataset,
    }
    return [f"--{name}={json.dumps(v) if isinstance(v, list) else v}" for name, v in options.items() if v is not None]
