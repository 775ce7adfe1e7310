import json
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filip.common.errors import UserError
from filip.data.funnel import Fragment, write_fragment
from filip.data.manifest import ManifestConfig, main
from filip.data.shard_set import changed_since, damaged_tar, manifest_hash
from filip.data.sidecar import write_sidecar

ROOT = Path(__file__).resolve().parents[2]


def data_set(folder: Path) -> ManifestConfig:
    (folder / "shards").mkdir(parents=True)
    (folder / "card.yaml").write_text("title: T\nlicense: MIT\n")
    for name in ("list", "kept"):
        pq.write_table(pa.table({"url": ["u"] * 5, "caption": ["c"] * 5}), folder / f"{name}.parquet")
    for shard, statuses in enumerate((["success"] * 3, ["success", "failed_to_download"])):
        (folder / "shards" / f"{shard:05d}.tar").write_bytes(b"tar" * 100)
        keys = [f"{shard}{i}" for i in range(len(statuses))]
        table = pa.table({"key": keys, "status": statuses, "sha256": [f"h{k}" for k in keys]})
        pq.write_table(table, folder / "shards" / f"{shard:05d}.parquet")
        rows = [
            {"key": key, "captions": ["one two", "one two three"], "origins": ["original", "e:pt"], "group": 5}
            for key, status in zip(keys, statuses, strict=True)
            if status == "success"
        ]
        write_sidecar(folder / "captions" / f"{shard:05d}.parquet", rows)
    write_fragment(folder / "f.json", Fragment("download", "card", 5, 4, {"http_404": 1}))
    names = ("card.yaml", "list.parquet", "kept.parquet", "shards", "captions")
    places = [str(folder / name) for name in names]
    return ManifestConfig(*places, [str(folder / "f.json")], str(folder / "manifest.json"))


def test_manifest_counts_and_describes(tmp_path: Path) -> None:
    config = data_set(tmp_path / "a")
    main(config)
    manifest = json.loads(Path(config.out).read_text())
    assert manifest["images"] == {"count": 4, "bytes": 600}
    assert manifest["captions"]["per_image"] == 2.0
    assert manifest["captions"]["origins"] == {"e:pt": 4, "original": 4}
    assert manifest["stages"][0]["dropped"] == {"http_404": 1}
    assert [shard["images"] for shard in manifest["shards"]] == [3, 1]


def test_hash_depends_on_the_content_not_on_the_place(tmp_path: Path) -> None:
    one, two = data_set(tmp_path / "a"), data_set(tmp_path / "b")
    main(one)
    main(two)
    assert manifest_hash(one.out) == manifest_hash(two.out)
    assert changed_since(two.out) == []
    sidecar = tmp_path / "b" / "captions" / "00001.parquet"
    write_sidecar(sidecar, [{"key": "10", "captions": ["other"], "origins": ["original"], "group": 5}])
    assert changed_since(two.out) == ["shard 00001: captions_sha256 changed"]
    main(two)
    assert manifest_hash(one.out) != manifest_hash(two.out)
    (tmp_path / "b" / "shards" / "00001.tar").unlink()
    assert "have a Parquet file and no tar: 00001" in changed_since(two.out)[0]
    (tmp_path / "b" / "shards" / "00001.parquet").unlink()
    assert changed_since(two.out) == ["shard 00001 is gone"]
    with pytest.raises(UserError, match=r"gave out 4 images, but the 1 shards of .* hold 3"):
        main(two)
    (tmp_path / "b" / "captions" / "00000.parquet").unlink()
    with pytest.raises(UserError, match=r"has no .*captions/00000\.parquet: run"):
        main(two)


def by_the_manual(folder: Path) -> subprocess.CompletedProcess[str]:
    page = (ROOT / "docs" / "data.md").read_text()
    line = next(line for line in page.splitlines() if "sha256sum -c" in line)
    line = line.replace("SHARDS", str(folder / "shards")).replace("manifest.json", str(folder / "manifest.json"))
    return subprocess.run(line, shell=True, capture_output=True, text=True)


@pytest.mark.skipif(not shutil.which("jq"), reason="needs: apt-get install jq")
def test_a_tar_that_changed_is_found_by_a_training_and_by_the_line_of_the_manual(tmp_path: Path) -> None:
    config = data_set(tmp_path / "a")
    main(config)
    assert by_the_manual(tmp_path / "a").returncode == 0
    assert damaged_tar(config.out) is None
    tar = tmp_path / "a" / "shards" / "00000.tar"
    tar.write_bytes(b"\0" * tar.stat().st_size)
    assert changed_since(config.out) == [], "which reads no tar"
    assert "shard 00000: the bytes of" in (damaged_tar(config.out) or ""), "each start of a training proves some tars"
    assert "00000.tar: FAILED" in by_the_manual(tmp_path / "a").stdout
