"""The demo server: answers, faults, keep-alive, start and stop, through real sockets."""

import http.client
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest

from filip_demo.serving import CorpusServer
from tests.support.ports import free_port

PIXELS = bytes(range(256)) * 8


def start(root, port, *command):
    arguments = [sys.executable, "-m", "filip_demo.serving", f"root={root}", f"port={port}", "--", *command]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    for path in ("images/twemoji/duck.png", "planted/cut_off/0000.png", "planted/truncated/0000.png"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(PIXELS)
    (root / "list.parquet").write_bytes(b"secret")
    return root


@pytest.fixture(scope="module")
def server(root):
    server = CorpusServer(root, 0)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    port = server.server_address[1]
    yield {"url": f"http://127.0.0.1:{port}", "port": port}
    server.stopping.set()
    server.shutdown()
    server.server_close()


def get(server, path, timeout=10.0):
    return urllib.request.urlopen(f"{server['url']}/{path}", timeout=timeout)


@pytest.mark.parametrize(
    "path",
    ["images/none.png", "planted/not_found/0000.png", "images", "", "list.parquet", "images/%00.png",
     "images/../list.parquet", "images/%2e%2e/list.parquet", "images//../../../../etc/passwd"],
)  # fmt: skip
def test_what_is_not_there_or_not_meant_to_be_seen_is_404(server, path):
    with pytest.raises(urllib.error.HTTPError) as error:
        get(server, path)
    assert error.value.code == 404


def test_cut_off_breaks_after_part_of_the_promised_bytes(server):
    with get(server, "planted/cut_off/0000.png") as answer, pytest.raises(http.client.IncompleteRead) as error:
        answer.read()
    assert 0 < len(error.value.partial) < len(PIXELS)


CLIENT = """
import http.client, sys, time
hanging = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=30)
hanging.request("GET", "/planted/hang/0000.png")
time.sleep(0.2)
print("asked", flush=True)
time.sleep(float(sys.argv[2]))
sys.exit(7)
"""


@pytest.mark.parametrize("number", [None, signal.SIGTERM, signal.SIGINT])
def test_serving_ends_with_the_command_though_a_request_hangs(root, number):
    port = free_port()
    process = start(root, port, sys.executable, "-c", CLIENT, str(port), "0" if number is None else "60")
    assert process.stdout.readline() == "asked\n"
    if number is not None:
        process.send_signal(number)
    assert (process.wait(10) == 7) == (number is None), "the command's own exit code"
    assert "1 requests (hung: 1)" in process.stderr.read()
