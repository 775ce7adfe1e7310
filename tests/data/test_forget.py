"""Forgotten pairs are nowhere any more, do not come back, and the rest is as it was."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from filip.common.files import write_json
from filip.data.cards import parse_card
from filip.data.forget import ForgetConfig, forget
from filip.data.funnel import Fragment, write_fragment
from filip.data.ingest import IngestConfig, ingest
from filip.data.manifest import ManifestConfig, make_manifest
from filip.data.score import ScoreConfig, score
from filip.data.shard_index import shard_images
from filip.data.shard_set import PROVEN, changed_since, damaged_tar, read_manifest
from filip.data.translate import TranslateConfig, translate
from filip.loading.config import Source
from filip.loading.pair_index import index_source
from tests.data.test_score import scene
from tests.support.processes import run_python

COUNT = 9
CARD = {"name": "mine", "back_translation": None, "text_rules": {"language": False}}
CARD |= {"download": {"samples_per_shard": 3, "processes": 1}}


def write_data_set(root: Path) -> Any:
    """Ingest nine pictures, in three shards, with side-cars, scores and a manifest; return the card."""
    (root / "own").mkdir()
    for n in range(COUNT):
        scene(n).save(root / "own" / f"{n}.jpg", quality=95)
        (root / "own" / f"{n}.txt").write_text(f"a picture of thing {n}")
    card = parse_card({**CARD, "images": str(root / "own")}, root / "mine.yaml")
    ingested(card, root)
    translate(TranslateConfig(card.name, str(root / "shards"), str(root / "captions")), card)
    (root / "mine.yaml").write_text("title: T\n")
    for name, keep in (("scored", []), ("selected", ["right(captions[1], 1) < '4'"])):
        places = [str(root / folder) for folder in ("shards", "captions", name)]
        score(ScoreConfig(*places, keep=keep, processes=1))
    samples = {"short": ["a picture of thing 4 (x)"], "long": [{"caption": "a picture of thing 0", "key": "0.jpg"}]}
    write_fragment(
        root / "funnel.json", Fragment("text_rules", card.name, 2, 0, {"short": 2}, notes={"samples": samples})
    )
    lists = [root / "shards" / "_work" / name for name in ("list.parquet", "kept.parquet")]
    shutil.copy(lists[0], root / "listed.parquet")
    places = map(str, (*lists, root / "shards", root / "captions"))
    described = make_manifest(card, ManifestConfig(card.name, *places, [], str(root / "m.json")))
    described["stages"] = [json.loads((root / "funnel.json").read_text())]
    write_json(root / "m.json", described)
    return card


def all_as_described(manifest: Path) -> bool:
    """Return whether every file of the three shards has the hash in their manifest."""
    assert len(read_manifest(manifest)["shards"]) <= PROVEN
    return not changed_since(manifest) and damaged_tar(manifest) is None


def ingested(card: Any, root: Path) -> dict[str, int]:
    _, funnel = ingest(card, IngestConfig(card.name, out=str(root / "shards")))
    write_fragment(root / "ingest.json", funnel)
    return dict(funnel.dropped)


def config(root: Path, **asked: str) -> ForgetConfig:
    folders = [str(root / name) for name in ("captions", "scored", "selected")]
    named = {"manifests": "m.json", "funnels": "funnel.json", "lists": "listed.parquet"}
    files = {name: [str(root / file)] for name, file in named.items()}
    return ForgetConfig(str(root / "shards"), folders, **files, **asked)


def everything(root: Path) -> bytes:
    """Return the bytes of all files of a data set; those of Parquet files unpacked, as JSON."""
    pieces = []
    for folder in ("shards", "captions", "scored", "selected", "listed.parquet"):
        for path in sorted((root / folder).rglob("*")) or [root / folder]:
            if path.suffix in (".parquet", ".index"):
                pieces.append(json.dumps(pq.read_table(path).to_pylist(), default=str).encode())
            elif path.is_file():
                pieces.append(path.read_bytes())
    return b"\n".join([*pieces, *(path.read_bytes() for path in root.glob("*.json"))])


def test_nothing_is_left_of_what_is_forgotten(tmp_path: Path) -> None:
    card = write_data_set(tmp_path)
    stored = {}
    for tar in sorted((tmp_path / "shards").glob("*.tar")):
        urls = {row["key"]: row["url"] for row in pq.read_table(tar.with_suffix(".parquet")).to_pylist()}
        stored |= {urls[key]: data for key, data in shard_images(tar)}
    hashes = {row["url"]: row["sha256"] for path in (tmp_path / "shards").glob("*.parquet")
              for row in pq.read_table(path).to_pylist()}  # fmt: skip
    (tmp_path / "urls.txt").write_text("0.jpg\nnever-there.jpg\n4.jpg\n")
    (tmp_path / "sha.txt").write_text(hashes["8.jpg"].upper() + "\n")
    before = everything(tmp_path)
    assert all(data in before for data in stored.values()) and before.count(b"thing 4") > 3
    old = read_manifest(tmp_path / "m.json")

    asked = {"urls": "urls.txt", "sha256": "sha.txt"}
    asked = {name: str(tmp_path / file) for name, file in asked.items()}
    assert forget(config(tmp_path, **asked)) == (3, 2, 1)

    def check() -> None:
        after = everything(tmp_path)
        for n in range(COUNT):
            gone = n in (0, 4, 8)
            assert (stored[f"{n}.jpg"] in after) != gone
            assert (f"a picture of thing {n}".encode() in after) != gone
            assert (f'"{n}.jpg"'.encode() in after) != gone

    check()
    new = read_manifest(tmp_path / "m.json")
    assert new["images"]["count"] == COUNT - 3 and new["sha256"] != old["sha256"]
    assert all_as_described(tmp_path / "m.json")
    index = index_source(Source(str(tmp_path / "shards"), str(tmp_path / "captions")))
    assert len(index) == COUNT - 3 and not index.problems, "training continues"
    assert forget(config(tmp_path, **asked))[0] == 0, "a second time there is nothing left"
    # the pictures are still in the user's own folder, and do not come back
    assert ingested(card, tmp_path) == {"forgotten": 3}
    remade = [data for tar in (tmp_path / "shards").glob("*.tar") for _, data in shard_images(tar)]
    assert sorted(remade) == sorted(stored[f"{n}.jpg"] for n in range(COUNT) if n not in (0, 4, 8))
    check()  # nor do their captions and names


@pytest.mark.slow
def test_a_forgetting_that_is_killed_again_and_again_leaves_nothing_in_the_end(tmp_path: Path) -> None:
    write_data_set(tmp_path)
    (tmp_path / "urls.txt").write_text("0.jpg\n4.jpg\n8.jpg\n")
    killed_at = (
        "import os, sys\nreal, left = os.replace, [int(sys.argv[1])]\n"
        "def replace(*paths):\n    left[0] -= 1\n    os.kill(os.getpid(), 9) if not left[0] else real(*paths)\n"
        "os.replace = replace\n"
        "from filip.data.forget import ForgetConfig, forget\n"
        "at = sys.argv[2]\n"
        "forget(ForgetConfig(f'{at}/shards', [f'{at}/captions', f'{at}/scored'], manifests=[f'{at}/m.json'],\n"
        "                    urls=f'{at}/urls.txt'))\n"
    )
    codes = []
    for moment in (4, 5, 7, 99):
        codes.append(run_python("-c", killed_at, str(moment), str(tmp_path)).returncode)
    assert codes == [-signal.SIGKILL] * 3 + [0]
    kept = list((tmp_path / "shards").glob("*.parquet"))
    urls = {row["url"] for path in kept for row in pq.read_table(path).to_pylist() if row["url"]}
    assert len(urls) == COUNT - 3 and all_as_described(tmp_path / "m.json")
    assert read_manifest(tmp_path / "m.json")["images"]["count"] == COUNT - 3
    assert sum(len(list(shard_images(path.with_suffix(".tar")))) for path in kept) == COUNT - 3
