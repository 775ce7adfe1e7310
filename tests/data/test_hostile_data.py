"""Data that nobody meant well with: one sentence or a count, and nothing lost."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from filip.data import ingest, translate
from filip.data.cards import SourceCard
from filip.data.prepare import prepare as make_list
from filip.data.sidecar import read_sidecar
from filip.data.text_rules import apply_text_rules
from filip.loading.config import Source
from filip.loading.pair_index import ShardCaptions, index_source
from tests.data.own_images import picture
from tests.data.test_full_disks import Command, arguments
from tests.data.test_translate import job, make_shards

CAPTIONS = [
    "word " * 200_000,  # a megabyte
    "a dog\0in the park",
    "a red \u202eacb\u202c boat on the lake",
    "a family \u200d\ufe0f at the beach",
    "a broken \ud83d sign by the road",
    "a\r\nhouse\u2028with two\u0085gardens",
    "'; DROP TABLE listed; --",
    "a cat; $(touch /nowhere) `id` in a box",
]


def test_captions_of_any_characters_go_through_all_stages(tmp_path: Path) -> None:
    lines = [json.dumps({"url": f"https://a.org/{n}", "caption": text}) for n, text in enumerate(CAPTIONS)]
    (tmp_path / "l.jsonl").write_text("\n".join(lines) + "\n")
    card = SourceCard("t", list=str(tmp_path / "l.jsonl"))
    fragment = make_list(card, tmp_path / "list.parquet", shuffle=False)
    assert fragment.n_in == len(CAPTIONS)
    apply_text_rules(
        tmp_path / "list.parquet", tmp_path / "kept.parquet", card, processes=1, dropped=tmp_path / "gone.parquet"
    )
    gone = {row["url"]: row["reason"] for row in pq.read_table(tmp_path / "gone.parquet").to_pylist()}
    assert gone["https://a.org/0"] == "too_long"
    kept = pq.read_table(tmp_path / "kept.parquet")["caption"].to_pylist()
    assert len(kept) >= 5 and any("acb" in text for text in kept)
    make_shards(tmp_path / "shards", kept, per_shard=4)
    translate.translate(*job(tmp_path))  # a real engine, too
    sidecars = sorted((tmp_path / "captions").glob("*.parquet"))
    rows = [row for path in sidecars for row in read_sidecar(path)]
    assert {row["captions"][0] for row in rows} <= set(kept) and len(rows) >= 4
    assert all(ShardCaptions.from_sidecar(path).text(0, 0.0, True) for path in sidecars)


def test_a_tar_from_elsewhere_reaches_no_file_outside_of_it(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("a secret of this machine")
    data = picture("dog.png")
    with tarfile.open(tmp_path / "odd.tar", "w") as tar:

        def add(name: str, content: bytes = b"", **header: object) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in header.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(content))

        for name in ("good", "/etc/absolute", "../../climbing", "twice", "twice"):
            add(f"{name}.png", data)
            add(f"{name}.txt", f"a dog on the beach, called {name.strip('./').split('/')[-1]}".encode())
        add("link.png", type=tarfile.SYMTYPE, linkname=str(tmp_path / "secret.txt"))
        add("link.txt", b"a link to something else")
        add("hard.png", type=tarfile.LNKTYPE, linkname="good.png")
        add("hard.txt", b"a hard link to another member")
        add("device.png", type=tarfile.CHRTYPE)
        add("device.txt", b"a device that never ends")
    with open(tmp_path / "odd.tar", "r+b") as file:  # a member that claims ten gigabytes, and ends the tar
        file.seek(-10_240, io.SEEK_END) if (tmp_path / "odd.tar").stat().st_size > 10_240 else file.seek(0)
        large = tarfile.TarInfo("large.png")
        large.size = 10 * 2**30
        file.write(large.tobuf(tarfile.GNU_FORMAT))
        file.truncate()
    before = sorted(path.name for path in tmp_path.iterdir())
    out = tmp_path / "shards"
    _, images = ingest.ingest(
        SourceCard("t", images=str(tmp_path / "odd.tar")), ingest.IngestConfig("t", out=str(out), processes=1)
    )
    assert images.n_in == images.n_out + sum(images.dropped.values()) and images.n_out >= 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "shards"])
    assert not any(b"a secret of this machine" in path.read_bytes() for path in out.rglob("*") if path.is_file())
    translate.translate(*job(tmp_path, SourceCard("t", images="x"), engine="none"))
    index = index_source(Source(str(out), str(tmp_path / "captions")))
    assert len(index) == images.n_out


BROKEN = {
    "text_rules": ["l.parquet"],
    "translate": ["shards/00000.parquet", "shards/00001.parquet"],
    "score": ["captions/00000.parquet"],
    "manifest": ["l.parquet", "shards/00001.parquet", "captions/00001.parquet", "download.json"],
    "funnel": ["translate.json"],
}


@pytest.mark.parametrize("stage", BROKEN)
def test_a_broken_file_is_named_by_its_stage(tmp_path: Path, stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = Command(stage, arguments(tmp_path)[stage])
    for name in BROKEN[stage]:
        whole = (tmp_path / name).read_bytes()
        for content in (b"", b"\xff\0" * 400, whole[: len(whole) // 2]):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(SystemExit):
                command.run(tmp_path / "out")
            said = capsys.readouterr().err.splitlines()
            assert said[-1].startswith("error: ") and Path(name).name in said[-1], said
        (tmp_path / name).write_bytes(whole)
