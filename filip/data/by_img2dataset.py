"""Fetch with img2dataset itself, in a process and an environment of its own: ``download: {engine: img2dataset}``.

It fetches, checks, resizes and encodes. All else is the download's, as with our own engine: the plan, parts, the pass
over failures, the shards, forgotten images, the funnel. Its pictures come as Parquet, become shards while it runs, and
are removed. It knows no TDM reservations, and no private addresses: it asks what a list names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from filip.cli.extras import how_to_install
from filip.common.errors import UserError
from filip.common.files import replacing, write_json
from filip.data.cards import SourceCard
from filip.data.fetching.access import local_root
from filip.data.fetching.download_plan import WHERE_IT_RUNS, in_progress
from filip.data.fetching.outcomes import FORGOTTEN, Forgotten
from filip.data.fetching.shard_maker import Image, PassMaker, Stored, shard_name, shard_schema

REQUIREMENTS = ("img2dataset>=1.45,<1.48", "standard-imghdr; python_version >= '3.13'")  # the extra img2dataset
DISTRIBUTORS = ("multiprocessing", "pyspark")
# img2dataset starts Spark on this machine alone, unless there is a session: this one is of spark-defaults.conf.
ON_SPARK = """import os, sys
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
from pyspark.sql import SparkSession
SparkSession.builder.getOrCreate()
from img2dataset.main import main
main()"""
# Its further options; the others are keys of a card, or decide on files that are not kept.
OPTIONS = ("upscale_interpolation", "downscale_interpolation", "max_image_area", "user_agent_token",
           "disallowed_header_directives", *WHERE_IT_RUNS)  # fmt: skip
NOT_HEEDED = (
    "img2dataset ignores TDM reservations, per_host and contact, and asks private addresses; engine: own does not"
)
ASKED = "_asked_"  # in its list: the URL, or nothing where a row is not to be asked for
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


def check_card(card: SourceCard) -> None:
    """Raise UserError for settings that img2dataset does not have, or that it would not obey."""
    for key in card.download.img2dataset:
        if key not in OPTIONS:
            raise UserError(
                f"download.img2dataset.{key} is not passed on: its options are {', '.join(OPTIONS)}. Sizes, formats, "
                "time-outs and numbers of processes are keys of `download` and `image_rules`"
            )
    if card.download.img2dataset.get("distributor", "multiprocessing") not in DISTRIBUTORS:
        raise UserError(f"download.img2dataset.distributor must be one of {', '.join(DISTRIBUTORS)}")
    if local_root(card.image_root) is not None:
        raise UserError(
            f"image_root={card.image_root} is a folder, and img2dataset fetches over a network: engine: own"
        )


@dataclass(kw_only=True)
class Img2dataset(PassMaker):
    """Maker of the shards of one pass, from img2dataset's pictures.

    name: of its folder, the same after a restart.
    """

    name: str

    def download_shards(self, todo: set[int], finished: Callable[[int], None]) -> dict[int, str]:
        """Make these shards; call ``finished(shard)``; return {shard: why it could not be completed}."""
        place = in_progress(self.final_folder) / self.name
        shards = self._listed(place, todo)
        theirs = place / "pictures"
        left = {number: shard for number, shard in enumerate(shards) if shard in todo}

        def collect() -> None:
            for number, shard in list(left.items()):
                if (theirs / f"{number:05d}_stats.json").exists():
                    self._store(shard, number, theirs)
                    del left[number]
                    finished(shard)

        collect()  # of a run that was killed
        if left:
            status = self._run(place / "list.parquet", theirs, collect)
            collect()
            if status:
                raise UserError(
                    f"img2dataset ended with status {status}; it says above why. The same command continues"
                )
        failures = dict.fromkeys(left.values(), "img2dataset gave it up; it says above why")
        if not failures:
            shutil.rmtree(place)
        return failures

    def _listed(self, place: Path, todo: set[int]) -> list[int]:
        """Write the list of some shards, a row group each, unless it is there; return their numbers in its order."""
        order = place / "shards.json"
        if order.exists() and todo <= set(shards := json.loads(order.read_text())):
            return list(shards)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        forgotten = Forgotten.load(self.final_folder)
        with replacing(place / "list.parquet") as part:
            writer = None
            for shard in sorted(todo):
                table, hidden = self.rows_of(shard), self.left_out.get(shard, set())
                urls = [
                    "" if row in hidden or forgotten.refuses(url or "") else url or ""
                    for row, url in enumerate(table["url"].to_pylist())
                ]
                table = table.append_column(ASKED, pa.array(urls, pa.string()))
                writer = writer or pq.ParquetWriter(part, table.schema)
                writer.write_table(table, max(1, len(table)))
            assert writer is not None
            writer.close()
        write_json(order, sorted(todo))
        return sorted(todo)

    def _run(self, listed: Path, theirs: Path, collect: Callable[[], None]) -> int:
        """Run img2dataset to its end, and ``collect`` from time to time; return its exit status."""
        command = [*program(self.card), *_arguments(listed, theirs, self.card)]
        python = f"{sys.version_info.major}.{sys.version_info.minor}"  # uv would take the system's
        environment = {"UV_PYTHON": python, **os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
        running = subprocess.Popen(command, env=environment, stdout=sys.stderr)
        try:
            while True:
                try:
                    return running.wait(1)
                except subprocess.TimeoutExpired:
                    collect()
        finally:
            running.terminate()
            running.wait()

    def _store(self, shard: int, number: int, theirs: Path) -> None:
        """Make a shard of one of its own."""
        pictures, described = theirs / f"{number:05d}.parquet", theirs / f"{number:05d}_stats.json"
        with self.staged(shard) as (staging, progress):
            table = self.rows_of(shard)
            images = self._images(shard, pictures, table["url"].to_pylist())
            stats = self.fill(shard, staging, progress, table.to_pylist(), shard_schema(table.schema), images)
            times = json.loads(described.read_text())
            stats |= {key: times[key] for key in ("duration", "start_time", "end_time")}
            write_json(staging / f"{shard_name(shard)}_stats.json", stats)
        pictures.unlink()

    def _images(self, shard: int, pictures: Path, urls: list[str | None]) -> Iterator[Image]:
        """Yield each row of a shard, with its outcome."""
        retried, forgotten = self.left_out.get(shard, set()), Forgotten.load(self.final_folder)
        on_request = Stored(status="failed_to_download", error_message=f"{FORGOTTEN}: on request")
        left = set(range(len(urls)))
        with pq.ParquetFile(pictures) as parquet:
            for row in (row for batch in parquet.iter_batches(256) for row in batch.to_pylist()):
                number = int(row["key"]) % 10**self.digits
                left.remove(number)
                if number in retried:
                    yield number, None, "retried: in a later pass"
                elif forgotten.refuses(urls[number] or "") or row["sha256"] in forgotten.files:
                    yield number, on_request, ""
                elif row["status"] != "success":
                    message = row["error_message"] or row["status"]
                    reason = f"{reason_of_message(message)}: {message}"
                    yield number, Stored(status=row["status"], error_message=reason), ""
                else:
                    size = {name: row[name] for name in ("width", "height", "original_width", "original_height")}
                    data = row[self.card.download.encode_format]
                    yield number, Stored(data, "success", sha256=row["sha256"], **size), ""
        for number in sorted(left):  # it names them on its screen alone
            yield number, None, "lost_row: img2dataset's own error"


def reason_of_message(message: str) -> str:
    """Return our name for img2dataset's status of a URL; "other" for an unknown one."""
    for pattern, reason in REASONS.items():
        if match := re.search(pattern, message, re.IGNORECASE):
            return match.expand(reason)
    return "other"


def program(card: SourceCard) -> list[str]:
    """Return the Python with img2dataset in it, this one or one that uv fetches, and the program that it runs.

    Raises UserError if there is neither, or no Java for Spark.
    """
    spark = card.download.img2dataset.get("distributor") == "pyspark"
    if spark and shutil.which("java") is None:
        raise UserError("download.img2dataset.distributor is pyspark, which needs Java, and there is no `java` here")
    called = ["-c", ON_SPARK] if spark else ["-m", "img2dataset.main"]
    if Path(sys.executable).with_name("img2dataset").exists():
        return [sys.executable, *called]
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        raise UserError(f"engine: img2dataset needs it ({how_to_install('img2dataset')}), or uv, which fetches it")
    packages = [word for package in (*REQUIREMENTS[1:], *["pyspark"] * spark) for word in ("--with", package)]
    return [str(uv), "tool", "run", "--from", REQUIREMENTS[0], *packages, "python", *called]


def _arguments(listed: Path, out: Path, card: SourceCard) -> list[str]:
    load, rules = card.download, card.image_rules
    options = {
        "url_list": str(listed),
        "input_format": "parquet",
        "url_col": ASKED,
        "output_folder": str(out),
        "output_format": "parquet",
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
        "extract_exif": False,
        "incremental_mode": "incremental",
        **load.img2dataset,
    }
    return [f"--{name}={json.dumps(v) if isinstance(v, list) else v}" for name, v in options.items() if v is not None]
