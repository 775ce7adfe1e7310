"""A table of images: its rows that can be used are, and the others are left out with the reason."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from filip.common.errors import UserError
from filip.eval.cards import load_card
from filip.eval.formats import open_set
from tests.eval.miniature import run_protocol, write_model

FAULTS = {
    "an empty caption": '{"image": "9.png", "caption": "  "}',
    "no caption": '{"image": "9.png", "caption": null}',
    "a broken line": '{"image": "9.png", "cap',
    "a missing file": '{"image": "gone.png", "caption": "a thing"}',
    "a place elsewhere": '{"image": "../secret.png", "caption": "a thing"}',
}


def write_set(root: Path, fault: str, **columns: str) -> None:
    """Write nine images with captions, and a tenth line with a fault."""
    (root / "set" / "images").mkdir(parents=True)
    for n in range(10):
        Image.new("RGB", (30, 30), (20 * n, 90, 200 - 20 * n)).save(root / "set" / "images" / f"{n}.png")
    Image.new("RGB", (30, 30)).save(root / "set" / "secret.png")
    lines = [json.dumps({"image": f"{n}.png", "caption": f"thing {n}", "wrong": "other"}) for n in range(9)]
    (root / "set" / "pairs.jsonl").write_text("\n".join([*lines, fault]) + "\n")


def write_card(root: Path, layout: str, kind: str = "retrieval", **options: object) -> Path:
    place = {"path": "set", "split": "all", "size": 10, "annotations": "pairs.jsonl", "images": "images", **options}
    metric = "recall" if kind == "retrieval" else "accuracy"
    card = {"name": "mine", "title": "Mine", "kind": kind, "metric": metric, "loader": layout}
    card |= {"layouts": {layout: place}, "homepage": "x", "license": "x"}
    (root / f"{layout}.yaml").write_text(yaml.safe_dump(card))
    return root / f"{layout}.yaml"


@pytest.mark.parametrize("fault", FAULTS)
def test_captions_of_usable_rows_are_ranked(tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path, FAULTS[fault])
    card = write_card(tmp_path, "captions")
    model = write_model(tmp_path / "m.safetensors")
    given = [f"model={model}", f"data=[{card}]", f"root={tmp_path}", f"out={tmp_path / 'out'}"]
    found = run_protocol("retrieval", given)["benchmarks"]["mine"]
    assert found["images"] == found["captions"] == 9 and "left out" in capsys.readouterr().err
    assert "9 images, but the card's split has 10" in found["note"]
    with pytest.raises(UserError, match="are read by the layout `captions`"):
        open_set(load_card(str(write_card(tmp_path, "records"))), tmp_path)


@pytest.mark.parametrize("fault", FAULTS)
def test_an_unusable_row_is_left_out(tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_set(tmp_path, FAULTS[fault].replace('"caption"', '"wrong": "other", "caption"'))
    card = load_card(str(write_card(tmp_path, "records", "selection", positive="caption", negative="wrong")))
    data = open_set(card, tmp_path)
    assert [data[n].captions for n in range(len(data))] == [[f"thing {n}", "other"] for n in range(9)]
    assert "left out" in capsys.readouterr().err


def test_a_table_without_one_usable_row_says_why(tmp_path: Path) -> None:
    write_set(tmp_path, "")
    (tmp_path / "set/pairs.jsonl").write_text(
        FAULTS["a place elsewhere"].replace('"caption"', '"wrong": "b", "caption"')
    )
    card = load_card(str(write_card(tmp_path, "records", "selection", positive="caption", negative="wrong")))
    with pytest.raises(UserError, match=r"\.\./secret\.png"):
        open_set(card, tmp_path)


def test_names_in_a_table_may_lack_the_end_of_the_file_s_name(tmp_path: Path) -> None:
    write_set(tmp_path, "")
    table = tmp_path / "set/pairs.jsonl"
    table.write_text(table.read_text().replace(".png", ""))
    data = open_set(load_card(str(write_card(tmp_path, "captions", suffix=".png", keep={"wrong": "other"}))), tmp_path)
    assert len(data) == 9 and data[3].key == "3.png"
