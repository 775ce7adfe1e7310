"""Find images for a text: ``filip index search index=INDEX text="a red bicycle"``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from filip.command import MISSING, option, run_command
from filip.errors import UserError
from filip.eval.scorer import load_scorer
from filip.files import write_json
from filip.index.build import weights_of
from filip.index.store import Index
from filip.progress import say


@dataclass
class Search:
    index: str = option(MISSING, "folder that `filip index build` has written")
    text: str = option(MISSING, "text to look for")
    count: int = option(10, "images to list", at_least=1)
    model: str | None = option(None, "the model, if it has moved since the index was built")
    device: str = option("auto", "torch device; auto = a GPU where there is one")
    out: str | None = option(None, "also write the list to this JSON file", writes="file")


def main(config: Search) -> None:
    """List the images of an index that fit a text best, with their scores."""
    index = Index.open(config.index)
    about = index.about
    model = config.model or about.model
    if weights_of(model) != about.weights:
        if config.model:
            raise UserError(
                f"{model} is not the model that {config.index} was built with, which is {about.model}"
            )
        gone = (
            "has changed since" if Path(model).exists() else "is no longer there: it was the model with which"
        )
        raise UserError(f"{model} {gone} {config.index} was built: give model=FILE, or build the index again")
    hits = index.search(load_scorer(model, about.image_size, config.device), config.text, config.count)
    index.close()
    missing = 0
    for place, hit in enumerate(hits, 1):
        file = Path(about.images) / hit.path
        print(f"{place:4}  {hit.score:7.4f}  {file}")
        missing += Path(about.images).is_dir() and not file.exists()
    if missing:
        say(f"{missing} of these are no longer there: `filip index build` brings the index up to date")
    if config.out:
        write_json(config.out, {"text": config.text, "hits": [asdict(hit) for hit in hits]})


if __name__ == "__main__":
    run_command(main, Search)
