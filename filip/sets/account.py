"""Count the rows of a set that are not used, by reason, with examples."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from filip.images.rgb import not_read

SHOWN = 5  # examples per reason
WORDS = {  # words for the reasons, in a sentence
    "no_caption": "without a caption",
    "no_image": "captions without a picture",
    "other_file": "other files",
    "broken_line": "lines that cannot be read",
    "not_text": "whose texts cannot be read",
    "not_wanted": "not asked for",
    "not_a_file": "that are not files",
    "no_file": "rows that name no file",
    "missing_file": "missing files",
    "outside": "outside of the folder",
    "second_image": "further pictures of a key",
    "name": "whose names are not UTF-8",
}


class Account:
    """Counts and examples of unused files."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self._formats: Counter[str] = Counter()

    def add(self, name: str | None, problem: str) -> None:
        """Note that ``name`` was not used. problem: "reason: detail" or the reason alone."""
        name = name or "one without a name"
        reason, _, detail = problem.partition(":")
        self.counts[reason] += 1
        if reason == "format":
            self._formats[Path(name).suffix.lower()] += 1
        if len(self.examples.setdefault(reason, [])) < SHOWN:
            self.examples[reason].append(f"{name} ({detail.strip()})" if detail else name)

    def line(self) -> str:
        """Return ``2 .cr2 (these formats are not read), 1 missing files, such as b.png``; "" for nothing."""
        said = []
        if self._formats:
            said.append(not_read(Path(f"x{suffix}") for suffix in sorted(self._formats.elements())))
        for reason, count in self.counts.most_common():
            if reason == "format":
                continue
            example = self.examples[reason][0]
            # a name from an old disk, which no terminal shows
            if not example.isprintable():
                name = example.partition(" (")[0] if reason == "name" else example
                shown = repr(name.encode("utf-8", "surrogateescape"))
                example = f"{shown}; rename them" if reason == "name" else shown
            said.append(f"{count:,} {WORDS.get(reason, reason)}, such as {example[:150]}")
        return ", ".join(said)
