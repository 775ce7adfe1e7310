"""A list of URLs through the DAG by img2dataset, which uv fetches: the environment of the study does not have it."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from filip.data.by_img2dataset import REQUIREMENTS
from tests.data.hostile import hostile_server
from tests.support.snakemake_runs import environment_of, write_clone

GOOD = 150
BAD = {"status_404": "http_404", "status_500": "http_5xx", "html": "not_an_image", "opted_out": "opted_out",
       "wide": "aspect"}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkout with a study whose one source is data/web.yaml; the study asks for img2dataset."""
    clone = write_clone(tmp_path_factory.mktemp("clone") / "filip")
    card = {"title": "W", "list": "web.parquet", "extra_columns": ["rank"], "back_translation": None}
    card |= {"text_rules": {"language": False, "meaningless": False}, "image_rules": {"min_side": 32}}
    card["download"] = {"image_size": 64, "timeout": 5, "retries": 0, "processes": 1, "threads": 8,
                        "samples_per_shard": 80}  # fmt: skip
    (clone / "data/web.yaml").write_text(yaml.safe_dump({**card, "allow_private_hosts": True}))
    config = yaml.safe_load((clone / "workflow/config/emoji.yaml").read_text())
    del config["demo"], config["explorer"]
    config |= {"sources": ["web"], "data_dir": "data_of_web", "download": {"engine": "img2dataset"}}
    config |= {"eval": {"root": "benchmarks", "retrieval": ["flickr30k"]}, "tables": {"retrieval": ["filip"]}}
    (clone / "web_study.yaml").write_text(yaml.safe_dump(config))
    return clone


def python_without_img2dataset(folder: Path) -> Path:
    """Make an environment with everything that this one has, but for img2dataset's program."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "all.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    (folder / "bin/uv").symlink_to(Path(sys.executable).with_name("uv"))
    return folder / "bin/python"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", ["3.11", "3.13"])
def test_a_list_becomes_shards(study: Path, version: str, tmp_path: Path) -> None:
    python = python_without_img2dataset(tmp_path / "venv")
    variables = {**environment_of(study), "UV_PYTHON": version}
    variables["PATH"] = f"{python.parent}:{os.environ['PATH']}"
    fetch = [str(python.with_name("uv")), "tool", "run", "--from", REQUIREMENTS[0], "--with", REQUIREMENTS[1]]
    fetched = subprocess.run([*fetch, "python", "-c", "import img2dataset.main"], env=variables, capture_output=True)
    if fetched.returncode:
        pytest.skip(f"uv cannot fetch img2dataset for Python {version}: {fetched.stderr.decode()[-200:]}")

    def run(*arguments: str) -> str:
        done = subprocess.run([str(python), *arguments], env=variables, cwd=study, capture_output=True, text=True)
        logs = "\n".join(log.read_text() for log in study.rglob("logs/*/web.log"))
        assert done.returncode == 0, done.stdout + done.stderr + logs
        return done.stdout

    with hostile_server() as server:
        names = [f"image{n}" for n in range(GOOD)] + [f"{name}?{n}" for name in BAD for n in range(10)]
        urls = [server.url(name) for name in names]
        captions = [f"caption {n}" for n in range(len(urls))]
        ranks = [1000 + n for n in range(len(urls))]
        pq.write_table(pa.table({"url": urls, "caption": captions, "rank": ranks}), study / "web.parquet")
        data, results = Path(f"of_{version}/web"), study / f"of_{version}/web"
        snakemake = ["-m", "snakemake", "--configfile", "web_study.yaml", "--profile", "workflow/profiles/local"]
        run(*snakemake, "--cores", "2", "--config", f"data_dir=of_{version}", "--", str(data / "manifest.json"))
        asked = server.requests.copy()

    funnel = json.loads((results / "funnel/download.json").read_text())
    assert (funnel["in"], funnel["out"]) == (200, GOOD)
    assert funnel["dropped"] == dict.fromkeys(BAD.values(), 10)
    assert funnel["notes"]["engine"] == "img2dataset" and funnel["notes"]["retried"] == [10]
    assert asked["status_500"] == 20 and asked["status_404"] == 10  # a second pass over what may have passed
    assert not (results / "shards.in_progress").exists()
    rows = pa.concat_tables(pq.read_table(path) for path in sorted((results / "shards").glob("*.parquet"))).to_pylist()
    stored = {row["url"]: row for row in rows if row["status"] == "success"}
    assert {row["rank"] - 1000: url for url, row in stored.items()} == dict(enumerate(urls[:GOOD]))
    assert json.loads((results / "manifest.json").read_text())["settings"]["download"]["engine"] == "img2dataset"
