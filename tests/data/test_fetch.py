"""The bounded fetch against a hostile server: every way to fail has its reason, and nothing hangs."""

import contextlib
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest

from filip.data.fetching.access import PUBLIC, Access, is_public
from filip.data.fetching.fetch import _opener, fetch
from filip.data.fetching.hosts import Hosts
from filip.data.fetching.outcomes import opt_out
from tests.data import hostile

TIMEOUT = 0.6


@pytest.fixture(scope="module")
def server() -> Iterator[hostile.Hostile]:
    with hostile.hostile_server(TIMEOUT) as running:
        yield running


def get(url: str, retries: int = 0, **options) -> tuple[bytes | None, str | None, float]:
    """Fetch from the servers of these tests, which are on this machine, unless ``access`` says otherwise."""
    options.setdefault("access", Access(private_hosts=True))
    started = time.monotonic()
    body, error, _ = fetch(url, TIMEOUT, retries, **options)
    assert (body is None) != (error is None)
    return body, error and error.split(":")[0], time.monotonic() - started


@pytest.mark.parametrize("path", ["hang", "drip", "drip_header"])
def test_what_never_ends_is_ended(server: hostile.Hostile, path: str) -> None:
    _, reason, seconds = get(server.url(path))
    assert reason == "timeout"
    # a read that hangs: one timeout; a drip, whose every read is in time: the deadline of three
    assert seconds < (1.8 if path == "hang" else 4.5) * TIMEOUT


def test_a_host_of_many_dead_addresses_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with hostile.dead_host("127.0.0.1") as place:
        addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place)] * 50
        monkeypatch.setattr("socket.getaddrinfo", lambda *_: addresses)
        found = [get("http://many.invalid/a.jpg") for _ in range(5)]
        assert found[0][2] < 4.5 * TIMEOUT
        assert [reason for _, reason, _ in found] == ["timeout"] * 3 + ["dead_host"] * 2


def test_addresses_that_lead_nowhere() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert get(f"http://127.0.0.1:{closed.getsockname()[1]}/a.jpg")[1] == "connection"
    assert get("http://no-such-host.invalid/a.jpg")[1] == "dns"
    for url in ("http://[bad/a.jpg", "ftp://127.0.0.1/a.jpg", "data:image/png;base64,AAAA", "nonsense"):
        assert get(url)[1] == "malformed_url", url


def test_good_answers(server: hostile.Hostile, tmp_path: Path) -> None:
    expected = hostile.plain()
    assert get(server.url("jpeg"))[0] == expected
    assert get(server.url("moved"))[0] == get(server.url("moved_endlessly"))[0] == expected
    assert get(server.url("no_length"))[0] == expected
    assert get(server.url("gzip"))[0] == get(server.url("said_gzip"))[0] == expected
    assert get(server.url("café"))[0] == expected
    assert get(server.url("jpeg?x=caf%C3%A9"))[0] == expected
    assert all("filip/" in agent and "http" not in agent for agent in server.agents), "the agent says who asks"
    assert get(server.url("jpeg"), access=Access(True, contact="mailto:me@example.org"))[0] == expected
    assert any("; +mailto:me@example.org)" in agent for agent in server.agents)
    image = tmp_path / "a b.jpg"
    image.write_bytes(expected)
    assert get(image.as_uri())[1] == "malformed_url", "a list must not read this machine's files"
    folder = Access(folder=str(tmp_path))
    assert get(image.as_uri(), access=folder)[0] == expected
    assert get((tmp_path / "none.jpg").as_uri(), access=folder)[1] == "missing_file"


def test_only_what_may_pass_is_tried_again(server: hostile.Hostile) -> None:
    server.requests.clear()
    assert get(server.url("flaky"), retries=1)[0] is not None
    assert get(server.url("status_500"), retries=2)[1] == "http_5xx"
    assert get(server.url("status_404"), retries=2)[1] == "http_404"
    assert server.requests == {"flaky": 2, "status_500": 3, "status_404": 1}


ODD = [
    b"", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/9 200 OK\r\n\r\n", b"ICY 200 OK\n\nbytes", b"HTTP/1.1 999\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nno colon\r\n\r\nbytes",
    *(b"HTTP/1.1 200 OK\r\n%s\r\n\r\nbytes" % header for header in (
        b"Content-Length: -1", b"Content-Length: \xb2", b"Transfer-Encoding: chunked", b"Content-Encoding: gzip",
        b"X-Robots-Tag: :", b"X-Long: " + b"a" * 70_000)),
    *(b"HTTP/1.1 302\r\nLocation:%s\r\n\r\n" % place for place in (b"", b" http://[", b" \0", b" %")),
    *(b"HTTP/1.1 429\r\nRetry-After: %s\r\n\r\n" % time for time in (
        b"\xb2", b"-1", b"9" * 500, b"nan", b"Wed, 99 Oct 9999 99:99:99")),
]  # fmt: skip


def test_no_answer_raises_or_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that raises is a download that never ends."""
    monkeypatch.setattr(Hosts, "wait", lambda *_: 0.0)  # some of the answers ask for patience

    class Answer(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            asked = self.rfile.readline().split()[1]
            with contextlib.suppress(OSError):
                self.wfile.write(ODD[int(asked[1:])])

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as odd:
        odd.daemon_threads = True
        threading.Thread(target=odd.serve_forever, daemon=True).start()
        results = [get(f"http://127.0.0.1:{odd.server_address[1]}/{number}") for number in range(len(ODD))]
        odd.shutdown()
    assert any(body is not None for body, *_ in results) and {reason for _, reason, _ in results} > {"http_429"}


PUBLIC_ADDRESSES = ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"]
PRIVATE_ADDRESSES = [
    "127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.9", "192.168.1.1", "224.0.0.1", "::1", "fe80::1%eth0", "fd00::1",
    "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b:1::1", "::ffff:0:0:1", "3fff::1", "fec0::1",
    "100.64.0.1",  # addresses of a provider's internal network
    "64:ff9b::7f00:1", "2002:7f00:1::",  # NAT64 and 6to4 of 127.0.0.1
    # metadata of a machine in a cloud, Azure's wire server, Oracle's metadata
    "169.254.169.254", "168.63.129.16", "64:ff9b::168.63.129.16", "192.0.0.192",
]  # fmt: skip


@pytest.mark.parametrize("address", [*PUBLIC_ADDRESSES, *PRIVATE_ADDRESSES])
def test_which_addresses_are_public(address: str) -> None:
    assert is_public(address) == (address in PUBLIC_ADDRESSES)


def test_a_list_does_not_reach_this_machine_unless_the_card_allows_it(server: hostile.Hostile) -> None:
    port = server.server.server_port
    assert get(server.url("jpeg"))[0] == hostile.plain()
    asked = len(server.agents)
    for host in ("127.0.0.1", "localhost", "2130706433", "127.1", "0x7f000001", "[::ffff:127.0.0.1]", "0.0.0.0"):
        assert get(f"http://{host}:{port}/jpeg", access=PUBLIC)[1] == "private_address", host
    assert len(server.agents) == asked, "refused before a byte is sent"


def test_a_name_of_this_machine_is_refused_by_address(server: hostile.Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the resolver is replaced: an attacker's name server answers what it likes."""
    place = ("127.0.0.1", server.server.server_port)
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place)]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: answer)
    assert get("http://pictures.example/jpeg", access=PUBLIC)[1] == "private_address"
    assert get("http://pictures.example/jpeg")[0] == hostile.plain()


def test_redirections_to_private_places_are_refused(server: hostile.Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first host counts as public here; the one that it sends to does not."""
    monkeypatch.setattr("filip.data.fetching.access.is_public", lambda address: address == "127.0.0.1")
    places = [server.url("jpeg").replace("127.0.0.1", "127.0.0.2"), "http://169.254.169.254/latest/meta-data/"]
    for place in places:
        assert get(server.url(f"to?{place}"), access=PUBLIC)[1] == "private_address"
    file = server.url("to?file:///etc/hostname")
    assert get(file)[1] == get(file, access=Access(True, folder="/"))[1] == "forbidden_scheme"


def test_a_private_proxy_gets_no_private_hosts(server: hostile.Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    opener = _opener.__wrapped__
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server.server_port}")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setattr("filip.data.fetching.fetch._opener", opener)
    for host in ("127.0.0.1", "localhost", "0x7f.1", "[::1]", "169.254.169.254"):
        assert get(f"http://{host}/jpeg", access=PUBLIC)[1] == "private_address", host
    assert get("http://pictures.example/jpeg", access=PUBLIC)[1] != "private_address"


def test_a_file_has_to_be_in_the_cards_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.jpg").write_bytes(hostile.plain())
    url = (tmp_path / "images").as_uri()
    access = Access(folder=str(tmp_path / "images"))
    for name in ("../secret.jpg", "%2e%2e/secret.jpg"):
        assert get(f"{url}/{name}", access=access)[1] == "outside"


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([("X-Robots-Tag", "noai")], "X-Robots-Tag"),
        ([("X-Robots-Tag", "noarchive"), ("X-Robots-Tag", "NoImageAI, nofollow")], "X-Robots-Tag"),
        ([("X-Robots-Tag", "img2dataset: noindex")], "X-Robots-Tag"),
        ([("X-Robots-Tag", "googlebot: noai, noindex")], None),
        ([("X-Robots-Tag", "unavailable_after: 25 Jun 2030 15:00:00 PST")], None),
        ([("X-Robots-Tag", "noai, unavailable_after: 25 Jun 2030 15:00:00 PST")], "X-Robots-Tag"),
        ([("TDM-Reservation", "1")], "tdm-reservation"),
        ([("tdm-reservation", "0")], None),
        ([], None),
    ],
)
def test_headers_that_forbid_the_use_of_an_image(headers: list[tuple[str, str]], found: str | None) -> None:
    message = Message()
    for name, value in headers:
        message[name] = value
    assert opt_out(message) == found
