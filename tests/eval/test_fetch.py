"""Benchmarks are fetched from a hub, here a server of this machine, and are then readable."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from filip.common.errors import UserError
from filip.eval.cards import load_card
from filip.eval.fetch import repository
from tests.eval.miniature import write_webdataset

REPO = "clip-benchmark/wds_vtab-cifar10"


class Hub(http.server.BaseHTTPRequestHandler):
    """The answers of the hub that ``snapshot_download`` asks for; ``asked`` has the files that were sent."""

    def __init__(self, root: Path, asked: list[str], *given: object) -> None:
        self.root, self.asked = root, asked
        super().__init__(*given)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        place, _, parts = *self.path.partition("?")[:2], self.path.partition("?")[0].split("/")
        headers, content, status = {}, b"", 200
        if place.startswith("/api/datasets/"):
            folder = self.root.joinpath(*parts[3:5])
            files = [file for file in folder.rglob("*") if file.is_file()]
            names = [{"type": "file", "path": str(file.relative_to(folder)), "oid": "0", "size": 1} for file in files]
            about = {"id": "x", "sha": "0" * 40, "siblings": [{"rfilename": name["path"]} for name in names]}
            content = json.dumps(names if "/tree/" in place else about).encode()
            status = 200 if folder.is_dir() else 404
        elif place.startswith("/datasets/"):
            content = self.root.joinpath(*parts[2:4], *parts[6:]).read_bytes()
            headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": "0" * 40}
            self.asked += ["/".join(parts[6:])] if self.command == "GET" else []
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content if self.command == "GET" else b"")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Yield the environment of a process that asks this hub, and the files that it was asked for."""
    asked: list[str] = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, tmp_path / "hub", asked)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        yield {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache")}, asked
        server.shutdown()


def fetch(root: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """This runs in a separate process: huggingface_hub reads its settings when it is imported."""
    command = [sys.executable, "-m", "filip.eval.fetch", f"root={root}", "cards=cifar10"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_a_benchmark_is_fetched_once_and_only_its_split(tmp_path: Path, hub: tuple[dict[str, str], list[str]]) -> None:
    environment, asked = hub
    write_webdataset(tmp_path / "hub" / REPO, ["airplane", "automobile"], [0, 1, 0])
    write_webdataset(tmp_path / "hub" / REPO, ["airplane", "automobile"], [0, 1], split="train")
    root = tmp_path / "data"
    assert "cifar10: 3 samples" in fetch(root, environment).stderr
    fetched = root / "wds_vtab-cifar10"
    assert (fetched / "test" / "0.tar").is_file() and not (fetched / "train").exists()
    (fetched / "test" / "1.tar").unlink()
    asked.clear()
    assert "cifar10: 3 samples" in fetch(root, environment).stderr
    assert asked == ["test/1.tar"]


def test_the_repository_is_the_card_s_or_clip_benchmark_s() -> None:
    assert repository(load_card("mscoco"))[0] == "clip-benchmark/wds_mscoco_captions"
    with pytest.raises(UserError, match="sugar_crepe_add_att is not published on the hub as its layout 'records'"):
        repository(load_card("sugar_crepe_add_att"))


@pytest.mark.slow
def test_a_repository_that_is_not_there_is_one_sentence(tmp_path: Path, hub: tuple[dict[str, str], list[str]]) -> None:
    result = fetch(tmp_path, hub[0])
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: cannot fetch {REPO} from the hub: ") and result.stderr.count("\n") == 1
