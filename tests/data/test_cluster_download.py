"""The download on clusters of two workers, one of which is killed in the middle: the same bytes as on one machine."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from filip.data.cards import parse_card
from filip.data.download import download
from tests.data import hostile
from tests.data.clusters import Cluster, kill, ray_cluster, spark_cluster, wait_until
from tests.data.downloads import hashes, write_list

SETTINGS = {"image_size": 32, "samples_per_shard": 20, "threads": 2, "retry_passes": 0}
RAW = {"name": "c", "download": SETTINGS, "image_rules": {"min_side": 0}, "allow_private_hosts": True}
SHARDS = 16
DRIVER = """
import json
import sys
from pathlib import Path
from filip.data.cards import parse_card
from filip.data.download import download
if __name__ == "__main__":
    card = parse_card({raw!r}, Path("c.yaml"))
    card.download.distributor = sys.argv[1]
    print(json.dumps(download("list.parquet", "cluster", card).dropped))
"""


def cluster_of_two(engine: str, folder: Path) -> AbstractContextManager[Cluster]:
    """Skips where the engine is not installed."""
    pytest.importorskip(engine)
    if engine == "ray":
        if not os.environ.get("FILIP_TEST_RAY"):
            pytest.skip("FILIP_TEST_RAY=1 starts two Ray nodes, which takes long on a busy machine")
        return ray_cluster(Path(tempfile.mkdtemp(prefix="ray.")))  # the paths of its sockets have to be short
    if not shutil.which("java"):
        pytest.skip("Spark needs Java 17 or newer")
    return spark_cluster(folder)


def finished(folder: Path) -> int:
    return len(list(folder.glob("*_stats.json")))


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("engine", ["pyspark", "ray"])
def test_a_cluster_that_loses_a_worker_in_the_middle_gives_the_same_bytes(
    tmp_path: Path, engine: str
) -> None:
    with hostile.hostile_server() as server, cluster_of_two(engine, tmp_path) as cluster:
        urls = [server.url(f"image{i}" if i % 9 else "nothing") for i in range(SHARDS * 20)]
        write_list(tmp_path / "list.parquet", urls)
        (tmp_path / "driver.py").write_text(DRIVER.format(raw=RAW))
        done = tmp_path / "cluster"
        with open(tmp_path / "driver.log", "wb") as log:
            driver = subprocess.Popen(
                [sys.executable, "driver.py", engine],
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**cluster.environment, "SPARK_MASTER": cluster.address},
            )
            try:
                wait_until(lambda: finished(done) >= 3 or driver.poll() is not None, "shards")
                killed_at = finished(done)
                cluster.kill_a_worker()
                output, _ = driver.communicate(timeout=600)
            finally:
                kill(driver.pid)
        messages = (tmp_path / "driver.log").read_text()
        assert driver.returncode == 0, messages
        assert 3 <= killed_at < SHARDS, "killed too late to show anything"
        local = download(tmp_path / "list.parquet", tmp_path / "local", parse_card(RAW, Path("c.yaml")))
    print(messages)
    assert json.loads(output.splitlines()[-1]) == local.dropped == {"http_404": -(-SHARDS * 20 // 9)}
    assert len(hashes(done)) == 2 * SHARDS and hashes(done) == hashes(tmp_path / "local")
    assert {path.name for path in (done / "_work").iterdir()} == {"plan.json", "lock"}
