"""Download throughput on loopback: filip.data.download against img2dataset.download called directly.

    python -m bench.download images=4000 processes=2 threads=16
    python -m bench.download images=1000 processes=1 https=true busy=2

A server on this machine serves 500 x 400 JPEGs of noise (90 kB each) from memory, as 20 hosts (127.0.0.1 to .20), of
which ``busy`` answer 429 with Retry-After: 5; both store 256-pixel JPEGs in webdataset shards. Rates are those of
the first pass, by the shards' statistics: start-up (imports) is left out. The seconds of the retry pass, which
img2dataset does not have, are counted from the end of the first. Processor seconds are those of a whole command
and all of its workers, less those of the same command with one shard of 20 URLs, by the number of URLs between. The
order is direct, filip, filip, direct, so that a drift of the machine's speed affects both equally.
"""

import ctypes
import datetime
import io
import ipaddress
import json
import multiprocessing
import os
import resource
import shutil
import signal
import ssl
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
FEW = 20  # URLs of the command whose processor time is that of starting
HOSTS = [f"127.0.0.{number}" for number in range(1, 21)]
PAUSE = 5  # seconds that a busy host asks for
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux's prctl: orphans become this process's children


@dataclass
class DownloadBench:
    images: int = option(4000, "images per run")
    processes: int = option(2, "worker processes")
    threads: int = option(16, "per process")
    rounds: int = option(1, "repetitions of direct, filip, filip, direct")
    https: bool = option(False, "serve by HTTPS, with a certificate that is made for it")
    busy: int = option(0, "of 20 hosts, how many answer 429 to every request", at_least=0, at_most=19)


def certificate(folder: Path) -> None:
    """Write a key and a certificate of the hosts, and trust it besides the machine's own, as ``SSL_CERT_FILE``."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    hosts = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host)) for host in HOSTS])
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    made = made.add_extension(hosts, critical=True)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    pem = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    kinds = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *kinds))
    (folder / "certificate.pem").write_bytes(pem)
    bundle = ssl.get_default_verify_paths().openssl_cafile
    (folder / "trusted.pem").write_bytes((Path(bundle).read_bytes() if Path(bundle).exists() else b"") + pem)
    os.environ["SSL_CERT_FILE"] = str(folder / "trusted.pem")


def serve(port: Any, count: int, busy: int, certified: Path | None) -> None:
    """Serve ``count`` different JPEGs on a free port, which goes into the shared value ``port``."""
    refusing = set(HOSTS[:busy])
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
            if self.headers["Host"].partition(":")[0] in refusing:
                self.send_response(429)
                self.send_header("Retry-After", str(PAUSE))
                self.end_headers()
                return
            body = bodies[int(self.path[1:]) % count]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    class Server(ThreadingHTTPServer):
        request_queue_size = 512

        def finish_request(self, request: Any, address: Any) -> None:  # in a thread: so is the handshake
            if certified is not None:
                request = context.wrap_socket(request, server_side=True)
            super().finish_request(request, address)

        def handle_error(self, *_: Any) -> None:
            pass

    if certified is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certified / "certificate.pem", certified / "key.pem")
    server = Server(("0.0.0.0", 0), Handler)
    port.value = server.server_port
    server.serve_forever()


def direct(source: Path, out: Path, config: DownloadBench) -> None:
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


def ours(source: Path, out: Path, config: DownloadBench) -> None:
    settings = DownloadSettings(
        image_size=256, processes=config.processes, threads=config.threads, samples_per_shard=SHARD
    )
    card = SourceCard("bench", download=settings, image_rules=ImageRuleSettings(), allow_private_hosts=True)
    download(source, out, card)


def passes(out: Path, images: int) -> tuple[float, float]:
    """Return the images per second of the first pass and the seconds of the retry pass."""
    stats = [json.loads(path.read_text()) for path in sorted(out.glob("*_stats.json"))]
    first = stats[: -(-images // SHARD)]
    end = max(s["end_time"] for s in first)
    rate = sum(s["successes"] for s in first) / (end - min(s["start_time"] for s in first))
    return round(rate, 1), round(max(s["end_time"] for s in stats) - end, 1)


def processor_seconds(command: Callable[[], None]) -> float:
    """Run a command in a separate process; return the processor seconds that it and its descendants used."""
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        command()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"a command ended with {status}")
    time.sleep(1)  # its fork server ends by itself
    while True:  # orphans are waited for, as their time counts
        try:
            ended, _ = os.waitpid(-child, os.WNOHANG)
        except ChildProcessError:
            break
        if not ended:
            os.killpg(child, signal.SIGTERM)
            time.sleep(0.2)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(config: DownloadBench) -> None:
    """Print one JSON object with the rates and the processor time of both."""
    folder = Path(tempfile.mkdtemp(prefix="bench_download."))
    if config.https:
        certificate(folder)
    port = multiprocessing.Value("i", 0)
    arguments = (port, 64, config.busy, folder if config.https else None)
    server = multiprocessing.Process(target=serve, args=arguments, daemon=True)
    server.start()
    while not port.value:
        time.sleep(0.1)
    rates: dict[str, list[float]] = {"img2dataset": [], "filip": []}
    cost: dict[str, list[float]] = {"img2dataset": [], "filip": []}
    again: list[float] = []
    try:
        scheme = "https" if config.https else "http"
        urls = [f"{scheme}://{HOSTS[i % len(HOSTS)]}:{port.value}/{i}" for i in range(config.images)]
        sources = []
        for number, some in enumerate((urls, urls[-FEW:])):
            sources.append(folder / f"list{number}.parquet")
            pq.write_table(pa.table({"url": some, "caption": ["a caption"] * len(some)}), sources[-1])
        order = [("img2dataset", direct), ("filip", ours), ("filip", ours), ("img2dataset", direct)]
        for name, run in order * config.rounds:
            out = folder / f"out{sum(map(len, rates.values()))}"
            whole, few = (
                processor_seconds(partial(run, listed, out / str(number), config))
                for number, listed in enumerate(sources)
            )
            cost[name].append(round(1000 * (whole - few) / (config.images - FEW), 2))
            rate, retry = passes(out / "0", config.images)
            rates[name].append(rate)
            again += [retry] if run is ours else []
            shutil.rmtree(out)
    finally:
        shutil.rmtree(folder)
        server.terminate()
    mean = {name: sum(values) / len(values) for name, values in rates.items()}
    ratio = round(mean["filip"] / mean["img2dataset"], 3)
    report = {"images_per_second": rates, "filip_over_img2dataset": ratio, "cpu_ms_per_url": cost}
    print(json.dumps(report | {"seconds_of_the_retry_pass": again}, indent=2))


if __name__ == "__main__":
    run_command(main, DownloadBench)
