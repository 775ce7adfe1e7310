"""Pictures that are not square, seen whole."""

import json

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from filip.errors import UserError
from filip.eval.datasets import batches
from filip.eval.encoders import load_encoder
from filip.eval.formats.coco_boxes import CocoBoxes
from filip.eval.formats.records import RecordSet
from filip.eval.pointing import coverage
from filip.eval.scorer import load_scorer
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


def test_another_word_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"fit=stretch: .* by crop, pad, tiles, box"):
        load_encoder(write_model(tmp_path / "m.safetensors"), fit="stretch")


@pytest.mark.parametrize("interaction", ["token_wise", "pooled"])
def test_tiles_see_every_part_and_a_square_as_the_model_alone_does(tmp_path, interaction):
    file = write_model(tmp_path / "m.safetensors", interaction)
    alone, tiled = load_scorer(file), load_scorer(file, fit="tiles")
    pictures, texts = [picture(i) for i in range(3)], ["a cat", "two dogs on a sofa"]
    seen = [s.encode_images(torch.stack([s.transform(one) for one in pictures])) for s in (alone, tiled)]
    results = [s.similarity(images, s.encode_texts(texts)) for s, images in zip((alone, tiled), seen, strict=True)]
    torch.testing.assert_close(results[0].i2t, results[1].i2t, atol=1e-6, rtol=0)
    torch.testing.assert_close(results[0].t2i, results[1].t2i, atol=1e-6, rtol=0)
    parts = [tiled.encoder.encoder.encode_images(alone.transform(picture(i))[None])[0] for i in range(3)]
    page = Image.new("RGB", (3 * SIDE, SIDE))
    for n in range(3):
        page.paste(picture(n), (n * SIDE, 0))
    whole = tiled.encode_images(tiled.transform(page)[None])[0]
    expected = torch.cat(parts) if interaction == "token_wise" else torch.stack(parts).mean(0)
    torch.testing.assert_close(whole, torch.nn.functional.normalize(expected, dim=-1), atol=1e-6, rtol=0)
    assert tiled.encoder.details["fit"] == "tiles" and tiled.encoder.grid == (0, 0)
    with pytest.raises(UserError, match="no picture of patches can be drawn"):
        tiled.encoder.patches(torch.zeros(1, 9, SIDE, SIDE))


def write_boxes(folder, boxes):
    """Write a picture and a table to select from, a row for each box [x, y, width, height] of it."""
    Image.merge("RGB", [picture(n).getchannel(0) for n in range(3)]).resize((64, 32)).save(folder / "a.png")
    rows = [{"file": "a.png", "bbox": box, "yes": "a cat", "no": ["a dog", "two birds"]} for box in boxes]
    (folder / "boxes.json").write_text(json.dumps(rows))
    options = {"annotations": "boxes.json", "image": "file", "positive": "yes", "negative": "no", "crop": "bbox"}
    return RecordSet(folder, "test", "selection", options)


@pytest.mark.parametrize("interaction", ["token_wise", "pooled"])
def test_features_of_a_box_are_those_of_the_patches_in_it(tmp_path, interaction):
    """The model has 4 x 4 patches, each of 16 x 8 pixels of the picture: boxes along their edges pool whole patches."""
    result = write_boxes(tmp_path, [[16, 8, 48, 24], [16, 0, 32, 16], [3, 1, 5, 4]])
    encoder = load_encoder(write_model(tmp_path / "m.safetensors", interaction), fit="box")
    (batch,) = batches(result, encoder.transform, 8)
    features = encoder.encode_images(batch.pixels)
    plain = encoder.encoder
    squeezed = Image.open(tmp_path / "a.png").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    patches = plain.patches(plain.transform(squeezed)[None])[0].unflatten(0, (4, 4))
    if interaction == "token_wise":
        torch.testing.assert_close(features[0], patches[1:4, 1:4].flatten(0, 1), atol=1e-6, rtol=0)
        assert features.shape == (3, 9, 16)
    else:
        expected = torch.stack([patches[1:4, 1:4].flatten(0, 1).mean(0), patches[:2, 1:3].flatten(0, 1).mean(0)])
        expected = torch.nn.functional.normalize(expected, dim=-1)
        torch.testing.assert_close(features[:2], expected, atol=1e-6, rtol=0)
    assert features.norm(dim=-1) == pytest.approx(1, abs=1e-5) and encoder.details["fit"] == "box"
    crop = load_encoder(str(tmp_path / "m.safetensors"))
    assert result[1].image.size == (32, 16) and crop.transform(result[1].image).shape == (3, SIDE, SIDE)
    with pytest.raises(UserError, match="fit=box: patches are of the whole picture"):
        encoder.patches(batch.pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_of_a_turned_picture_is_found_in_the_upright_one(tmp_path, orientation):
    """Annotations count the pixels that are stored. A red box there is the red box of what the model sees."""
    box, exif = (10.0, 4.0, 26.0, 12.0), Image.Exif()
    stored = Image.new("RGB", (48, 32), "blue")
    stored.paste("red", tuple(map(int, box)))
    exif[ExifTags.Base.Orientation] = orientation
    (tmp_path / "val2017").mkdir()
    for file in ("a.png", "val2017/a.png"):
        stored.save(tmp_path / file, exif=exif)
    corner = [10, 4, 16, 8]
    coco = {"categories": [{"id": 1, "name": "red"}], "images": [{"id": 1, "file_name": "a.png"}]}
    coco["annotations"] = [{"id": 7, "image_id": 1, "bbox": corner, "category_id": 1}]
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    (tmp_path / "boxes.json").write_text(json.dumps([{"file": "a.png", "bbox": corner, "y": "red", "n": ["no"]}]))
    options = {"annotations": "boxes.json", "image": "file", "positive": "y", "negative": "n", "crop": "bbox"}
    for result in (RecordSet(tmp_path, "test", "selection", options)[0], CocoBoxes(tmp_path, "coco.json")[0]):
        upright = ImageOps.exif_transpose(Image.open(tmp_path / "a.png"))
        assert np.array_equal(result.whole, upright)
        red = np.asarray(upright)[..., 0] == 255
        assert result.box == (*np.argwhere(red).min(0)[::-1], *(np.argwhere(red).max(0)[::-1] + 1))
        assert (np.asarray(result.image)[..., 0] == 255).all() and result.image.width * result.image.height == 128
