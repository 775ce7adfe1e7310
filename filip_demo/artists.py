"""The nine artists, and the npm packages that hold their drawings and the names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Artist:
    """A set of drawings. ``key`` names the folder of its images and its entry in the card's attribution."""

    key: str
    version: str  # pinned version of the npm package: another version gives another corpus
    test: bool = False  # never in the training list

    @property
    def package(self) -> str:
        return f"@iconify-json/{self.key}"


# fluent-emoji and fluent-emoji-flat are two renderings of the same drawings: both are held out or neither.
ARTISTS = (
    Artist("openmoji", "1.2.29"),
    Artist("twemoji", "1.2.5"),
    Artist("noto", "1.2.9"),
    Artist("noto-v1", "1.2.5"),
    Artist("emojione", "1.2.3"),
    Artist("emojione-v1", "1.2.3"),
    Artist("fxemoji", "1.2.2"),
    Artist("fluent-emoji", "1.2.7", test=True),
    Artist("fluent-emoji-flat", "1.2.6", test=True),
)
NAMES_PACKAGE = "emojibase-data"  # labels, tags, groups and skin tones of Unicode CLDR in 30 locales
PACKAGES = {a.package: a.version for a in ARTISTS} | {NAMES_PACKAGE: "17.0.0"}
