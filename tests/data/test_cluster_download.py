"""The download on a cluster of two workers, one of which is killed in the middle: the same bytes as on one machine."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from filip.data.cards import parse_card
from filip.data.download import download
from tests.data import hostile
from tests.data.clusters import SECONDS, Cluster, family, kill, spark_cluster, wait_until
from tests.data.downloads import hashes, write_list

ROWS = 20  # rows of a shard
SETTINGS = {"image_size": 32, "samples_per_shard": ROWS, "threads": 2, "timeout": 300, "retry_passes": 0}
RAW = {"name": "c", "download": SETTINGS, "image_rules": {"min_side": 0}, "allow_private_hosts": True}
SHARDS, UNGATED = 12, 3  # no other shard than the first three can be finished before the worker is dead
DRIVER = """
import json
import sys
from pathlib import Path
from filip.data.cards import parse_card
from filip.data.download import download
if __name__ == "__main__":
    card = parse_card({raw!r}, Path("c.yaml"))
    card.download.distributor = "pyspark"
    print(json.dumps(download("list.parquet", "cluster", card).dropped))
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    pytest.importorskip("pyspark")
    if not shutil.which("java"):
        pytest.skip("Spark needs Java 17 or newer")
    with spark_cluster(tmp_path) as found:
        yield found


def finished(folder: Path) -> int:
    return len(list(folder.glob("*_stats.json")))


def at_work(folder: Path, machine: int) -> bool:
    """Return whether a shard of ``folder`` is being made by a descendant of a process; the shard's folder has its
    number."""
    makers = {path.name.rpartition(".")[2] for path in (folder / "_work").glob("*.*.*")}
    return any(str(process.pid) in makers for process in family(machine))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_cluster_that_loses_a_worker_in_the_middle_gives_the_same_bytes(
    tmp_path: Path, cluster: Cluster
) -> None:
    with hostile.hostile_server() as server:
        names = ["nothing" if i % 9 == 0 else f"image{i}" for i in range(SHARDS * ROWS)]
        for shard in range(UNGATED, SHARDS):
            names[shard * ROWS + 1] = f"gated{shard * ROWS + 1}"
        urls = [server.url(name) for name in names]
        write_list(tmp_path / "list.parquet", urls)
        (tmp_path / "driver.py").write_text(DRIVER.format(raw=RAW))
        done = tmp_path / "cluster"
        with open(tmp_path / "driver.log", "wb") as log:
            driver = subprocess.Popen(
                [sys.executable, "driver.py"],
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**cluster.environment, "SPARK_MASTER": cluster.address},
            )
            try:
                wait_until(
                    lambda: (
                        (finished(done) == UNGATED and at_work(done, cluster.worker))
                        or driver.poll() is not None
                    ),
                    "the second worker to be in the middle of a shard",
                )
                kill(cluster.worker)
                server.gate.set()
                output, _ = driver.communicate(timeout=SECONDS)
            finally:
                kill(driver.pid)
        messages = (tmp_path / "driver.log").read_text()
        assert driver.returncode == 0, messages
        local = download(tmp_path / "list.parquet", tmp_path / "local", parse_card(RAW, Path("c.yaml")))
    print(messages)
    assert json.loads(output.splitlines()[-1]) == local.dropped == {"http_404": names.count("nothing")}
    assert len(hashes(done)) == 2 * SHARDS and hashes(done) == hashes(tmp_path / "local")
    assert {path.name for path in (done / "_work").iterdir()} == {"plan.json", "lock"}
