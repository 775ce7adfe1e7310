"""Hosts that say 429 or 503: how often each is asked, and what becomes of its URLs."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from filip.data.cards import SourceCard, parse_card
from filip.data.download import download
from filip.data.fetching import hosts
from filip.data.fetching.workers import ShardDownloader
from tests.data import hostile
from tests.data.downloads import write_list

SLOW = 0.01  # seconds that an answer takes
# how a host answers its n-th request: with an image (None) or with a status and Retry-After
Says = Callable[[int], tuple[int, str | None] | None]


def for_ever(number: int) -> tuple[int, str | None]:
    return 429, "1"


def once(number: int) -> tuple[int, str | None] | None:
    return (503, "1") if number == 1 else None


def for_an_hour(number: int) -> tuple[int, str | None]:
    return 429, "3600"


def without_a_word(number: int) -> tuple[int, str | None]:
    return 429, None


class Server:
    """Addresses of this machine, each a host; ``asked`` counts their requests, ``paths`` those of each URL."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: Counter[str] = Counter()
        self.paths: Counter[str] = Counter()

    def urls(self, host: str, count: int) -> list[str]:
        return [f"http://{host}:{self.port}/{number}" for number in range(count)]


@contextmanager
def serving(**says: Says) -> Iterator[Server]:
    """Serve images at 127.0.0.1, and at 127.0.0.N as ``hostN`` says."""
    image, lock = hostile.plain(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            host = self.headers["Host"].partition(":")[0]
            with lock:
                running.asked[host] += 1
                running.paths[host + self.path] += 1
                said = says.get(f"host{host.rpartition('.')[2]}", lambda _: None)(running.asked[host])
            self.send_response(200 if said is None else said[0])
            if said is not None and said[1] is not None:
                self.send_header("Retry-After", said[1])
            self.end_headers()
            time.sleep(SLOW)
            self.wfile.write(image if said is None else b"")

    with ThreadingHTTPServer(("0.0.0.0", 0), Handler) as server:
        server.daemon_threads = True
        running = Server(server.server_address[1])
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield running
        server.shutdown()


def card(**settings: int) -> SourceCard:
    download = {"image_size": 32, "retries": 1, "timeout": 20, **settings}
    rules = {"image_rules": {"min_side": 0}, "allow_private_hosts": True}
    return parse_card({"download": download, **rules}, Path("c.yaml"))


def reasons(downloader: ShardDownloader, urls: list[str]) -> Counter[str]:
    """Return how many URLs of a shard ended for which reason; "" for images."""
    found = list(downloader._fetched(0, urls))
    assert sorted(number for number, *_ in found) == list(range(len(urls))), "each row once"
    return Counter((problem or "").partition(":")[0] for _, _, problem, _ in found)


@pytest.fixture
def first_pass(tmp_path: Path) -> ShardDownloader:
    return ShardDownloader(card=card(threads=1), final_folder=tmp_path, listed=tmp_path, columns=["url", "caption"])


@pytest.fixture
def retry_pass(first_pass: ShardDownloader) -> ShardDownloader:
    first_pass.patient = True
    return first_pass


def test_the_first_pass_asks_a_busy_host_once_and_leaves_the_rest_of_it(first_pass: ShardDownloader) -> None:
    with serving(host2=for_an_hour) as server:
        urls = server.urls("127.0.0.2", 9) + server.urls("127.0.0.1", 9)
        assert reasons(first_pass, urls) == {"http_429": 1, "busy_host": 8, "": 9}
        assert server.asked == {"127.0.0.2": 1, "127.0.0.1": 9}
        assert reasons(first_pass, urls[:5]) == {"busy_host": 5}, "the next shard of the process knows"


def test_a_retry_pass_gives_up_a_refusing_host(retry_pass: ShardDownloader, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(host2=for_ever, host3=without_a_word, host4=for_an_hour) as server:
        urls = [url for n in (1, 2, 3, 4) for url in server.urls(f"127.0.0.{n}", 9)]
        found = reasons(retry_pass, urls)
        assert found[""] == 9 and found["http_429"] + found["busy_host"] == 27
        refused = {"127.0.0.2": hosts.REFUSALS, "127.0.0.3": hosts.REFUSALS, "127.0.0.4": 1}
        assert server.asked == {"127.0.0.1": 9, **refused}
        said = capfd.readouterr().err
        assert said.count("is given up (URLs that are left: 9)") == 3 and f"127.0.0.4:{server.port}" in said
        assert reasons(retry_pass, server.urls("127.0.0.4", 2)) == {"busy_host": 2}
        assert server.asked["127.0.0.4"] == 1, "the next shard of the process does not wait again"


def test_a_retry_pass_waits_for_a_host_that_serves_again(retry_pass: ShardDownloader) -> None:
    with serving(host2=once) as server:
        urls = server.urls("127.0.0.2", 20) + server.urls("127.0.0.1", 3)
        assert reasons(retry_pass, urls) == {"": 23}
        assert server.asked["127.0.0.2"] == 21, "one URL tries it again, and the others follow"


def test_a_first_pass_waits_for_the_host_of_most_of_a_shard(first_pass: ShardDownloader) -> None:
    """Photographs of Flickr are on one host: to leave them to the retry pass would leave the whole list to it."""
    with serving(host2=once) as server:
        urls = server.urls("127.0.0.2", 5)
        assert reasons(first_pass, [*urls, *server.urls("127.0.0.1", 4)]) == {"": 9}
    with serving(host2=for_an_hour) as server:
        urls = server.urls("127.0.0.2", 200)
        assert reasons(first_pass, urls) == {"http_429": 1, "busy_host": 199}


@pytest.mark.slow
def test_urls_of_busy_hosts_are_accounted_for(tmp_path: Path) -> None:
    """One host never serves, one does so after a while: it is asked again in the retry pass."""
    settings = card(threads=2, retry_passes=1, samples_per_shard=20)
    with serving(host2=for_ever, host3=once) as server:
        urls = [url for n in (1, 2, 3) for url in server.urls(f"127.0.0.{n}", 10)]
        source = write_list(tmp_path / "list.parquet", [*urls, None])
        fragment = download(source, tmp_path / "shards", settings)
        assert fragment.n_in == 31 and fragment.n_out == 20
        assert fragment.dropped.pop("malformed_url") == 1, "no URL at all"
        assert set(fragment.dropped) == {"http_429", "busy_host"} and sum(fragment.dropped.values()) == 10
        asked = server.asked.copy()
        assert download(source, tmp_path / "shards", settings).n_out == 20 and server.asked == asked
