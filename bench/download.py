"""Download throughput on loopback: filip.data.download against img2dataset.download called directly.

    python -m bench.download images=4000 processes=2 threads=16

A server on this machine serves 500 x 400 JPEGs of noise (90 kB each) from memory; both store 256-pixel JPEGs in
webdataset shards. Start-up (imports) is left out: img2dataset's own per-shard statistics give the seconds. The
order is direct, filip, filip, direct, so that a drift of the machine's speed affects both equally.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import shutil
import tempfile
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from filip.command import option, run_command
from filip.data.cards import DownloadSettings, ImageRuleSettings, SourceCard
from filip.data.download import download

SHARD = 500


@dataclass
class BenchConfig:
    images: int = option(4000, "images per run")
    processes: int = option(2, "worker processes")
    threads: int = option(16, "per process")
    rounds: int = option(1, "repetitions of direct, filip, filip, direct")


def serve(port: Any, count: int) -> None:
    """Serve ``count`` different JPEGs on a free port, which goes into the shared value ``port``."""
    rng = np.random.default_rng(0)
    bodies = []
    for _ in range(count):
        small = rng.integers(0, 256, (50, 63, 3), np.uint8)
        out = io.BytesIO()
        Image.fromarray(small).resize((500, 400), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        bodies.append(out.getvalue())

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            body = bodies[int(self.path[1:]) % count]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.request_queue_size = 512
    port.value = server.server_port
    server.serve_forever()


def direct(source: Path, out: Path, config: BenchConfig) -> None:
    """Download with img2dataset as its README calls it, with the same rules and sizes."""
    import img2dataset

    img2dataset.download(
        url_list=str(source),
        input_format="parquet",
        url_col="url",
        caption_col="caption",
        output_folder=str(out),
        output_format="webdataset",
        image_size=256,
        resize_mode="keep_ratio",
        resize_only_if_bigger=True,
        processes_count=config.processes,
        thread_count=config.threads,
        number_sample_per_shard=SHARD,
        extract_exif=False,
        min_image_size=200,
        max_aspect_ratio=3.0,
        retries=1,
    )


def ours(source: Path, out: Path, config: BenchConfig) -> None:
    settings = DownloadSettings(
        image_size=256, processes=config.processes, threads=config.threads, samples_per_shard=SHARD
    )
    card = SourceCard("bench", download=settings, image_rules=ImageRuleSettings(), allow_private_hosts=True)
    download(source, out, card)


def images_per_second(out: Path) -> float:
    """Return the images per second from the start of the first shard to the end of the last."""
    stats = [json.loads(path.read_text()) for path in out.glob("*_stats.json")]
    seconds = max(s["end_time"] for s in stats) - min(s["start_time"] for s in stats)
    return float(sum(s["successes"] for s in stats) / seconds)


def main(config: BenchConfig) -> None:
    """Print one JSON object with the rates of both."""
    port = multiprocessing.Value("i", 0)
    server = multiprocessing.Process(target=serve, args=(port, 64), daemon=True)
    server.start()
    while not port.value:
        time.sleep(0.1)
    folder = Path(tempfile.mkdtemp(prefix="bench_download."))
    rates: dict[str, list[float]] = {"img2dataset": [], "filip": []}
    try:
        urls = [f"http://127.0.0.1:{port.value}/{i}" for i in range(config.images)]
        source = folder / "list.parquet"
        pq.write_table(pa.table({"url": urls, "caption": ["a caption"] * len(urls)}), source)
        order = [("img2dataset", direct), ("filip", ours), ("filip", ours), ("img2dataset", direct)]
        for name, run in order * config.rounds:
            out = folder / f"out{sum(map(len, rates.values()))}"
            run(source, out, config)
            rates[name].append(round(images_per_second(out), 1))
            shutil.rmtree(out)
    finally:
        shutil.rmtree(folder)
        server.terminate()
    mean = {name: sum(values) / len(values) for name, values in rates.items()}
    ratio = round(mean["filip"] / mean["img2dataset"], 3)
    print(json.dumps({"images_per_second": rates, "filip_over_img2dataset": ratio}, indent=2))


if __name__ == "__main__":
    run_command(main, BenchConfig)
