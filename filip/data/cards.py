"""Source cards: one YAML file per training source, ``data/<name>.yaml``, found by :mod:`filip.resources`.

A card says where a list of URLs and captions comes from, how to read it, and which rules apply to it. To add
a data set is to add a card. Every key has a type and a default here; a card with an unknown or mistyped key
is refused with a sentence that names the key.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from filip import resources
from filip.errors import UserError, first_line

FORMATS = ("auto", "parquet", "tsv", "csv", "jsonl")
RESIZE_MODES = ("no", "border", "keep_ratio", "keep_ratio_largest", "center_crop")
ENCODE_FORMATS = ("jpg", "png", "webp")
Names = list[str]  # inside SourceCard the name `list` is a field
CLEANING = ("url_encoded", "html_tags")


@dataclass
class TextRuleSettings:
    """Rules that a caption must satisfy before its URL is fetched (see :mod:`filip.data.text_rules`)."""

    language: Any = True  # English only; a list of fastText's codes takes several, [en, de]; false = any
    meaningless: bool = True  # file names, hashes, dates, camera names, numbers, URLs, HTML ...
    switched_off: list[str] = field(default_factory=list)  # names of single "meaningless" rules to leave out
    # pairs whose caption occurs more often in the whole list are dropped; 0 = off; null = 10 for a list of URLs, off
    # for your own images, whose captions may be names of classes
    max_repeats: int | None = None
    min_words: int = 1
    max_words: int = 256  # CLIP keeps 77 tokens: longer texts are pages, not captions
    min_characters: int = 2
    max_characters: int = 2000
    person_names: str | None = None  # file of names, one a line: each becomes <person>; null = off
    sensitive_words: str | None = None  # file of words, one a line: captions with one are dropped; null = off


@dataclass
class ImageRuleSettings:
    """Rules that an image must satisfy, checked during the download. Sizes are pixels of the original image."""

    min_side: int = 200  # shorter side
    max_aspect: float = 3.0  # longer side / shorter side


@dataclass
class DownloadSettings:
    """Settings by which img2dataset fetches and stores the images (see :mod:`filip.data.download`)."""

    image_size: int = 256  # pixels of the side that resize_mode names
    resize_mode: str = "keep_ratio"  # shorter side to image_size; see RESIZE_MODES
    only_if_bigger: bool = True  # never enlarge
    encode_format: str = "jpg"
    encode_quality: int | None = None  # null = 95 for jpg and webp; png: compression level 6 of 0..9
    timeout: int = 10  # seconds per URL
    retries: int = 1  # immediate ones
    retry_passes: int = 1  # after all others, over the URLs that failed for a transient reason
    processes: int = 2
    threads: int = 32  # per process
    samples_per_shard: int = 10_000
    verify_sha256: bool = True  # an image whose bytes are not those of the list's column sha256 is dropped
    normal_success_rate: float | None = None  # images / URLs as others report it; a much lower rate is warned about

    @property
    def quality(self) -> int:
        """Return ``encode_quality`` or its default. JPEG and WebP: 0..100; PNG: compression level 0..9."""
        if self.encode_quality is not None:
            return self.encode_quality
        return 6 if self.encode_format == "png" else 95


@dataclass
class BackTranslationSettings:
    """Engine and pivot languages that make the candidate captions."""

    engine: str = "marian"
    pivots: list[str] = field(default_factory=lambda: ["de", "ru"])
    models: str | None = None  # folder with the engine's weights, for engines that do not ship them
    # minimum cosine of sentence embeddings (about 0.8); null = not measured
    min_similarity: float | None = None
    # minimum cosine of caption and pivot text, by a multilingual model (about 0.75); null = not measured
    min_pivot_similarity: float | None = None
    recaption: str | None = None  # engine that captions the images: image-to-text, or an installed package's
    recaption_models: str | None = None  # its weights: for image-to-text a model of the hub, or a folder
    # share of the distinct captions, chosen by hash, that are translated; the others keep only the original
    share: float = 1.0


@dataclass
class SourceCard:
    """A training source. ``list`` is relative to the working folder; a glob may name several files."""

    name: str
    title: str = ""
    license: str = ""
    homepage: str = ""
    obtain: str = ""  # prose: how a person gets the list
    list: str | None = None  # path or glob of the list; null = give list=PATH to `prepare`
    images: str | None = None  # instead of a list: a folder or file with the images themselves, for `ingest`
    layout: str = "auto"  # how they are stored there; auto = detected, else a name in filip/sets/layouts.py
    image_column: str | None = None  # the column of a table with the names of image files; null = found by its name
    format: str = "auto"  # see FORMATS; auto = by file name
    header: bool = True  # tsv/csv: does the first line name the columns?
    columns: Names = field(default_factory=lambda: [])  # names, if the file has no header
    url_column: str = "url"
    caption_column: str = "caption"
    # several, which are joined; instead of caption_column
    caption_columns: Names = field(default_factory=lambda: [])
    caption_cleaning: Names = field(default_factory=lambda: [])  # steps of CLEANING, applied in that order
    only: dict[str, str] = field(default_factory=dict)  # column: value; rows with another value are left out
    where: str | None = None  # SQL condition on the list's columns, e.g. similarity > 0.3 and punsafe < 0.5
    uids: str | None = None  # .npy file of the ids of the rows to take, as DataComp publishes its subsets ...
    uid_column: str = "uid"  # ... by this column of the list
    subset: str | None = None  # a second list: only rows that it names are used ...
    subset_columns: Names = field(default_factory=lambda: [])  # names of its columns, if it has no header
    subset_on: str | None = None  # ... by this column, which both lists have
    group_column: str | None = None  # equal value = same content, a positive in a batch
    extra_columns: Names = field(default_factory=lambda: [])  # columns of the list that the shards keep
    image_root: str | None = None  # put before the url column where the list has file names only
    # URLs of this machine and its network; a list from elsewhere must not have them
    allow_private_hosts: bool = False
    split: str | None = (
        None  # the splits to take from sets and lists that have several, joined by "+"; null means train for a set
    )
    expected_count: int | None = None  # pairs in the published list
    text_rules: TextRuleSettings = field(default_factory=TextRuleSettings)
    image_rules: ImageRuleSettings = field(default_factory=ImageRuleSettings)
    download: DownloadSettings = field(default_factory=DownloadSettings)
    back_translation: BackTranslationSettings | None = field(default_factory=BackTranslationSettings)
    # module that builds the list and the images here; null = a person obtains the list
    built_by: str | None = None
    served_by: str | None = None  # module that serves those images while they are downloaded
    planted: dict[str, int] = field(default_factory=dict)  # demo: deliberately bad rows by kind
    attribution: dict[str, Any] = field(default_factory=dict)  # authors that the licence requires to name
    path: str | None = None  # where the card was read from; filled in by load_source


def load_source(name_or_path: str | Path) -> SourceCard:
    """Read a card by name (``cc3m`` → ``data/cc3m.yaml``) or by path (``*.yaml``).

    Raises UserError, naming the key, when the card does not exist or a key is unknown, missing or ill-typed.
    """
    path = resources.find("source", name_or_path)
    return parse_card(resources.read_yaml(path), path)


def parse_card(raw: Any, path: Path) -> SourceCard:
    """Check a mapping read from ``path`` against SourceCard. Raises UserError naming the offending key."""
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a source card is a mapping of keys to values, found {type(raw).__name__}")
    _refuse_unknown_keys(raw, SourceCard, path, "")
    raw = {"name": path.stem, **raw, "path": str(path)}
    try:
        card = cast(SourceCard, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SourceCard), raw)))
    except OmegaConfBaseException as error:
        key = error.full_key or "?"
        problem = first_line(error)
        raise UserError(f"{path}: key '{key}': {problem}. See filip/data/cards.py for its type") from error
    _check_values(card, path)
    return card


def _refuse_unknown_keys(raw: dict[Any, Any], schema: type, path: Path, prefix: str) -> None:
    known = {f.name: f for f in fields(schema)}
    for key, value in raw.items():
        if key not in known:
            raise UserError(f"{path}: unknown key '{prefix}{key}'; known here: {', '.join(sorted(known))}")
        nested = _NESTED.get(key) if schema is SourceCard else None
        if nested and value is not None and not isinstance(value, dict):
            raise UserError(f"{path}: key '{key}' is {value!r}, but must be a mapping of settings")
        if nested and isinstance(value, dict):
            _refuse_unknown_keys(value, nested, path, f"{key}.")


def _check_values(card: SourceCard, path: Path) -> None:
    def check(ok: bool, key: str, value: Any, wanted: str) -> None:
        if not ok:
            raise UserError(f"{path}: key '{key}' is {value!r}, but must be {wanted}")

    check(bool(card.name), "name", card.name, "a short name")
    check(card.list is None or card.images is None, "images", card.images, "given without `list`")
    for key in ("where", "uids"):
        value = getattr(card, key)
        check(value is None or card.images is None, key, value, "left out: it selects rows of a list of URLs")
    check(card.format in FORMATS, "format", card.format, f"one of {', '.join(FORMATS)}")
    for step in card.caption_cleaning:
        check(step in CLEANING, "caption_cleaning", step, f"one of {', '.join(CLEANING)}")
    check((card.subset_on is None) == (card.subset is None), "subset_on", card.subset_on, "given with subset")
    load = card.download
    for key, allowed in (("resize_mode", RESIZE_MODES), ("encode_format", ENCODE_FORMATS)):
        value = getattr(load, key)
        check(value in allowed, f"download.{key}", value, f"one of {', '.join(allowed)}")
    for key in ("image_size", "timeout", "processes", "threads", "samples_per_shard"):
        check(getattr(load, key) > 0, f"download.{key}", getattr(load, key), "above 0")
    for key in ("retries", "retry_passes"):
        check(getattr(load, key) >= 0, f"download.{key}", getattr(load, key), "0 or more")
    check(card.image_rules.min_side >= 0, "image_rules.min_side", card.image_rules.min_side, "0 or more")
    aspect = card.image_rules.max_aspect
    check(aspect >= 1, "image_rules.max_aspect", aspect, "at least 1 (longer side / shorter side)")
    if card.back_translation is not None:
        share = card.back_translation.share
        check(0 < share <= 1, "back_translation.share", share, "above 0 and at most 1")
    language = card.text_rules.language
    codes = isinstance(language, list) and language and all(isinstance(one, str) for one in language)
    check(isinstance(language, bool) or bool(codes), "text_rules.language", language, "true, false or a list: [en, de]")
    repeats = card.text_rules.max_repeats
    check(repeats is None or repeats >= 0, "text_rules.max_repeats", repeats, "0 (off) or more")


_NESTED: dict[str, type] = {
    "text_rules": TextRuleSettings,
    "image_rules": ImageRuleSettings,
    "download": DownloadSettings,
    "back_translation": BackTranslationSettings,
}
assert all(is_dataclass(schema) for schema in _NESTED.values())
