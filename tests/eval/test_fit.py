"""Pictures that are not square, seen whole."""

import json

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from filip.eval.encoders import load_encoder
from filip.eval.formats.records import RecordSet
from filip.eval.pointing import coverage
from tests.eval.miniature import SIDE, picture, write_model


def wide(part: Image.Image, left: int) -> Image.Image:
    """Return a white picture three times as wide as high, with another pasted into it."""
    page = Image.new("RGB", (3 * part.width, part.height), "white")
    page.paste(part, (left, 0))
    return page


def test_what_lies_at_the_side_is_seen_whole_with_pad_only(tmp_path):
    model = write_model(tmp_path / "m.safetensors")
    crop, pad = (load_encoder(model, fit=fit) for fit in ("crop", "pad"))
    with_it, without = wide(picture(1), 0), Image.new("RGB", (3 * SIDE, SIDE), "white")
    assert torch.equal(crop.transform(with_it), crop.transform(without))
    assert not torch.equal(pad.transform(with_it), pad.transform(without))
    assert torch.equal(pad.transform(picture(1)), crop.transform(picture(1)))  # a square has no borders
    assert pad.details == {"fit": "pad"} and "fit" not in crop.details
    assert pad.transform(without)[:, 0].abs().max() < 0.01  # the border is nought


def test_masks_go_through_the_same_borders(tmp_path):
    pad = load_encoder(write_model(tmp_path / "m.safetensors"), fit="pad")
    mask = Image.new("L", (3 * SIDE, SIDE), 0)
    mask.paste(255, (0, 0, SIDE, SIDE))
    share = coverage(mask, pad.transform, pad.grid)
    assert share.shape == (4, 4) and np.isfinite(share).all()
    assert share[0].max() < 0.05 and share[3].max() < 0.05 and share[1:3, 0].min() > 0.5
    assert share.mean() == pytest.approx(1 / 9, abs=0.02)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_of_a_turned_picture_is_found_in_the_upright_one(tmp_path, orientation):
    """Annotations count the pixels that are stored. A red box there is the red box of what the model sees."""
    box, exif = (10.0, 4.0, 26.0, 12.0), Image.Exif()
    stored = Image.new("RGB", (48, 32), "blue")
    stored.paste("red", tuple(map(int, box)))
    exif[ExifTags.Base.Orientation] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    row = {"file": "a.png", "bbox": [10, 4, 16, 8], "y": "red", "n": ["no"]}
    (tmp_path / "boxes.json").write_text(json.dumps([row]))
    options = {"annotations": "boxes.json", "image": "file", "positive": "y", "negative": "n", "crop": "bbox"}
    shown = RecordSet(tmp_path, "selection", options)[0].image
    assert (np.asarray(shown)[..., 0] == 255).all() and shown.width * shown.height == 128
