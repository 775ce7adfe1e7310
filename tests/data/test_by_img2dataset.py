"""img2dataset itself as the engine of a download: the same pairs and the same account as ours, on one server."""

import hashlib
import sys
import tomllib
import urllib.request
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from filip.common.errors import UserError
from filip.data.by_img2dataset import REQUIREMENTS, Img2dataset, program, reason_of_message
from filip.data.cards import SourceCard, parse_card
from filip.data.download import download
from tests.data import hostile
from tests.data.downloads import hashes, write_list
from workflow.study import ROOT

NAMES = ["jpeg", "nothing", "png", "status_403", "status_500", "html", "moved", "small", "wide", "webp", "empty"]
NAMES += ["opted_out", "reset", "hang"]


def card_of(engine: str, **more: object) -> SourceCard:
    download = {"engine": engine, "image_size": 64, "timeout": 2, "retries": 0, "retry_passes": 0, "processes": 1,
                "samples_per_shard": 100, "threads": 4, "full_decoding": True, **more}  # fmt: skip
    return parse_card({"name": "web", "allow_private_hosts": True, "download": download}, Path("web.yaml"))


@pytest.mark.system
def test_both_engines_keep_the_same_pairs_and_count_the_same_reasons(tmp_path: Path) -> None:
    with hostile.hostile_server(slow=1) as server:
        urls = [server.url(name) for name in NAMES]
        source = write_list(tmp_path / "kept.parquet", urls, rank=list(range(len(NAMES))))
        ours, theirs = (download(source, tmp_path / engine, card_of(engine)) for engine in ("own", "img2dataset"))
    assert ours is not None and theirs is not None
    assert (theirs.n_in, theirs.n_out, theirs.dropped) == (ours.n_in, ours.n_out, ours.dropped)
    tars = [(tmp_path / engine / "00000.tar").read_bytes() for engine in ("own", "img2dataset")]
    assert tars[0] == tars[1] and len(tars[0]) > 10_000  # and so are the columns of the list
    columns = ["url", "caption", "rank", "key", "status", "width", "original_height", "sha256"]
    described = [
        pq.read_table(tmp_path / engine / "00000.parquet", columns=columns) for engine in ("own", "img2dataset")
    ]
    assert described[0].equals(described[1])


@pytest.mark.system
def test_parts_and_a_killed_run_make_the_folder_of_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hostile.hostile_server() as server:
        urls = [server.url(f"image{n}") for n in range(6)]
        with urllib.request.urlopen(urls[0]) as answer:
            right = hashlib.sha256(answer.read()).hexdigest()
        source = write_list(tmp_path / "kept.parquet", urls, source_sha256=[right, "0" * 64, *[None] * 4])
        card = card_of("img2dataset", samples_per_shard=2)
        card.image_rules.min_side = 32
        whole = download(source, tmp_path / "whole", card)
        assert download(source, tmp_path / "parts", card, part=(1, 2)) is None
        assert [path.name for path in (tmp_path / "parts").glob("*.tar")] == ["00001.tar"]
        store = Img2dataset._store

        def dies(*arguments: object) -> None:
            monkeypatch.setattr(Img2dataset, "_store", store)
            raise KeyboardInterrupt

        monkeypatch.setattr(Img2dataset, "_store", dies)  # after it has fetched a shard
        with pytest.raises(KeyboardInterrupt):
            download(source, tmp_path / "parts", card)
        parts = download(source, tmp_path / "parts", card)
    assert whole is not None and parts is not None
    assert (whole.n_out, whole.dropped) == (parts.n_out, parts.dropped) == (5, {"hash_mismatch": 1})
    assert hashes(tmp_path / "whole") == hashes(tmp_path / "parts")
    assert not (tmp_path / "parts.in_progress").exists()


def test_its_extra_is_what_uv_fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without both, `filip study check` names what to install."""
    assert program(card_of("img2dataset"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UserError, match=r"\[img2dataset\]"):
        program(card_of("img2dataset"))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert tuple(extras["img2dataset"]) == REQUIREMENTS


def test_what_img2dataset_says_is_a_reason_of_ours() -> None:
    said = {"HTTP Error 404: Not Found": "http_404", "HTTP Error 503: x": "http_5xx", "image too small": "too_small",
            "<urlopen error timed out>": "timeout", "something new": "other"}  # fmt: skip
    assert {message: reason_of_message(message) for message in said} == said
