"""Find pictures by text or by example: ``filip search PHOTOS "a red bicycle"``."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError
from filip.common.files import check_output, nothing_at
from filip.common.progress import say
from filip.eval.encoders import FilipEncoder
from filip.eval.fit import FITS
from filip.eval.scorer import Scorer, load_scorer
from filip.eval.text_tokens import CHOICES
from filip.explore.names import NothingKnownError, listed, unknown_words
from filip.images.rgb import IMAGE_FILES, UNDECODABLE, upright_size
from filip.index.build import Build, OtherIndexError, scorer_of, up_to_date
from filip.index.store import FORMAT, About, Index
from filip.runs.saved_files import weights_of
from filip.search.hits import boxes, write_hits
from filip.search.ranking import Ranked, is_picture, query_of, rank, with_article

DEFAULT_MODEL = "emoji"
EMOJIS_HITS = (  # measured: docs/search.md
    "emoji knows drawings and no photographs (model=hf:… does). By an artist new to it one first hit in five is right; "
    "it ranks pictures for a name that none of them shows, too"
)


@dataclass
class Search:
    images: str = option(MISSING, "folder of pictures, or an index of `filip index build`; the first word")
    text: str = option(MISSING, "text to look for, or the file of a picture to find others like it; the second")
    count: int = option(10, "pictures to list", at_least=1)
    model: str | None = option(
        None, f"any model that the evaluation takes, e.g. hf:FOLDER (default: {DEFAULT_MODEL}, or the index's)"
    )
    tokens: bool = option(False, "score a pooled model token-wise, so that words have positions in the pictures")
    text_tokens: str = option(
        "content", "tokens that count: content = of words that name something, without_ends, all", choices=CHOICES
    )
    fit: str = option("pad", "pictures that are not square: pad = whole, crop = their centre", choices=FITS)
    index: str | None = option(
        None,
        "where the index of a folder is kept (default: in the user's cache); an existing one keeps its fit",
        writes="store",
    )
    where: bool = option(True, "say where in each picture the words fit best, in its own pixels")
    show: bool = option(True, "write the hits as a page of pictures, and say where it is")
    json: bool = option(False, "print JSON")
    paths: bool = option(False, "print nothing but the files' names, e.g. for xargs")
    device: str = option("auto", "torch device; auto = a GPU where there is one")


def main(config: Search) -> None:
    """List the pictures of a folder that fit a text, or a picture, best; the first search of a folder indexes it."""
    check_words(config)
    if (Path(config.images) / "about.json").is_file():
        index, scorer = _opened(config)
    else:
        index, scorer = _of_folder(config)
        scorer.encoder.dtype = torch.float32  # pictures indexed in 16 bits are ranked in 32
    if not is_picture(config.text) and isinstance(scorer.encoder, FilipEncoder):
        config = replace(config, text=with_article(config.text))
    try:
        query = query_of(scorer, config.text, config.text_tokens)
        hits = rank(index, scorer, query)
    except NothingKnownError as error:
        hits, nothing = [], str(error)
    else:
        nothing = "" if hits else "the index has no pictures"
        if not is_picture(config.text) and (unknown := unknown_words(scorer.encoder, config.text)):
            say(f"the model never learned {listed(unknown)}: looking for the rest")
    described = [_described(config, index, scorer, hit) for hit in hits[: config.count]]
    index.close()
    _show(config, index, described, nothing)
    if nothing:
        raise SystemExit(1)


def check_words(config: Search) -> None:
    """Raise UserError for a picture or words in place of the folder, and for a picture that is not there."""
    images, text = Path(config.images), Path(config.text)
    if images.is_file() and images.suffix.lower() in IMAGE_FILES:
        raise UserError(f"{images} is a picture: give a folder of pictures first, and then the text or the picture")
    if not images.exists() and text.is_dir():
        raise UserError(f"{text} is a folder and {str(images)!r} is none: give the folder first, and then the text")
    if text.suffix.lower() in IMAGE_FILES and not text.exists():
        raise UserError(nothing_at(text, "give the file of a picture, or words"))


def _opened(config: Search) -> tuple[Index, Scorer]:
    """Open an index that was built before, and load its model."""
    if config.index:
        raise UserError(f"index={config.index} is for a folder of pictures; {config.images} is an index: leave it out")
    index = Index.open(config.images)
    about = index.about
    model = config.model or about.model
    if weights_of(model) != about.weights:
        if config.model:
            raise UserError(f"{model} is not the model that {config.images} was built with, which is {about.model}")
        gone = "has changed since" if Path(model).exists() else "is no longer there: it was the model with which"
        raise UserError(f"{model} {gone} {config.images} was built: give model=FILE, or build the index again")
    if damaged := index.damaged():
        raise UserError(
            f"the tokens of {len(damaged):,} images in {config.images} are damaged, such as {damaged[0]}: "
            "`filip index build` of the same folder encodes them again"
        )
    _check_made_as(config, about)
    size = about.image_size or None
    return index, load_scorer(model, size, config.device, tokens=about.tokens, fit=about.fit)


def _of_folder(config: Search) -> tuple[Index, Scorer]:
    """Index a folder, or bring its index up to date."""
    if not Path(config.images).exists():
        raise UserError(nothing_at(config.images, "give a folder of pictures, or an index of `filip index build`"))
    model = config.model or DEFAULT_MODEL
    out = Path(config.index) if config.index else place_of(config, model)
    check_output("index", str(out), "folder")  # the cache of a home that does not exist
    build = Build(model, config.images, str(out), tokens=config.tokens, fit=config.fit, device=config.device)
    if (out / "about.json").is_file():  # it stays as it was made
        about = Index.open(out).about
        _check_made_as(config, about)
        stored = ("dtype", "tokens", "fit")
        build = replace(build, **{name: getattr(about, name) for name in stored})
    scorer = scorer_of(build)
    try:
        up_to_date(build, scorer).close()
    except OtherIndexError:
        raise
    except UserError as error:
        if not (out / "about.json").is_file() or not len(Index.open(out)):
            raise
        say(f"searching the pictures as they were indexed before: {error}")
    return Index.open(out), scorer


def _check_made_as(config: Search, about: About) -> None:
    """Raise UserError for options that an existing index would ignore, since it was made without them."""
    missing = ["tokens=true"] if config.tokens and not about.token_wise else []
    missing += ["fit=crop"] if config.fit == "crop" != about.fit else []
    if missing:
        raise UserError(
            f"the index {config.index or config.images} was made without {' '.join(missing)}: to use that, build "
            "another one (`filip index build`)"
        )


def place_of(config: Search, model: str) -> Path:
    """Return the folder of the user's cache in which the index of a folder is."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    images = Path(config.images).resolve()
    key = json.dumps([str(images), weights_of(model), config.tokens, config.fit, FORMAT])
    return cache / "filip" / "search" / f"{images.name or 'root'}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def _described(config: Search, index: Index, scorer: Scorer, hit: Ranked) -> dict[str, Any]:
    folder = index.about.images
    if os.path.realpath(config.images) == folder:
        folder = config.images  # as the user wrote it
    file = Path(folder) / hit.path
    entry: dict[str, Any] = {"path": hit.path, "file": str(file), "score": hit.score}
    # patches are known places where the model sees words, and how it cuts a picture is known
    in_squares = index.about.fit == "pad" or isinstance(scorer.encoder, FilipEncoder)
    has_places = index.about.token_wise and scorer.encoder.grid != (0, 0) and in_squares
    if not config.where or config.paths or not has_places or is_picture(config.text):
        return entry
    try:
        size = upright_size(file)
    except UNDECODABLE:
        return entry  # it is in the index and no longer there, or in a larger file
    places = boxes(scorer.encoder, config.text, index.tokens_of(hit.path), size, index.about.fit)
    return entry | {"size": list(size), "words": [asdict(place) for place in places]}


def _show(config: Search, index: Index, found: list[dict[str, Any]], nothing: str) -> None:
    about = index.about
    answer = {"text": config.text, "model": about.model, "images": len(index.paths), "nothing": nothing, "hits": found}
    if config.json:
        print(json.dumps(answer, ensure_ascii=False, indent=1))
    elif found and config.paths:
        print("\n".join(hit["file"] for hit in found))
    elif found:
        print("rank   score  picture", file=sys.stderr)
        for place, hit in enumerate(found, 1):
            print(f"{place:4}  {hit['score']:6.4f}  {hit['file']}")
            if words := hit.get("words"):
                print("       " + "  ".join(f"{w['word']} at {','.join(map(str, w['box']))}" for w in words))
    if nothing:
        say(nothing)
    elif about.model == DEFAULT_MODEL and not config.paths:
        say(EMOJIS_HITS)
    if config.show and found and not config.json and not config.paths:
        page = index.folder / "hits.html"
        write_hits(page, answer)
        say(f"open {page}")
    missing = sum(not Path(hit["file"]).exists() for hit in found)
    if missing and not Path(about.images).exists():
        say(
            f"{about.images} is not there: mount its disk, or if it was moved, index it where it is now: "
            f"filip index build … images=FOLDER out={index.folder}"
        )
    elif missing:
        say(f"{missing} of these are no longer there: `filip index build … out={index.folder}` forgets them")


if __name__ == "__main__":
    run_command(main, Search, words=("images", "text"))
