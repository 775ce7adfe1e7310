"""Jobs that share a download: one is killed in the middle, and the bytes and the funnel equal one job's."""

import json
import signal
import time
from pathlib import Path

import pytest
import yaml

from filip.common.errors import UserError
from filip.data.cards import load_source
from filip.data.download import download
from filip.data.funnel import Fragment, write_fragment
from filip.data.manifest import ManifestConfig
from filip.data.manifest import main as sign
from filip.data.stage import parse_part
from filip.data.translate import TranslateConfig
from filip.data.translate import main as write_sidecars
from tests.data import hostile
from tests.data.downloads import hashes, write_list
from tests.support.processes import Process

SETTINGS = {"image_size": 32, "samples_per_shard": 4, "threads": 2, "timeout": 60, "retries": 0, "retry_passes": 1}
CARD = {"title": "T", "download": SETTINGS, "image_rules": {"min_side": 0}, "allow_private_hosts": True}


def start(folder: Path, part: str) -> Process:
    given = [f"source={folder}/c.yaml", f"list={folder}/list.parquet", f"out={folder}/shared", f"part={part}"]
    return Process(["-m", "filip.data.download", *given, "download={processes:1}"])


def manifest(folder: Path, name: str, fragment: Fragment) -> dict:
    """Return the manifest of a downloaded folder without the paths and times."""
    fragment.notes.pop("urls_per_second_and_process")
    write_fragment(folder / f"{name}.funnel.json", fragment)
    listed, captions, out = f"{folder}/list.parquet", f"{folder}/{name}.captions", f"{folder}/{name}.json"
    given = {"source": f"{folder}/c.yaml", "shards": f"{folder}/{name}"}
    write_sidecars(TranslateConfig(**given, out=captions, engine="none", pivots=[]))
    funnels = [f"{folder}/{name}.funnel.json"]
    sign(ManifestConfig(**given, list=listed, kept=listed, captions=captions, funnels=funnels, out=out))
    return json.loads(Path(out).read_text().replace(f"/{name}", "/NAME"))


@pytest.mark.slow
def test_parts_give_the_manifest_of_one_job_also_when_one_is_killed(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CARD))
    card, shared = load_source(str(tmp_path / "c.yaml")), tmp_path / "shared"
    with hostile.hostile_server() as server:
        names = [f"image{i}" for i in range(18)]
        names[3], names[6], names[9] = "nothing", "status_500", "gated9"  # the last in shard 2, of part 0
        source = write_list(tmp_path / "list.parquet", [server.url(name) for name in names])
        first, second = start(tmp_path, "0/2"), start(tmp_path, "1/2")
        try:
            deadline = time.monotonic() + 300
            while not (list(shared.glob("_work/00002.*.*")) and (shared / "00000_stats.json").exists()):
                assert first.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            with pytest.raises(UserError, match="shared is being filled by another process"):
                download(source, shared, card)
            with pytest.raises(UserError, match=r"part 0-of-2 of .*shared is being filled by another process"):
                download(source, shared, card, part=(0, 2))
            first.signal_group(signal.SIGKILL)
            assert first.wait() != 0 and second.wait(300) == 0
        finally:
            for process in (first, second):
                if process.poll() is None:
                    process.signal_group(signal.SIGKILL)
        server.gate.set()
        assert {path.name[:5] for path in shared.glob("*_stats.json")} == {"00000", "00001", "00003"}
        assert download(source, shared, card, part=(0, 2)) is None
        assert len(list(shared.glob("*_stats.json"))) == 5, "no part retries"
        merged = download(source, shared, card)
        whole = download(source, tmp_path / "whole", card)
    assert merged.dropped == {"http_404": 1, "http_5xx": 1} and merged.notes["retried"] == [1]
    assert hashes(shared) == hashes(tmp_path / "whole") and len(hashes(shared)) == 12
    assert manifest(tmp_path, "shared", merged) == manifest(tmp_path, "whole", whole)
    assert {path.name for path in (shared / "_work").iterdir()} == {"plan.json", "lock", "retry_1.parquet"}


def test_a_part_is_one_of_those_that_there_are() -> None:
    assert [parse_part(f"{number}/8") for number in range(8)] == [(number, 8) for number in range(8)]
    assert parse_part(None) is None and parse_part("") is None
    for part in ("3", "8/8", "a/b", "1/0", "-1/8", "1/8/9"):
        with pytest.raises(UserError, match=f"^part={part}: parts are counted from 0.*--array=0-7$"):
            parse_part(part)
