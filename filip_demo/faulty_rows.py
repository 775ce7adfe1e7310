"""Rows that a good pipeline must drop, planted on purpose and labelled in the ``planted`` column.

Rows with a bad image carry good English captions, rows with a bad text carry good images, so that exactly one
rule can drop each row. ``PLANTED`` and the source card state how many rows of each kind there are.
"""

from __future__ import annotations

import hashlib
import io
import random
from dataclasses import dataclass

from PIL import Image

from filip_demo.catalogue import Catalogue, Drawing, Emoji, hash_of, informative_tags, read_emoji
from filip_demo.packages import NAMES_PACKAGE
from filip_demo.render import png_bytes

PLANTED = {
    "not_found": 12,  # 404
    "hang": 2,  # the server accepts the connection and never answers
    "html": 8,  # a page of HTML with status 200, as dead links often give
    "cut_off": 6,  # the connection closes before the promised number of bytes
    "truncated": 12,  # the file itself is cut: it arrives completely but cannot be decoded
    "too_small": 16,
    "aspect": 12,  # four drawings side by side: 4 : 1
    "not_english": 48,
    "meaningless": 40,
    "repeated": 36,  # two captions, eighteen times each: more often than any good one (fifteen times)
}
SMALL_SIDE = 24  # pixels
STRIP = 4  # drawings side by side
REPEATED_CAPTIONS = ("click on the picture for a larger view", "this image is no longer available here")
GROUPS_LEFT_OUT = ("flags", "component")  # country names are the same in many languages
FUNCTION_WORDS = frozenset(["and", "behind", "from", "holding", "in", "of", "on", "over", "with", "without"])
# Locales with spaces between words, and longer labels that no language detector mistakes for English.
LOCALES = ["bn", "da", "de", "es", "et", "fi", "hi", "hu", "ko", "lt", "pl", "pt", "ru", "sv", "uk", "vi"]


@dataclass(frozen=True)
class PlantedRow:
    """A row to plant: ``path`` of its URL, ``emoji`` that it claims to show, ``drawing`` that it shows."""

    kind: str
    path: str
    caption: str
    emoji: Emoji
    drawing: Drawing


def plant(catalogue: Catalogue, drawings: list[Drawing]) -> list[PlantedRow]:
    """Return the planted rows. drawings: those trained on, some of which are shown again or spoiled."""
    texts = {
        "not_english": _other_language_captions(catalogue),
        "meaningless": _meaningless_captions(),
        "repeated": [c for c in REPEATED_CAPTIONS for _ in range(PLANTED["repeated"] // len(REPEATED_CAPTIONS))],
    }
    by_code = {d.emoji.code: d for d in sorted(drawings, key=lambda d: hash_of(f"{d.artist} {d.slug}"))}
    any_drawing = list(by_code.values())
    allowed = [catalogue.emoji[code] for code in catalogue.concepts if code not in catalogue.held_out]
    allowed = sorted((e for e in allowed if e.group not in GROUPS_LEFT_OUT), key=lambda e: hash_of(e.code))
    english, others = ([e for e in allowed if _surely_english(e)], [e for e in allowed if not _surely_english(e)])
    rows: list[PlantedRow] = []
    for kind, count in PLANTED.items():
        for number in range(count):
            # Captions come from the whole of CLDR, so that none is repeated even in a reduced corpus.
            shown = (others if kind in texts else english).pop(0)
            drawing = by_code.get(shown.code, any_drawing[len(rows) % len(any_drawing)])
            caption = texts[kind][number] if kind in texts else _long_caption(shown)
            rows.append(PlantedRow(kind, f"planted/{kind}/{number:04d}.png", caption, shown, drawing))
    return rows


def spoil(kind: str, good: bytes) -> bytes | None:
    """Return the file behind a row of this kind, or None if the server makes the fault or has nothing."""
    if kind in ("not_found", "hang", "html"):
        return None
    if kind == "truncated":
        return good[: len(good) // 2]
    if kind in ("too_small", "aspect"):
        image = Image.open(io.BytesIO(good)).convert("RGB")
        if kind == "too_small":
            return png_bytes(image.resize((SMALL_SIDE, SMALL_SIDE), Image.Resampling.LANCZOS))
        strip = Image.new("RGB", (STRIP * image.width, image.height))
        for position in range(STRIP):
            strip.paste(image, (position * image.width, 0))
        return png_bytes(strip)
    return good


def _surely_english(emoji: Emoji) -> bool:
    """Return whether a detector is sure: it doubts lists of nouns, but not seven words with a function word."""
    return len(_long_caption(emoji).split()) >= 7 and not FUNCTION_WORDS.isdisjoint(emoji.label.split())


def _long_caption(emoji: Emoji) -> str:
    return ", ".join([emoji.label, *informative_tags(emoji)[:6]])


def _other_language_captions(catalogue: Catalogue) -> list[str]:
    """Return CLDR labels of other locales: the longest with four words or more and letters that English lacks."""
    each, captions = PLANTED["not_english"] // len(LOCALES), []
    for locale in LOCALES:
        emoji = read_emoji(catalogue.modules / NAMES_PACKAGE, locale)
        labels = {e.label for e in emoji.values() if e.group not in GROUPS_LEFT_OUT and not e.tones}
        labels = {label for label in labels if len(label.split()) >= 4 and "," not in label}
        labels = {label for label in labels if sum(c.isalpha() and not c.isascii() for c in label) >= 2}
        captions += sorted(labels, key=lambda label: (-len(label), label))[:each]
    return captions


def _meaningless_captions() -> list[str]:
    """Return file names, camera names, hashes, numbers, dates and URLs, which are common in alt texts."""
    draw = random.Random("meaningless captions")
    captions = ["img_0.jpg", "DSC_0001.JPG"]
    for number in range(2, PLANTED["meaningless"]):
        n = draw.randrange(1000, 10_000)
        digest = hashlib.sha256(str(n).encode()).hexdigest()
        forms = [
            f"img_{n}.jpg",
            f"DSC_{n}.JPG",
            f"DSC0{n}",
            f"IMG_{n}",
            f"P101{n}.JPG",
            digest[:32],
            digest[:40],
            f"{n}{n * 7}",
            f"000{n}",
            f"201{n % 10}0312_15{n}.jpg",
            f"201{n % 10}-03-12",
            f"http://example.com/pictures/{n}.jpg",
            f"www.example.org/gallery/{n}",
            f"image{n}.png",
        ]
        captions.append(forms[number % len(forms)])
    return captions
