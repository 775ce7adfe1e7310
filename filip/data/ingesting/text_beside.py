"""A folder of images, each with its caption in a .txt of the same name beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from filip.data.cards import SourceCard
from filip.data.ingesting.layout import Found, Layout, files_in
from filip.data.rgb import IMAGE_FILES, OTHER_PICTURES, not_read

CAPTION_FILES = (".txt", ".caption")


class TextBeside(Layout):
    """Every line of the text is a caption."""

    about = "a folder of images, each with a .txt of the same name beside it"

    def parts(self, images: Path, card: SourceCard) -> list[Path]:
        if not images.is_dir():
            return []
        found = files_in(images, IMAGE_FILES)
        return [images] if any(_texts_of(path) for path in found) else []

    def find(self, part: Path, card: SourceCard, scratch: Path) -> Iterator[Found]:
        for path in files_in(part, (*IMAGE_FILES, *OTHER_PICTURES)):
            lines = [
                line.strip()
                for text in _texts_of(path)
                for line in text.read_bytes().decode("utf-8", "replace").splitlines()
            ]
            problem = f"format: {not_read([path])}" if path.suffix.lower() in OTHER_PICTURES else None
            captions = [line for line in lines if line]
            yield Found(str(path.relative_to(part)), captions, str(path.absolute()), problem=problem)


def _texts_of(image: Path) -> list[Path]:
    """``a.txt`` or ``a.jpg.txt``."""
    names = [image.with_suffix(suffix) for suffix in CAPTION_FILES]
    names += [image.with_name(image.name + suffix) for suffix in CAPTION_FILES]
    return [name for name in names if name.is_file()][:1]
