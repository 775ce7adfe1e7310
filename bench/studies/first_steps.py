"""Measure the first steps of DataComp's users: a list of a million rows in a bucket, to a training that streams.

    python -m bench.studies.first_steps rows=1000000 uids=3200 out=results/first_steps

The list has LAION's columns and lies on moto's S3 server, as four Parquet files. ``where`` and a file of uids leave
some two thousand rows, whose images a server on this machine gives; the tars go to the bucket. Some images are copies
of others, and some those of a benchmark. The similarity is that of the model that comes with the package. Each stage is
the command that a user types; printed are its rows, seconds, processor seconds and bytes.
"""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from bench.download import HOSTS, processor_seconds, serve
from filip.command import option, run_command
from filip.table_writer import Grid, Head, Line, Shown, render

BUCKET, PARTS, TESTS = "s3://laion", 4, 40
MODEL = "filip/resources/emoji.safetensors"
WORDS = (
    ["a small", "an old", "a red", "a wooden", "a bright", "a broken", "a new", "a large"],
    ["dog", "house", "bicycle", "table", "bridge", "boat", "garden", "kitchen", "lamp", "horse", "cup", "train"],
    ["next to", "in front of", "behind", "far away from", "close to"],
    ["the river", "a tall tree", "the old market", "a stone wall", "my neighbour", "the railway station"],
    ["in the morning", "on a rainy day", "in winter", "at night", "during the summer holidays"],
)
GERMAN = "ein alter Mann sitzt auf einer Bank vor dem Haus"


@dataclass
class Steps:
    rows: int = option(1_000_000, "rows of the list", at_least=1000)
    uids: int = option(3200, "rows that the file of uids names", at_least=200)
    out: str = option("results/first_steps", "folder of what the stages write; it is emptied", writes="folder")
    steps: int = option(20, "steps of the training", at_least=1)


@contextmanager
def bucket() -> Iterator[None]:
    """Serve S3's protocol on this machine, and name the server to this process and its children."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    boto3.client("s3").create_bucket(Bucket=BUCKET.partition("://")[2])
    yield
    server.stop()


def write_list(config: Steps, port: int) -> None:
    """Put the list, with LAION's columns, and the uids, as DataComp's, into the bucket."""
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.choice(config.rows, config.uids, replace=False))
    image = np.arange(config.rows)
    image[chosen] = np.arange(config.uids)  # all others are not asked for
    uids = rng.integers(0, 1 << 63, (config.rows, 2), np.uint64)
    files = fsspec.filesystem("s3")
    for rows in np.array_split(np.arange(config.rows), PARTS):
        drawn = [rng.integers(0, len(words), len(rows)) for words in WORDS]
        picked = zip(*(np.array(words)[n] for words, n in zip(WORDS, drawn, strict=True)), strict=True)
        texts = [" ".join(words) for words in picked]
        texts = [GERMAN if german else text for text, german in zip(texts, rng.random(len(rows)) < 0.1, strict=True)]
        table = pa.table(
            {
                "uid": [f"{high:016x}{low:016x}" for high, low in uids[rows].tolist()],
                "URL": [f"http://{HOSTS[n % len(HOSTS)]}:{port}/{n}" for n in image[rows].tolist()],
                "TEXT": texts,
                "HEIGHT": rng.integers(100, 2000, len(rows)),
                "WIDTH": rng.integers(100, 2000, len(rows)),
                "LICENSE": ["?"] * len(rows),
                "NSFW": np.array(["UNLIKELY", "UNSURE", "NSFW"])[rng.integers(0, 3, len(rows))],
                "similarity": rng.normal(0.3, 0.04, len(rows)),
                "punsafe": rng.beta(1, 8, len(rows)),
                "pwatermark": rng.random(len(rows)),
            }
        )
        with fsspec.open(f"{BUCKET}/list/part-{rows[0]:08d}.parquet", "wb") as file:
            pq.write_table(table, file)
    stored = io.BytesIO()
    np.save(stored, uids[chosen].view([("f0", "u8"), ("f1", "u8")])[:, 0])
    files.pipe(f"{BUCKET}/uids.npy", stored.getvalue())


def write_benchmark(folder: Path, port: int) -> None:
    """Write a benchmark of two classes whose images are some of the list's, made smaller."""
    for n in range(TESTS):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{n}") as answer:
            picture = Image.open(io.BytesIO(answer.read())).resize((250, 200))
        place = folder / "benchmarks/pets/test" / ("cat" if n % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        picture.save(place / f"{n}.png")
    card: dict[str, Any] = {
        "name": "pets",
        "title": "Pets",
        "kind": "classification",
        "metric": "top1",
        "loader": "imagefolder",
    }
    card |= {"layouts": {"imagefolder": {"path": "pets", "split": "test"}}, "classes": {"cat": "cat", "dog": "dog"}}
    (folder / "pets.yaml").write_text(yaml.safe_dump(card))


def write_card(folder: Path) -> None:
    card = {
        "title": "A list with LAION's columns",
        "list": f"{BUCKET}/list/part-*.parquet",
        "url_column": "URL",
        "caption_column": "TEXT",
        "where": "similarity > 0.28 and punsafe < 0.5",
        "uids": f"{BUCKET}/uids.npy",
        "allow_private_hosts": True,
        "download": {"image_size": 224, "samples_per_shard": 500, "processes": 2, "threads": 16},
    }
    (folder / "laion.yaml").write_text(yaml.safe_dump(card))


def commands(folder: Path, config: Steps) -> dict[str, list[str]]:
    """Return the stages with the options that a user gives them."""
    card, shards = f"source={folder}/laion.yaml", f"shards={folder}/shards"
    training = {
        "experiment": "demo", "model": "tiny", "run": "steps", "run_dir": folder / "run",
        "out": folder / "model.safetensors", "global_batch": 64, "max_steps": config.steps, "backend": "tiled",
        "precision": "fp32", "transport_dtype": "fp32", "optimizer.warmup_steps": 2,
        "data.sources": f"[{{shards: {folder}/shards, captions: {folder}/selected, manifest: {folder}/manifest.json}}]",
    }  # fmt: skip
    return {
        "data.prepare": [card, f"out={folder}/list.parquet", f"funnel={folder}/prepare.json"],
        "data.text_rules": [
            card, f"list={folder}/list.parquet", f"out={folder}/kept.parquet", f"funnel={folder}/text_rules.json",
        ],
        "data.download": [
            card, f"list={folder}/kept.parquet", f"out={folder}/shards", f"tars={BUCKET}/tars",
            f"funnel={folder}/download.json",
        ],
        "data.translate": [card, shards, f"out={folder}/captions", "engine=none", "pivots=[]"],
        "data.score": [
            card, shards, f"captions={folder}/captions", f"out={folder}/scored", f"model={MODEL}",
            f"test_sets=[{folder}/pets.yaml]", f"root={folder}/benchmarks",
        ],
        "data.select": [
            card, f"captions={folder}/scored", f"out={folder}/selected", f"funnel={folder}/select.json",
            'keep=["near_distance > 3", "test_distance > 6", "similarity > -1"]',
        ],
        "data.manifest": [
            card, f"list={folder}/list.parquet", f"kept={folder}/kept.parquet", shards, f"captions={folder}/selected",
            f"funnels=[{folder}/prepare.json,{folder}/text_rules.json,{folder}/download.json,{folder}/select.json]",
            f"out={folder}/manifest.json",
        ],
        "train": [f"{name}={value}" for name, value in training.items()],
    }  # fmt: skip


def size_of(folder: Path) -> int:
    """Return the bytes of a folder's files and of the bucket."""
    local = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    files = fsspec.filesystem("s3")
    files.invalidate_cache()
    return local + int(files.du(BUCKET))


def run(module: str, options: list[str], seconds: Any, log: Path) -> None:
    """Run a stage in a forked process; its seconds go into the shared value."""
    started = time.monotonic()
    with open(log, "wb") as output:
        asked = [sys.executable, "-m", f"filip.{module}", *options]
        done = subprocess.run(asked, stdout=output, stderr=subprocess.STDOUT, check=False)
    seconds.value = time.monotonic() - started
    if done.returncode:
        print(f"{module} ended with {done.returncode}:\n{log.read_text()[-3000:]}", file=sys.stderr, flush=True)
        os._exit(1)


def main(config: Steps) -> None:
    """Run the stages one after the other and print a table of them."""
    folder = Path(config.out).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    port, seconds = multiprocessing.Value("i", 0), multiprocessing.Value("d", 0.0)
    server = multiprocessing.Process(target=serve, args=(port, int(0.9 * config.uids), 0, None), daemon=True)
    server.start()
    lines = []
    with bucket():
        while not port.value:
            time.sleep(0.1)
        write_list(config, port.value)
        write_benchmark(folder, port.value)
        write_card(folder)
        print(f"list and uids in the bucket: {size_of(folder) / 1e6:.1f} MB with the benchmark", flush=True)
        for stage, options in commands(folder, config).items():
            before = size_of(folder)
            used = processor_seconds(partial(run, stage, options, seconds, folder / f"{stage}.log"))
            name = stage.rpartition(".")[2]
            funnel = folder / f"{name}.json"
            told: dict[str, Any] = json.loads(funnel.read_text()) if funnel.exists() else {}
            rows = f"{told['in']:,} → {told['out']:,}" if "in" in told else ""
            shown = (rows, f"{seconds.value:.1f}", f"{used:.1f}", f"{(size_of(folder) - before) / 1e6:.2f}")
            lines.append(Line(name, [Shown(text) for text in shown]))
            print(f"{name}: {', '.join(shown)}", flush=True)
            if dropped := told.get("dropped"):
                print(f"  dropped {dropped}", flush=True)
    server.terminate()
    heads = [Head(title) for title in ("rows", "seconds", "processor seconds", "MB written")]
    print(render(Grid(heads, lines, corner="stage", whole=True), "markdown"))


if __name__ == "__main__":
    run_command(main, Steps)
