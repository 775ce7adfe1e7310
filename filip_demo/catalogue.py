"""Catalogue of the emoji: their CLDR names, and which drawing of a set shows which of them."""

from __future__ import annotations

import hashlib
import json
import random
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filip_demo.packages import NAMES_PACKAGE, Artist

HELD_OUT_SHARE = 0.1  # share of the concepts that no training drawing shows, whoever drew it
SHORTCODES = ("joypixels", "iamcal", "github", "emojibase")  # the chat names that emoji sets took slugs from


@dataclass(frozen=True)
class Emoji:
    """An emoji. ``code``: hexadecimal code points joined by "-", without the variation selector FE0F."""

    code: str
    concept: str  # code of the emoji without skin tones
    label: str  # CLDR short name
    tags: tuple[str, ...]  # CLDR keywords
    group: str  # e.g. "animals-nature"
    subgroup: str  # e.g. "animal-mammal"
    tones: tuple[int, ...] = ()  # 1 light … 5 dark; two for some pairs of people

    @property
    def content_id(self) -> int:
        """Return a stable id below 2**63, equal for equal content: the demo list's ``group`` column."""
        return int.from_bytes(hashlib.sha256(self.code.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Drawing:
    """An artist's SVG of one emoji. ``body`` is the inner SVG, ``box`` its (left, top, width, height)."""

    artist: str
    slug: str
    emoji: Emoji
    body: str
    box: tuple[float, float, float, float]


class Catalogue:
    """Emoji of CLDR by code, with the indices by which slugs are resolved."""

    def __init__(self, modules: Path):
        self.modules = modules
        self.emoji = read_emoji(modules / NAMES_PACKAGE, "en")

    @cached_property
    def concepts(self) -> list[str]:
        """Return the codes of all emoji without skin tone, in CLDR's order."""
        return [code for code, emoji in self.emoji.items() if code == emoji.concept]

    @cached_property
    def held_out(self) -> frozenset[str]:
        """Return a tenth of the concepts, chosen by hash. Man, woman and person of one kind are held out together."""
        families: dict[str, list[str]] = {}
        for code in self.concepts:
            family = code.replace("1F468", "1F9D1").replace("1F469", "1F9D1")
            family = family.removesuffix("-200D-2640").removesuffix("-200D-2642")
            families.setdefault(family, []).append(code)
        chosen: list[str] = []
        for family in sorted(families, key=hash_of):
            if len(chosen) + len(families[family]) <= HELD_OUT_SHARE * len(self.concepts):
                chosen += families[family]
        return frozenset(chosen)

    def drawings(self, artist: Artist) -> list[Drawing]:
        """Return the artist's drawings, one per emoji, in CLDR's order; drawings of anything else are left out."""
        folder = self.modules / artist.package
        icons = json.loads((folder / "icons.json").read_text())
        own_codes = {slug: normalise(code) for code, slug in json.loads((folder / "chars.json").read_text()).items()}
        by_concept: dict[str, Drawing] = {}
        for slug, icon in icons["icons"].items():
            code = None if icon.get("hidden") else self._resolve(slug, own_codes)
            if code is None or code in by_concept:
                continue
            box = tuple(
                float(icon.get(key, icons.get(key, default)))
                for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
            )
            by_concept[code] = Drawing(artist.key, slug, self.emoji[code], icon["body"], box)  # type: ignore[arg-type]
        return [by_concept[code] for code in self.emoji if code in by_concept]

    def _resolve(self, slug: str, own: dict[str, str]) -> str | None:
        """Return the code of a slug, by the set's table, else by any of the emoji's names."""
        plain = slug.replace("-", "")
        ways: list[str | None] = [own.get(slug), self._by_label.get(slug)]
        if not own:  # sets without a table take their slugs from older Unicode names and chat shortcodes
            ways += [self._by_any_set.get(slug), self._by_plain_label.get(plain)]
            ways += [self._by_flag.get(slug), self._by_unicode_name.get(plain), self._by_shortcode.get(plain)]
        return next((code for code in ways if code in self.emoji), None)

    @cached_property
    def _by_any_set(self) -> dict[str, str]:
        table: dict[str, str] = {}
        for chars in sorted((self.modules / "@iconify-json").glob("*/chars.json")):
            for code, slug in json.loads(chars.read_text()).items():
                table.setdefault(slug, normalise(code))
        return table

    @cached_property
    def _by_label(self) -> dict[str, str]:
        return {slugify(e.label): code for code, e in self.emoji.items()}

    @cached_property
    def _by_plain_label(self) -> dict[str, str]:
        return {slug.replace("-", ""): code for slug, code in self._by_label.items()}

    @cached_property
    def _by_flag(self) -> dict[str, str]:
        return {"flag-for-" + s.removeprefix("flag-"): c for s, c in self._by_label.items() if s[:5] == "flag-"}

    @cached_property
    def _by_unicode_name(self) -> dict[str, str]:
        names = json.loads((self.modules / NAMES_PACKAGE / "meta" / "unicode-names.json").read_text())
        return _first_wins((slugify(name), code) for code, name in names.items() if isinstance(name, str))

    @cached_property
    def _by_shortcode(self) -> dict[str, str]:
        pairs: list[tuple[str, str]] = []
        for system in SHORTCODES:
            file = self.modules / NAMES_PACKAGE / "en" / "shortcodes" / f"{system}.json"
            for code, names in json.loads(file.read_text()).items():
                pairs += [(slugify(n), code) for n in ([names] if isinstance(names, str) else names)]
        return _first_wins(pairs)


def read_emoji(package: Path, locale: str) -> dict[str, Emoji]:
    """Read all emoji of a CLDR locale by code, with their skin tones, in CLDR's order."""
    structure = json.loads((package / "meta" / "groups.json").read_text())
    groups, subgroups = structure["groups"], structure["subgroups"]
    emoji: dict[str, Emoji] = {}
    for entry in json.loads((package / locale / "data.json").read_text()):
        concept = normalise(entry["hexcode"])
        # The 26 regional indicators belong to no group.
        group = groups[str(entry["group"])] if "group" in entry else "component"
        subgroup = subgroups[str(entry["subgroup"])] if "subgroup" in entry else "regional-indicator"
        tags = tuple(entry.get("tags", ()))
        emoji[concept] = Emoji(concept, concept, entry["label"], tags, group, subgroup)
        for skin in entry.get("skins", ()):
            code = normalise(skin["hexcode"])
            tones: Any = skin["tone"]
            tones = tuple(tones) if isinstance(tones, list) else (tones,)
            emoji[code] = Emoji(code, concept, skin["label"], tags, group, subgroup, tones)
    return emoji


def normalise(code: str) -> str:
    """Return a code, as any of the packages writes it, in capitals and without variation selectors."""
    return "-".join(part for part in code.upper().split("-") if part != "FE0F")


def slugify(name: str) -> str:
    """Return the slug of a name, as the icon sets write it: ``Mother’s Day & co.`` → ``mothers-day-and-co``."""
    text = unicodedata.normalize("NFKD", name.replace("’", "'").replace("_", "-"))
    text = text.encode("ascii", "ignore").decode().lower().replace("'", "").replace("&", "and")
    return re.sub(r"[^a-z0-9*#]+", "-", text).strip("-")


def hash_of(text: str) -> str:
    """Return a hash that puts strings into a stable pseudo-random order."""
    return hashlib.sha256(f"filip demo corpus {text}".encode()).hexdigest()


def _first_wins(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    table: dict[str, str] = {}
    for name, code in pairs:
        table.setdefault(name.replace("-", ""), normalise(code))
    return table


MAX_TAGS = 2
# CLDR's keywords for chopsticks; a text rule drops other languages
NOT_ENGLISH = ("hashi", "jeotgarak", "kuaizi")
LABEL_ONLY = 0.9  # share of captions without keywords; the test captions are labels


def caption_of(drawing: Drawing) -> str:
    """Return e.g. ``tulip`` or ``tulip, flower, growth``: the same at every build, different for each artist."""
    choose = random.Random(f"caption {drawing.artist} {drawing.emoji.code}")
    tags = informative_tags(drawing.emoji)
    if not tags or choose.random() < LABEL_ONLY:
        return drawing.emoji.label
    count = min(len(tags), choose.randint(1, MAX_TAGS))
    return ", ".join([drawing.emoji.label, *choose.sample(tags, count)])


def informative_tags(emoji: Emoji) -> list[str]:
    """Return the keywords that add to the label, in CLDR's order."""
    words = set(emoji.label.lower().replace(":", " ").split())
    return [tag for tag in emoji.tags if not set(tag.lower().split()) <= words and tag not in NOT_ENGLISH]
