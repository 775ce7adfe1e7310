"""`filip search`: indexed on first use, with a text or a picture, and places in the picture's own pixels."""

import json
import re
from pathlib import Path

import pytest

from filip.cli.command import run_command
from filip.eval.scorer import load_scorer
from filip.images.rgb import read_rgb
from filip.search import __main__ as search
from filip.search.hits import cell_box
from filip.search.ranking import query_of, with_article
from tests.eval.miniature import picture, write_model


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("album")
    write_model(folder / "model.safetensors", seed=1)
    write_model(folder / "clip.safetensors", "pooled", seed=2)
    (folder / "photos").mkdir()
    for number in range(24):
        picture(number, 60).resize((90, 60)).save(folder / "photos" / f"{number}.png")
    return folder


WORDS = ("images", "text")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        *((text, "a jellyfish") for text in ("jellyfish", "a jellyfish", "the jellyfish", " jellyfish?")),
        *(("apple", "an apple"), ("Red bicycle", "a Red bicycle"), ("The old lamp.", "an old lamp")),
        *((text, text) for text in ("dogs", "a dog in the snow", "route 66", "猫", "Über Hund", "", "a cat, a dog")),
    ],
)
def test_a_name_is_read_with_its_article(text: str, read: str) -> None:
    assert with_article(text) == read and with_article(read) == read


def found(album: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    given = [str(album / "photos"), *arguments]
    if not any(argument.startswith("model=") for argument in given):
        given.append(f"model={album / 'model.safetensors'}")
    run_command(search.main, search.Search, argv=[*given, "json=true", "device=cpu"], words=WORDS)
    return json.loads(capsys.readouterr().out)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(search, "place_of", lambda config, model: tmp_path / f"cache/{Path(model).stem}")


def test_the_next_search_encodes_only_what_is_new(
    album: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = found(album, capsys, "a red dog", "count=24")
    scores = {Path(hit["file"]).name: hit["score"] for hit in answer["hits"]}
    assert len(scores) == answer["images"] == 24
    texts = query_of(load_scorer(str(album / "model.safetensors"), fit="pad"), "a red dog")
    exact = {
        file.name: float(scorer.similarity(scorer.encode_images(scorer.transform(read_rgb(file))[None]), texts).t2i)
        for scorer in [load_scorer(str(album / "model.safetensors"), fit="pad")]
        for file in (album / "photos").iterdir()
    }
    assert scores == pytest.approx(exact, abs=0.01), "all patches, in 8 bits"
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    (album / "photos" / "new.png").write_bytes((album / "photos" / "3.png").read_bytes())
    given = [f"images={album / 'photos'}", "text=a red dog", f"model={album / 'model.safetensors'}"]
    run_command(search.main, search.Search, argv=[*given, "device=cpu"])
    said = capsys.readouterr()
    assert "25 images; 1 encoded, 24 already there" in said.err
    assert len([line for line in said.out.splitlines() if " at " not in line]) == 10
    page = Path(re.findall("open (.*hits.html)", said.err)[0])
    assert page.read_text().count("<image ") == page.read_text().count("<figcaption>") == 10
    (album / "photos" / "new.png").unlink()
    of_index = [f"images={page.parent}", "paths=true", "device=cpu", "count=25"]
    run_command(search.main, search.Search, argv=[*of_index, "text=a red dog"])
    assert f"1 of these are no longer there: `filip index build … out={page.parent}`" in capsys.readouterr().err
    monkeypatch.setattr(search, "rank", lambda index, scorer, query: [])
    with pytest.raises(SystemExit, match="1"):
        run_command(search.main, search.Search, argv=[*of_index, "text=a red dog"])
    assert capsys.readouterr().out == "", "no empty line for xargs"


def test_another_s_index_is_not_searched(album: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    picture(1, 60).save(tmp_path / "others" / "1.png")
    found(album, capsys, "a dog", f"index={tmp_path / 'i'}", "fit=crop")
    found(album, capsys, "a dog", f"index={tmp_path / 'i'}")  # of the same pictures, as it was made
    given = [str(tmp_path / "others"), "a dog", f"index={tmp_path / 'i'}"]
    given = [*given, f"model={album / 'model.safetensors'}", "device=cpu"]
    with pytest.raises(SystemExit):
        run_command(search.main, search.Search, argv=given, words=WORDS)
    assert "was made of the images in" in capsys.readouterr().err


def test_options_that_an_index_would_ignore_are_refused(
    album: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    clip, index = f"model={album / 'clip.safetensors'}", tmp_path / "i"
    found(album, capsys, "a dog", clip, f"index={index}")
    for given in ([str(album / "photos"), "a dog", clip, f"index={index}"], [str(index), "a dog"]):
        with pytest.raises(SystemExit):
            run_command(search.main, search.Search, argv=[*given, "tokens=true", "fit=crop"], words=WORDS)
        assert f"the index {index} was made without tokens=true fit=crop" in capsys.readouterr().err


def test_a_picture_finds_itself(album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mirrored = found(album, capsys, str(album / "photos" / "7.png"))
    assert mirrored["hits"][0]["path"] == "7.png" and mirrored["hits"][0]["score"] > 0.999
    assert "words" not in mirrored["hits"][0], "a picture has no words that could be anywhere"


def test_words_have_places_in_the_pictures_own_pixels(album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hit = found(album, capsys, "a red dog", "count=1")["hits"][0]
    assert hit["size"] == [90, 60] and [word["word"] for word in hit["words"]] == ["red", "dog"]
    for word in hit["words"]:
        left, top, right, bottom = word["box"]
        assert 0 <= left < right <= 90 and 0 <= top < bottom <= 60
    # of a square of 90 with the picture in its middle, the first row of four is half outside
    assert cell_box(0, (4, 4), (90, 60), "pad") == (0, 0, 22, 8)
    assert cell_box(15, (4, 4), (90, 60), "crop") == (60, 45, 75, 60)


def test_a_pooled_model_is_searched_too_and_token_wise_by_name(album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = f"model={album / 'clip.safetensors'}"
    assert "words" not in found(album, capsys, "a red dog", clip)["hits"][0]
    assert found(album, capsys, "a dog", clip, "tokens=true", f"index={album / 'of_tokens'}")["hits"][0]["words"]
