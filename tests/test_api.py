"""``from filip import load``: the same numbers as the evaluation's, from paths, PIL images and tensors."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

import filip
from filip import api, load
from filip.common.errors import UserError
from filip.eval.cards import load_card
from filip.eval.datasets import batches
from filip.eval.formats import open_set
from filip.eval.scorer import load_scorer, ranking
from filip.export.standalone.filip_inputs import to_pixels
from filip.models import build_model, save_model
from filip.sets.image_set import read_image
from tests.eval.miniature import SIDE, picture, tiny_config, write_model, write_webdataset

TEXTS = ["a photo of a cat.", "a black dog runs on the beach", "cat", "a photo of a cat."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    for interaction in ("token_wise", "pooled"):
        write_model(folder / f"{interaction}.safetensors", interaction)
    for number in range(5):
        picture(number, 48).save(folder / f"{number}.png")
    return folder


def pictures(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


@pytest.mark.parametrize("interaction", ["token_wise", "pooled"])
def test_similarities_equal_the_evaluations_to_the_bit(interaction: str, folder: Path, tmp_path: Path) -> None:
    """One way is a test set on disk, the evaluation's reader and scorer; the other is three lines of Python."""
    path = folder / f"{interaction}.safetensors"
    images = write_webdataset(tmp_path / "demo_fluent", None, [[text] for text in TEXTS])
    scorer = load_scorer(str(path))
    data = open_set(load_card("demo_fluent"), tmp_path)
    features = torch.cat([scorer.encode_images(batch.pixels) for batch in batches(data, scorer.transform, 3)])
    expected = scorer.similarity(features, scorer.encode_texts(TEXTS))
    result = load(path, device="cpu").similarity(images, TEXTS, batch_size=3)
    assert result.i2t.shape == result.t2i.shape == (4, 4)
    assert torch.equal(result.i2t, expected.i2t) and torch.equal(result.t2i, expected.t2i)
    assert torch.equal(result.i2t, result.t2i) == (interaction == "pooled")


@pytest.mark.parametrize("interaction", ["token_wise", "pooled"])
def test_paths_pictures_and_tensors_are_encoded_alike(interaction: str, folder: Path) -> None:
    model = load(str(folder / f"{interaction}.safetensors"), device="cpu")
    paths = pictures(folder)
    expected = model.encode_images(paths)
    assert expected.shape == ((5, 16, 16) if interaction == "token_wise" else (5, 16))
    assert torch.allclose(expected.norm(dim=-1), torch.ones(expected.shape[:-1]))
    opened = [Image.open(path) for path in paths]
    raw = [torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1) for image in opened]
    ready = torch.stack([load_scorer(str(folder / f"{interaction}.safetensors")).transform(i) for i in opened])
    for images in (opened, raw, torch.stack(raw), ready, list(ready), [str(path) for path in paths]):
        assert torch.equal(model.encode_images(images), expected)
    assert torch.allclose(model.encode_images(paths, batch_size=2), expected, atol=1e-6)


def test_similarity_takes_what_was_encoded_before(folder: Path) -> None:
    for interaction in ("token_wise", "pooled"):
        model = load(folder / f"{interaction}.safetensors")
        images, texts = model.encode_images(pictures(folder)), model.encode_texts(TEXTS)
        assert len(texts) == 4
        once, again = model.similarity(pictures(folder), TEXTS), model.similarity(images, texts)
        assert torch.equal(once.i2t, again.i2t) and torch.equal(once.t2i, again.t2i)
        assert torch.equal(once.i2t[:, 0], once.i2t[:, 3]), "equal texts, equal columns"


def test_alignment_is_the_one_behind_the_similarity(folder: Path) -> None:
    model = load(folder / "token_wise.safetensors")
    path = pictures(folder)[0]
    result = model.align(path, TEXTS[1])
    assert result.tokens == ["[BOS]", "a", "black", "dog", "runs", "on", "the", "beach", "[EOS]"]
    image, text = model.encode_images([path])[0], model.encode_texts([TEXTS[1]]).values
    torch.testing.assert_close(result.similarity, (image @ text.T).view(4, 4, 9))
    scores = model.similarity([path], [TEXTS[1]])
    assert result.similarity.amax(2).mean().item() == pytest.approx(scores.i2t.item(), abs=1e-6)
    assert result.similarity.amax((0, 1)).mean().item() == pytest.approx(scores.t2i.item(), abs=1e-6)
    for row in range(4):
        for column in range(4):
            cosines = result.similarity[row, column]
            assert cosines[result.best_token[row, column]] == cosines.max()
            assert result.words[row][column] == result.tokens[int(cosines.argmax())]
    for token, (row, column) in enumerate(result.best_patch.tolist()):
        assert result.similarity[row, column, token] == result.similarity[:, :, token].max()
    assert result.names == [False, False, True, True, True, False, False, True, False]
    shown = [[word if word in ("black", "dog", "runs", "beach") else "." for word in row] for row in result.words]
    assert [line.split() for line in str(result).splitlines()] == shown


@pytest.mark.parametrize("interaction", ["token_wise", "pooled"])
def test_short_texts_are_ranked_by_text_to_image_and_longer_ones_by_the_mean(interaction: str, folder: Path) -> None:
    model, images = load(folder / f"{interaction}.safetensors"), pictures(folder)
    short, long = ["a cat", "a black dog", "a beach", "dogs"], TEXTS[:2] + ["two dogs and a cat on a red sofa", "a car"]
    for texts, direction in ((short, "text"), (long, "mean")):
        scores = ranking(model.similarity(images, texts), direction)
        for row, ranked in zip(scores, model.rank(images, texts), strict=True):
            assert sorted(ranked) == sorted(texts)
            placed = [row[texts.index(text)].item() for text in ranked]
            assert placed == sorted(placed, reverse=True)
    with pytest.raises(UserError, match=r"for one text give \[text\]"):
        model.rank(images, "a cat")


def test_alignment_of_a_pooled_model_is_refused_in_words(folder: Path) -> None:
    with pytest.raises(UserError, match=r"pooled is a pooled model.*load a token-wise one"):
        load(folder / "pooled.safetensors").align(pictures(folder)[0], "a cat")


def test_another_resolution_gives_another_grid(folder: Path) -> None:
    model = load(folder / "token_wise.safetensors", image_size=48)
    assert model.image_size == 48
    assert model.encode_images(pictures(folder)).shape == (5, 36, 16)
    assert model.align(pictures(folder)[0], "a cat").best_token.shape == (6, 6)


def test_what_is_no_image_and_no_text_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    model = load(folder / "token_wise.safetensors")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    raw = tmp_path / "photo.cr2"
    raw.write_bytes(b"of a camera")
    line = Image.new("RGB", (SIDE, 60 * SIDE))
    for images, message in (
        (["nowhere.jpg"], "there is no file or folder 'nowhere.jpg'"),
        ([folder / "0.pmg"], r"did you mean '.*0\.png'"),
        ([folder], "is a folder"),
        ([broken], "broken.png cannot be read as an image"),
        ([raw], r"photo.cr2 cannot be read as an image: 1 \.cr2 \(these formats are not read\)"),
        ([torch.zeros(3, SIDE + 8, SIDE)], r"have to be \[3, 32, 32\]"),
        ([torch.zeros(3, SIDE, SIDE, dtype=torch.int64)], "a tensor of torch.int64 is not an image"),
        ([line], "32 x 1920 pixels: too long and narrow"),
        ([17], "a int is not an image"),
        ("cat.jpg", r"not the text 'cat\.jpg'; for one image give \[image\]"),
        (torch.zeros(3, SIDE, SIDE), r"give \[image\]"),
    ):
        with pytest.raises(UserError, match=message):
            model.encode_images(images)
    for size in (0, -1, 2.5):
        with pytest.raises(UserError, match=f"batch_size={size} must be a whole number"):
            model.encode_images(pictures(folder), batch_size=size)
    for texts, message in (("a cat", r"give \[text\]"), (["a cat", None], "number 1 is a NoneType")):
        with pytest.raises(UserError, match=message):
            model.encode_texts(texts)
    for text in (["a cat"], "", None):
        with pytest.raises(UserError, match="align takes one text with words in it"):
            model.align(pictures(folder)[0], text)
    with pytest.raises(UserError, match="list is not an image"):
        model.align(pictures(folder)[:1], "a cat")


def test_a_model_that_is_not_there_or_cannot_run_here_is_refused_by_name(folder: Path) -> None:
    for path, options, message in (
        ("nowhere.safetensors", {}, "there is no file or folder 'nowhere.safetensors'"),
        (folder / "tokenwise.safetensors", {}, r"did you mean '.*token_wise\.safetensors'"),
        (None, {}, "load takes the path or the name of a model"),
        (folder / "pooled.safetensors", {"device": "cuda:99"}, "device=cuda:99: this machine has no such device"),
        (folder / "pooled.safetensors", {"image_size": 0}, "image_size=0: "),
    ):
        with pytest.raises(UserError, match=message):
            load(path, **options)
    assert load(folder / "pooled.safetensors", device=torch.device("cpu")).name == "pooled"


def test_what_another_kind_of_model_has_encoded_is_not_compared(folder: Path, tmp_path: Path) -> None:
    filip_, clip = (load(folder / f"{name}.safetensors") for name in ("token_wise", "pooled"))
    for model, other in ((filip_, clip), (clip, filip_)):
        with pytest.raises(UserError, match=r"these texts were encoded by a .* model, and .* is a .* one"):
            model.similarity(pictures(folder), other.encode_texts(TEXTS))
        with pytest.raises(UserError, match=r"these images were encoded by a .* model, and .* is a .* one"):
            model.similarity(other.encode_images(pictures(folder)), TEXTS)
    save_model(tmp_path / "wider.safetensors", build_model(tiny_config("token_wise", embed_dim=32)), {})
    with pytest.raises(UserError, match="the images have 32 channels and the texts 16"):
        filip_.similarity(load(tmp_path / "wider.safetensors").encode_images(pictures(folder)), TEXTS)
    with pytest.raises(UserError, match=r"give \[image\]"):  # one picture, not three encoded ones
        filip_.similarity(torch.rand(3, 16, 16), TEXTS)


def test_a_text_that_is_cut_is_warned_of(folder: Path) -> None:
    model = load(folder / "token_wise.safetensors")
    with pytest.warns(UserWarning, match=r"^1 of 2 texts have more than the 77 tokens that token_wise reads"):
        model.encode_texts(["a cat", "dog " * 100])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode_texts(["supercalifragilisticexpialidocious " * 3])


def test_names_of_the_package_are_those_of_the_api() -> None:
    assert (load, filip.Model, filip.Alignment) == (api.load, api.Model, api.Alignment)
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        filip.laod  # noqa: B018


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_picture_is_seen_upright_wherever_it_is_read(orientation: int, folder: Path, tmp_path: Path) -> None:
    """It is turned as the download turns a training's pictures; a phone writes nearly every photograph turned."""
    stored = picture(3, 48).crop((0, 0, 48, 40))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(tmp_path / "turned.png"))
    expected.save(tmp_path / "upright.png")
    assert ExifTags.Base.Orientation not in Image.open(tmp_path / "upright.png").getexif()
    model = load(folder / "token_wise.safetensors", device="cpu")
    turned, opened, upright = (
        model.encode_images([image])
        for image in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png"), tmp_path / "upright.png")
    )
    assert torch.equal(turned, upright) and torch.equal(opened, upright)
    assert not torch.equal(model.encode_images([stored]), upright)
    # by the index, the explorer and their thumbnails
    shown = read_image(tmp_path / "turned.png")
    assert np.array_equal(np.asarray(shown), np.asarray(expected.convert("RGB")))
    assert np.array_equal(
        to_pixels(Image.open(tmp_path / "turned.png"), SIDE), to_pixels(expected.convert("RGB"), SIDE)
    )  # in exports
