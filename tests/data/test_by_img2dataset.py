"""img2dataset itself as the engine of a download: the same pairs and the same account as ours, on one server."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from filip.data.by_img2dataset import reason_of_message
from filip.data.cards import SourceCard, parse_card
from filip.data.download import download
from filip.errors import UserError
from tests.data import hostile
from tests.data.downloads import write_list

NAMES = ["jpeg", "nothing", "png", "status_403", "status_500", "html", "moved", "small", "wide", "webp", "empty"]
NAMES += ["opted_out", "reset", "hang"]


def card_of(engine: str, **more: object) -> SourceCard:
    download = {"engine": engine, "image_size": 64, "timeout": 2, "retries": 0, "retry_passes": 0, "processes": 1,
                "samples_per_shard": 100, "threads": 4, "full_decoding": True, **more}  # fmt: skip
    return parse_card({"name": "web", "allow_private_hosts": True, "download": download}, Path("web.yaml"))


def stored(folder: Path) -> dict[str, np.ndarray]:
    """Return the picture of each caption."""
    result = {}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar if member.isreg()}  # type: ignore[union-attr]
        for name, data in files.items():
            if name.endswith(".jpg"):
                caption = json.loads(files[name.replace(".jpg", ".json")])["caption"]
                result[caption] = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return result


@pytest.mark.system
def test_both_engines_keep_the_same_pairs_and_count_the_same_reasons(tmp_path: Path) -> None:
    with hostile.hostile_server(slow=1) as server:
        urls = [server.url(name) for name in NAMES]
        source = write_list(tmp_path / "kept.parquet", urls, rank=list(range(len(NAMES))))
        ours, theirs = (download(source, tmp_path / engine, card_of(engine)) for engine in ("own", "img2dataset"))
    assert ours is not None and theirs is not None
    assert (theirs.n_in, theirs.n_out, theirs.dropped) == (ours.n_in, ours.n_out, ours.dropped)
    pictures = stored(tmp_path / "own"), stored(tmp_path / "img2dataset")
    assert pictures[0].keys() == pictures[1].keys() and len(pictures[0]) == ours.n_out
    for caption, picture in pictures[0].items():
        assert np.array_equal(picture, pictures[1][caption]), caption
    described = pq.read_table(tmp_path / "img2dataset" / "00000.parquet")
    assert described.num_rows and theirs.notes["engine"] == "img2dataset"


@pytest.mark.system
def test_a_part_and_an_option_that_it_does_not_have_are_refused(tmp_path: Path) -> None:
    source = write_list(tmp_path / "kept.parquet", ["http://127.0.0.1:9/a.jpg"])
    with pytest.raises(UserError, match="part= is for our own engine"):
        download(source, tmp_path / "out", card_of("img2dataset"), part=(0, 2))
    with pytest.raises(UserError, match=r"img2dataset ended with status"):
        download(source, tmp_path / "out", card_of("img2dataset", img2dataset={"no_such_option": 1}))


def test_what_img2dataset_says_is_a_reason_of_ours() -> None:
    said = {"HTTP Error 404: Not Found": "http_404", "HTTP Error 503: x": "http_5xx", "image too small": "too_small",
            "<urlopen error timed out>": "timeout", "something new": "other"}  # fmt: skip
    assert {message: reason_of_message(message) for message in said} == said
