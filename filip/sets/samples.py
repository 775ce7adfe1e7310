"""Read the captions in the files that belong to one image, in a folder or in a tar, and in the image: XMP, or IPTC."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from PIL import Image, IptcImagePlugin

from filip.images.rgb import UNDECODABLE
from filip.sets.columns import CAPTION_COLUMNS, captions_of, one_line, split_in, texts
from filip.sets.layout import Reading, is_picture
from filip.sets.text import UNKNOWN, decoded

DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"
ITEM = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"
LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
CAPTION = (2, 120)  # IPTC's number of a caption


def description_in(path: Path) -> list[str]:
    """Return the description inside a picture; [] if it has none or cannot be read."""
    try:
        with Image.open(path) as image:
            packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
            iptc = IptcImagePlugin.getiptcinfo(image) or {}
    except UNDECODABLE:
        return []
    caption = iptc.get(CAPTION, b"")
    lines = caption if isinstance(caption, list) else [caption]
    return xmp_description(packet) or one_line([decoded(line) or "" for line in lines])


def xmp_description(packet: bytes | str) -> list[str]:
    """Return dc:description of an XMP packet, in its default language."""
    data = packet.encode() if isinstance(packet, str) else packet
    if b"<!" in data.replace(b"<!--", b""):  # a document type may define entities without end
        return []
    try:
        root = ElementTree.fromstring(data.strip(b"\0 \r\n\t"))
    except (ElementTree.ParseError, ValueError):
        return []
    items = [item for description in root.iter(DESCRIPTION) for item in description.iter(ITEM)]
    items.sort(key=lambda item: item.get(LANGUAGE) != "x-default")
    return one_line([item.text or "" for item in items[:1]])


CAPTION_SUFFIXES = ("txt", "caption", "captions", "text")  # each line is a caption
TEXT_SUFFIXES = (*CAPTION_SUFFIXES, "json", "xmp")
MAX_CAPTION_BYTES = 1 << 20


class About(NamedTuple):
    """What the texts of an image say."""

    captions: list[str]
    group: str | None = None
    problem: str | None = None
    split: str | None = None


def captions_in(files: Mapping[str, Callable[[], bytes]], reading: Reading) -> About:
    """Return the captions of an image, its group, the fault of its texts, and its split.

    files: functions that read the bytes of each text of the image, by its suffix (``txt``, ``meta.json``). A record
    that has caption's column, or a list of captions, counts first: the text that img2dataset writes repeats it. Then
    count the lines of all texts, without repetitions; then other usual keys of the record, but for a title that is a
    picture's name (Google Takeout), and finally the description in a photographer's ``.xmp``.
    """
    record: dict[str, Any] = {}
    problem = None
    for suffix, content in files.items():
        if suffix.rpartition(".")[2] == "json":
            about = _record(content())
            problem = problem or (None if about is not None else f"not_text: .{suffix} is not a JSON object")
            record |= about or {}
    value = record.get(reading.group_column) if reading.group_column else None
    group = None if value is None else str(value)
    named = reading.caption_columns or [reading.caption_column]
    captions: list[str] = []
    if record and all(column in record for column in named):
        captions = captions_of(record, named)
    if isinstance(record.get("captions"), list) and not reading.caption_columns:
        captions = one_line(texts(record["captions"]))
    if captions:
        return About(captions, group, None, split_in(record))
    for kind in CAPTION_SUFFIXES:
        for suffix, content in files.items():
            if suffix.rpartition(".")[2] == kind:
                lines = lines_of(content(), reading.encoding)
                if lines is None:
                    problem = problem or f"not_text: {UNKNOWN} (.{suffix})"
                captions += lines or []
    if not captions:
        usual = (one_line(texts(record.get(name))) for name in CAPTION_COLUMNS)
        captions = next((some for some in usual if some and not is_picture(Path(some[0]))), [])
    for suffix, content in files.items():
        if not captions and suffix.rpartition(".")[2] == "xmp":
            captions = xmp_description(content())
    return About(list(dict.fromkeys(captions)), group, None if captions else problem, split_in(record))


def lines_of(data: bytes, encoding: str | None = None) -> list[str] | None:
    """Return the captions in a text, one a line; None if it cannot be read."""
    text = decoded(data, encoding)
    return None if text is None else one_line(text.splitlines())


def _record(data: bytes) -> dict[str, Any] | None:
    """Return the object in a JSON; a list is taken as captions."""
    try:
        record = json.loads(decoded(data) or "")
    except (ValueError, RecursionError):
        return None
    if isinstance(record, list):
        return {"captions": record}
    return record if isinstance(record, dict) else None
