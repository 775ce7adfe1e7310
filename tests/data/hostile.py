"""A web server with everything that goes wrong on the web, on a free port of this machine."""

import gzip
import random
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np
from PIL import Image

from tests.support.shards import encoded

RED, GREEN, BLUE = (200, 30, 30), (30, 160, 30), (30, 30, 200)


def plain(width: int = 300, height: int = 240, colour=RED, kind: str = "JPEG", **options) -> bytes:
    return encoded(Image.new("RGB", (width, height), colour), kind, **options)


def noisy(width: int, height: int, seed: int) -> Image.Image:
    """Return noise, which does not compress: cutting such a file in half loses half of the picture."""
    pixels = random.Random(seed).randbytes(width * height * 3)
    return Image.frombytes("RGB", (width, height), pixels)


def halves(top=RED, bottom=BLUE) -> Image.Image:
    image = Image.new("RGB", (300, 240), top)
    image.paste(bottom, (0, 120, 300, 240))
    return image


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side: int = 30_000) -> bytes:
    """Return a valid PNG of side x side pixels in a few kilobytes; decoded as RGB it takes 2.7 GB."""
    packer = zlib.compressobj(9)
    row = b"\0" * (1 + side // 8)
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def png16_rgb(colour=GREEN, width: int = 300, height: int = 240) -> bytes:
    row = b"\0" + struct.pack(">HHH", *(value * 257 for value in colour)) * width
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = zlib.compress(row * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def exif_rotated() -> bytes:
    """Return a picture stored lying on its side (240 wide): upright it is 300 x 240, red above and blue below."""
    stored = halves().rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90 degrees clockwise to show
    return encoded(stored, "JPEG", exif=exif, quality=95)


def rgba() -> bytes:
    """Return a picture that is green on the left and transparent (over black) on the right."""
    image = Image.new("RGBA", (300, 240), (0, 0, 0, 0))
    image.paste((*GREEN, 255), (0, 0, 150, 240))
    return encoded(image, "PNG")


GOOD: dict[str, Callable[[], bytes]] = {
    "jpeg": plain,
    "png": lambda: plain(colour=GREEN, kind="PNG"),
    "webp": lambda: plain(colour=BLUE, kind="WEBP"),
    "gif": lambda: encoded(halves(RED, RED), "GIF", save_all=True, append_images=[halves(BLUE, BLUE)]),
    "cmyk": lambda: encoded(Image.new("CMYK", (300, 240), (255, 255, 0, 0)), "JPEG"),
    "palette": lambda: encoded(halves().convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
    "grey16": lambda: encoded(Image.fromarray(np.full((240, 300), 0x8000, np.uint16)), "PNG"),
    "rgb16": png16_rgb,
    "exif": exif_rotated,
    "rgba": rgba,
    "grey": lambda: encoded(Image.new("L", (300, 240), 90), "JPEG"),
    "text_plain": plain,  # served with a wrong content type
    "trailing": lambda: plain() + b"\r\n<!-- served by a careless proxy -->",
}
BAD: dict[str, Callable[[], bytes]] = {
    "html": lambda: b"<!DOCTYPE html><html><body>The image you requested is gone</body></html>",
    "empty": lambda: b"",
    "truncated_jpeg": lambda: (data := encoded(noisy(300, 240, 1), "JPEG"))[: len(data) // 2],
    "truncated_png": lambda: (data := encoded(noisy(300, 240, 2), "PNG"))[: len(data) // 2],
    "no_end": lambda: plain()[:-2],  # only the end marker is missing, but nothing says so
    "broken_png": lambda: (data := encoded(noisy(300, 240, 3), "PNG"))[:999] + b"\0" * 500 + data[1499:],
    "bomb": bomb,
    "small": lambda: plain(300, 199),
    "wide": lambda: plain(901, 300),
    "limit": lambda: plain(600, 200),  # exactly at both limits: stays
}


class Hostile:
    """A running server: ``url(path)``, and ``requests`` counted by path."""

    def __init__(self, slow: float) -> None:
        bodies = {name: make() for name, make in {**GOOD, **BAD}.items()}
        self.requests: Counter[str] = Counter()
        self.agents: set[str] = set()
        self.broken = threading.Event()  # set: every request is answered with 503
        self.gate = threading.Event()  # until it is set, images called gatedN are not answered
        stop = self.stop = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_) -> None:
                pass

            def handle(self) -> None:
                with suppress(OSError):
                    super().handle()

            def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
                self.send_response(status)
                for key, value in {"Content_Length": str(len(body)), **headers}.items():
                    self.send_header(key.replace("_", "-"), value)
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = True

            def drip(self, data: bytes) -> None:
                for i in range(len(data)):
                    self.wfile.write(data[i : i + 1])
                    if stop.wait(slow / 4):
                        break
                self.close_connection = True

            def do_GET(self) -> None:
                name = self.path.strip("/").split("?")[0].split("/")[0]
                outer.requests[name] += 1
                outer.agents.add(self.headers["User-Agent"])
                if outer.broken.is_set():
                    return self.reply(503)
                if name.startswith("status_"):
                    return self.reply(int(name.split("_")[1]), b"no")
                if name == "flaky":
                    return self.reply(503) if outer.requests[name] == 1 else self.reply(200, bodies["png"])
                if name == "hang":
                    stop.wait(60 * slow)
                elif name == "drip":
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(bodies["jpeg"])))
                    self.end_headers()
                    self.drip(bodies["jpeg"])
                elif name == "drip_header":
                    self.drip(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 10_000)
                elif name == "loop":
                    self.reply(302, Location="/loop")
                elif name == "moved":
                    self.reply(301, Location="/jpeg")
                elif name == "to":  # wherever the query says
                    self.reply(302, Location=unquote(self.path.partition("?")[2]))
                elif name == "moved_endlessly":  # a redirection whose own body has no end
                    self.send_response(302)
                    self.send_header("Location", "/jpeg")
                    self.end_headers()
                    while not stop.is_set():
                        self.wfile.write(bytes(1 << 16))
                elif name == "opted_out":
                    self.reply(200, bodies["jpeg"], X_Robots_Tag="noai")
                elif name == "cut_off":
                    self.send_response(200)
                    self.send_header("Content-Length", str(2 * len(bodies["jpeg"])))
                    self.end_headers()
                    self.wfile.write(bodies["jpeg"])
                    self.close_connection = True
                elif name == "reset":
                    self.close_connection = True
                elif name == "huge":
                    self.reply(200, b"x", Content_Length=str(1 << 40))
                elif name in ("gzip", "said_gzip"):
                    body = gzip.compress(bodies["jpeg"]) if name == "gzip" else bodies["jpeg"]
                    self.reply(200, body, Content_Encoding="gzip")
                elif name == "no_length":
                    self.reply(200, bodies["jpeg"], Content_Length="unknown")
                elif name in bodies:
                    kind = "text/plain" if name == "text_plain" else "image/jpeg"
                    self.reply(200, bodies[name], Content_Type=kind)
                elif name == "caf%C3%A9":
                    self.reply(200, bodies["jpeg"])
                elif name.startswith(("image", "gated")):  # any number of different small images
                    number = int(name[5:] or 0)
                    if name.startswith("gated"):
                        outer.gate.wait()
                    time.sleep(0.002 * (number % 5))  # so that they come back in another order
                    self.reply(200, encoded(noisy(64, 48, number), "JPEG"))
                else:
                    self.reply(404)
                return None

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{path}"

    def close(self) -> None:
        self.stop.set()
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def dead_host(host: str) -> Iterator[tuple[str, int]]:
    """Yield an address at which no connection is answered."""
    with socket.create_server((host, 0), backlog=0) as full, ExitStack() as stack:
        for _ in range(3):  # they fill the backlog: the next one's SYN is not answered
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield full.getsockname()


@contextmanager
def hostile_server(slow: float = 2.0) -> Iterator[Hostile]:
    """Run the server. ``slow``: the client's timeout in seconds; dripping sends a byte in a quarter of it."""
    server = Hostile(slow)
    try:
        yield server
    finally:
        server.close()
