"""Source cards: one YAML file per training source, ``data/<name>.yaml``, found by :mod:`filip.resources`.

A card names the origin of a list of URLs and captions, its columns, and its rules. To add a
data set, write a card. Every key has a type and a default here; a card with an unknown or mistyped key
is refused with a sentence that names the key.
"""

from __future__ import annotations

import codecs
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filip import resources
from filip.cli.option import option, read_settings
from filip.common.errors import UserError

FORMATS = ("auto", "parquet", "tsv", "csv", "json", "jsonl")
RESIZE_MODES = ("no", "border", "keep_ratio", "keep_ratio_largest", "center_crop")
ENCODE_FORMATS = ("jpg", "png", "webp")
Names = list[str]  # inside SourceCard the name `list` is a field
ENGINES = ("own", "img2dataset")
CLEANING = ("url_encoded", "html_tags")


@dataclass
class TextRuleSettings:
    """Rules that a caption must satisfy before its URL is fetched (see :mod:`filip.data.text_rules`)."""

    language: Any = option(True, "true = English only; a list of fastText's codes takes several, [en, de]; false = any")
    meaningless: bool = option(True, "drop file names, hashes, dates, camera names, numbers, URLs, HTML ...")
    switched_off: list[str] = option([], 'names of single "meaningless" rules to leave out')
    max_repeats: int | None = option(
        None,
        "pairs whose caption occurs more often in the whole list are dropped; 0 = off; null = 10 for a list of URLs, "
        "off for your own images, whose captions may be names of classes",
        at_least=0,
    )
    min_words: int = option(1, "fewest words", at_least=0)
    max_words: int = option(256, "most words; CLIP keeps 77 tokens: longer texts are pages, not captions", at_least=1)
    min_characters: int = option(2, "fewest characters", at_least=0)
    max_characters: int = option(2000, "most characters", at_least=1)


@dataclass
class ImageRuleSettings:
    """Rules that an image must satisfy, checked during the download. Sizes are pixels of the original image."""

    min_side: int = option(200, "shorter side", at_least=0)
    max_aspect: float = option(3.0, "longer side / shorter side", at_least=1)


@dataclass
class DownloadSettings:
    """The size and the file format in which the download stores the images."""

    image_size: int = option(256, "pixels of the side that resize_mode names", at_least=1)
    resize_mode: str = option("keep_ratio", "keep_ratio = shorter side to image_size", choices=RESIZE_MODES)
    only_if_bigger: bool = option(True, "never enlarge")
    encode_format: str = option("jpg", "format of the stored images", choices=ENCODE_FORMATS)
    encode_quality: int | None = option(None, "null = 95; png: compression level 6 of 0..9", at_least=0, at_most=100)
    full_decoding: bool = option(False, "decode large JPEGs whole (img2dataset's bytes), not at 1/2, 1/4 or 1/8")
    timeout: int = option(10, "seconds per URL", at_least=1)
    retries: int = option(1, "immediate ones", at_least=0)
    retry_passes: int = option(1, "after all others, over the URLs that failed for a transient reason", at_least=0)
    processes: int = option(2, "processes that download", at_least=1)
    threads: int = option(32, "threads per process", at_least=1)
    per_host: int = option(8, "threads of a process that ask one host at once", at_least=1)
    samples_per_shard: int = option(10_000, "images of a shard", at_least=1)
    engine: str = option("own", "own, or img2dataset (an extra, or an environment of its own)", choices=ENGINES)
    img2dataset: dict[str, Any] = option({}, "further options of img2dataset, for that engine")
    contact: str | None = option(None, "a page or an address for webmasters, which the user agent names")
    verify_sha256: bool = option(True, "drop an image if its bytes are not those of the list's column sha256")
    normal_success_rate: float | None = option(None, "usual images / URLs; less warns", at_least=0, at_most=1)

    @property
    def quality(self) -> int:
        """Return ``encode_quality`` or its default. JPEG and WebP: 0..100; PNG: compression level 0..9."""
        if self.encode_quality is not None:
            return self.encode_quality
        return 6 if self.encode_format == "png" else 95


@dataclass
class BackTranslationSettings:
    """Engine and pivot languages that make the candidate captions."""

    engine: str = option("marian", "translation engine")
    pivots: list[str] = option(["de", "ru"], "languages to translate into and back")
    models: str | None = option(None, "folder with the engine's weights, for engines that do not ship them")
    min_words: int = option(4, "shorter captions are left alone: translation makes keys of wrenches", at_least=1)
    share: float = option(1.0, "share of the distinct captions, by hash, that are translated", above=0, at_most=1)


@dataclass
class SourceCard:
    """A training source. ``list`` is relative to the working folder; a glob may name several files."""

    name: str
    title: str = ""
    license: str = ""
    homepage: str = ""
    obtain: str = option("", "prose: how a person gets the list")
    list: str | None = option(None, "path or glob of the list; null = give list=PATH to `prepare`")
    images: str | None = option(None, "instead of a list: a folder or file with the images themselves, for `ingest`")
    layout: str = option("auto", "how they are stored there; auto = detected, else a name in filip/sets/layouts.py")
    image_column: str | None = option(None, "column with the names of image files; null = found by its name")
    format: str = option("auto", "format of the list; auto = by file name", choices=FORMATS)
    encoding: str | None = option(None, "of tables and texts, e.g. cp1250; null = UTF-8, UTF-16 or Windows-1252")
    follow_links: bool = option(False, "take files of `images` by links that lead out of its folder")
    header: bool = option(True, "tsv/csv: does the first line name the columns?")
    columns: Names = option([], "names, if the file has no header")
    url_column: str = "url"
    caption_column: str = "caption"
    caption_columns: Names = option([], "several, which are joined; instead of caption_column")
    caption_cleaning: Names = option([], "steps that are applied in that order", choices=CLEANING)
    only: dict[str, str] = option({}, "column: value; rows with another value are left out")
    where: str | None = option(None, "SQL condition on the list's columns, e.g. similarity > 0.3 and punsafe < 0.5")
    subset: str | None = option(None, "a second list: only rows that it names are used ...")
    subset_columns: Names = option([], "names of its columns, if it has no header")
    subset_on: str | None = option(None, "... by this column, which both lists have")
    group_column: str | None = option(None, "equal value = same content, a positive in a batch")
    extra_columns: Names = option([], "columns of the list that the shards keep")
    image_root: str | None = option(None, "put before the url column where the list has file names only")
    allow_private_hosts: bool = option(False, "take URLs of this machine and its network")
    split: str | None = option(None, 'of sets and lists that have several, joined by "+"; null = train for a set')
    expected_count: int | None = option(None, "pairs in the published list", at_least=0)
    text_rules: TextRuleSettings = option(TextRuleSettings(), "rules of captions")
    image_rules: ImageRuleSettings = option(ImageRuleSettings(), "rules of images")
    download: DownloadSettings = option(DownloadSettings(), "how images are fetched and stored")
    back_translation: BackTranslationSettings | None = option(BackTranslationSettings(), "null = not translated")
    built_by: str | None = option(None, "module that builds list and images here; null = a person obtains the list")
    served_by: str | None = option(None, "module that serves those images while they are downloaded")
    planted: dict[str, int] = option({}, "demo: deliberately bad rows by kind")
    attribution: dict[str, Any] = option({}, "authors that the licence requires to name")
    path: str | None = option(None, "where the card was read from; filled in by load_source")


def load_source(name_or_path: str | Path) -> SourceCard:
    """Read a card by name (``cc3m`` → ``data/cc3m.yaml``) or by path (``*.yaml``).

    Raises UserError, naming the key, when the card does not exist or a key is unknown, missing or ill-typed.
    """
    path = resources.find("source", name_or_path)
    return parse_card(resources.read_yaml(path), path)


def parse_card(raw: Any, path: Path) -> SourceCard:
    """Check a mapping read from ``path`` against SourceCard. Raises UserError naming the offending key."""
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a source card maps keys to values, but this is a {type(raw).__name__}")
    try:
        card = read_settings(SourceCard, {"name": path.stem, **raw, "path": str(path)})
        check_card(card)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return card


def overridden(card: SourceCard, part: str, settings: dict[str, Any]) -> SourceCard:
    """Return the card with some settings of a part (``download``) changed. Raises UserError naming an unknown key."""
    before = getattr(card, part)
    changed = read_settings(type(before), {**asdict(before), **settings}, f"{part}.")
    card = replace(card, **{part: changed})
    check_card(card)
    return card


def check_card(card: SourceCard) -> None:
    """Raise UserError for keys that do not go together, and for values of two types."""
    if not card.name:
        raise UserError("name is empty: give a short name")
    for key in ("list", "where"):
        if card.images is not None and getattr(card, key) is not None:
            raise UserError(f"{key}={getattr(card, key)} is for a list of URLs; leave it or `images` out")
    try:
        codecs.lookup(card.encoding or "utf-8")
    except LookupError as error:
        raise UserError(f"encoding={card.encoding} is unknown; write e.g. cp1250 or gb18030") from error
    if (card.subset_on is None) != (card.subset is None):
        raise UserError(f"subset={card.subset} and subset_on={card.subset_on} go together: a card has both or neither")
    language = card.text_rules.language
    codes = isinstance(language, list) and language and all(isinstance(one, str) for one in language)
    if not isinstance(language, bool) and not codes:
        raise UserError(f"text_rules.language={language!r} must be true, false or a list: [en, de]")
