"""Read the description that a photographer's program wrote into a picture, or beside it: XMP, or else IPTC."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from PIL import Image, IptcImagePlugin

from filip.rgb import UNDECODABLE
from filip.sets.columns import one_line
from filip.sets.text import decoded

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
    items = [item for found in root.iter(DESCRIPTION) for item in found.iter(ITEM)]
    items.sort(key=lambda item: item.get(LANGUAGE) != "x-default")
    return one_line([item.text or "" for item in items[:1]])
