"""Benchmarks on disk: what their samples hold, and what is left out."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from filip.common.errors import UserError
from filip.eval.datasets import batches
from filip.eval.formats.webdataset import WebdatasetFolder
from filip.images.eval_transform import EvalTransform
from tests.eval.miniature import picture, write_split, write_webdataset
from tests.support.shards import encoded


def test_captions_and_masks(tmp_path):
    captions = [["one", "two, 2", ""], ["three"]]
    write_webdataset(tmp_path, None, captions, masks=True)
    data = WebdatasetFolder(tmp_path)
    assert data.classes is None
    # str.splitlines, as the suite
    assert [data[i].captions for i in range(2)] == [["one", "two, 2"], ["three"]]
    mask = data[0].mask
    assert mask is not None and mask.getpixel((0, 0)) == 0 and mask.getpixel((31, 31)) == 255


def test_the_cluster_of_a_sample_is_the_field_that_the_card_names(tmp_path):
    write_webdataset(tmp_path, ["a", "b"], [0, 1, 0], codes=["x", "y", "x"])
    data = WebdatasetFolder(tmp_path, cluster="code")
    assert [c for b in batches(data, EvalTransform(16), 2) for c in b.clusters] == ["x", "y", "x"]
    alone = [c for b in batches(WebdatasetFolder(tmp_path), EvalTransform(16), 2) for c in b.clusters]
    assert alone == ["s0000000", "s0000001", "s0000002"]
    with pytest.raises(UserError, match=r"sample s0000000 in .* has no 'colour' in a \.json"):
        WebdatasetFolder(tmp_path, cluster="colour")[0]


def test_a_blank_class_name_keeps_its_place(tmp_path):
    write_webdataset(tmp_path, ["near", "", "far"], [2, 1])
    assert WebdatasetFolder(tmp_path).classes == ["near", "", "far"]


def test_workers_change_neither_order_nor_content(tmp_path):
    write_webdataset(tmp_path, list("abcd"), [i % 4 for i in range(21)], shards=3)
    data = WebdatasetFolder(tmp_path)
    plain = list(batches(data, EvalTransform(16), 4))
    parallel = list(batches(data, EvalTransform(16), 4, workers=2))
    assert [b.keys for b in plain] == [b.keys for b in parallel]
    assert sum(len(b.keys) for b in plain) == 21
    for one, other in zip(plain, parallel, strict=True):
        assert torch.equal(one.pixels, other.pixels) and torch.equal(one.labels, other.labels)


def test_an_unreadable_image_is_left_out_and_named(tmp_path):
    good = encoded(picture(0))
    long = encoded(Image.new("L", (60_000, 1)))  # resized, it would take gigabytes
    members = [("s0.webp", encoded(picture(0), "WEBP"))]
    members += [(f"s{n}.png", image) for n, image in enumerate((good[:90], b"", long), 1)]
    members += [(f"s{n}.cls", b"%d" % (n % 2)) for n in range(4)]
    write_split(tmp_path / "test", [members])
    (tmp_path / "classnames.txt").write_text("a\nb\n")
    data = WebdatasetFolder(tmp_path)
    (batch,) = batches(data, EvalTransform(16), 8)
    assert batch.keys == ["s0"] and len(batch.undecodable) == 3
    assert batch.undecodable[0].startswith("number 1 (s1): ")
    assert batch.undecodable[1] == "number 2 (s2): it is not an image"
    assert batch.undecodable[2].startswith("number 3 (s3): the image has 60000 x 1 pixels: too long and narrow")
    with pytest.raises(UserError, match=r"unreadable image, number 1 \(s1\): .*; fetch it again"):
        data.needed(1)


def test_faults_of_a_copy_are_named(tmp_path):
    write_webdataset(tmp_path / "a", ["x", "y"], [0, 1], split="val")
    with pytest.raises(UserError, match="its splits are val"):
        WebdatasetFolder(tmp_path / "a", "test")
    (tmp_path / "a" / "val" / "1.tar").unlink()
    with pytest.raises(UserError, match=r"says 2 shards, but .*1\.tar is missing"):
        WebdatasetFolder(tmp_path / "a", "val")
    (tmp_path / "a" / "val" / "1.tar").write_bytes(b"not a tar" * 200)
    with pytest.raises(UserError, match="not a readable tar"):
        WebdatasetFolder(tmp_path / "a", "val")
    write_webdataset(tmp_path / "b", ["x"], [0, 1])
    with pytest.raises(UserError, match=r"has label 1, but classnames\.txt has 1 names"):
        WebdatasetFolder(tmp_path / "b")[1]
    Path(tmp_path / "b" / "classnames.txt").unlink()
    with pytest.raises(UserError, match=r"no classnames\.txt"):
        WebdatasetFolder(tmp_path / "b")
