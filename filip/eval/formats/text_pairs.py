"""A folder of images and a folder of texts, one file each, with equal names."""

from __future__ import annotations

import json
from pathlib import Path

from filip.common.errors import UserError
from filip.eval.benchmark import BenchmarkCard
from filip.eval.datasets import EvalSet, Sample
from filip.eval.formats.imagefolder import images_below
from filip.images.rgb import read_rgb


def open_set(card: BenchmarkCard, root: str | Path) -> EvalSet:
    return TextPairs(Path(root) / card.path, **card.layout.options)


class TextPairs(EvalSet):
    """A set with one caption per image.

    folder: holds the folders ``images`` and ``texts``, which may be the same. form: "txt", or "json" with a field
    ``image`` for the image and fields ``caption`` that are joined to the caption.
    """

    def __init__(
        self,
        folder: Path,
        images: str = "",
        texts: str = "",
        form: str = "txt",
        image: str = "image",
        caption: list[str] | str = "caption",
    ):
        self.fields = [caption] if isinstance(caption, str) else caption
        if not (folder / images).is_dir() or not (folder / texts).is_dir():
            raise UserError(f"no data set at {folder} (looked for its folders {images or '.'} and {texts or '.'})")
        by_name = {path.stem: path for path in images_below(folder / images)}
        self.items: list[tuple[Path, Path]] = []
        for file in sorted((folder / texts).glob(f"*.{form}")):
            name = file.stem if form == "txt" else Path(str(json.loads(file.read_text("utf-8"))[image])).stem
            if name not in by_name:
                raise UserError(f"{file} has no image {name}.* below {folder / images}")
            self.items.append((by_name[name], file))
        if not self.items:
            raise UserError(f"{folder / texts} has no .{form} files")
        self.classes = None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        path, file = self.items[index]
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            content = json.loads(text)
            text = " ".join(str(content.get(name) or "") for name in self.fields)
        return Sample(path.stem, read_rgb(path), captions=[" ".join(text.split())])
