"""Fetch benchmarks from the Hugging Face hub: ``filip eval fetch cards=[cifar10,mscoco] root=DIR``.

A card says under ``hub`` where its data are published (``{repo: clip-benchmark/wds_vtab-cifar10}``, and optionally
``files``, patterns of what to fetch); a webdataset layout without it is CLIP_benchmark's folder of that name. What is
there already is not fetched again. Sets that need a licence agreement ask for ``huggingface-cli login`` first.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filip.command import MISSING, option, run_command
from filip.errors import UserError
from filip.eval.cards import BenchmarkCard, load_cards
from filip.eval.formats import open_set
from filip.hub import hub_asked
from filip.progress import say, track

OWNER = "clip-benchmark"


@dataclass
class Fetch:
    cards: list[str] = option(MISSING, "benchmark cards, e.g. [cifar10,mscoco]")
    root: str = option(MISSING, "folder below which the data sets are put")
    source: str = option("", "a folder in the hub's layout (OWNER/NAME/files) to copy from, instead of the hub")


def main(config: Fetch) -> None:
    """Fetch the data of benchmarks from the Hugging Face hub, and open each."""
    cards = load_cards(config.cards)
    # a card without a source stops before any download
    wanted = {card.name: repository(card) for card in cards}
    for card in cards:
        repo, patterns = wanted[card.name]
        target = Path(config.root) / card.path
        hub: Hub = _Folder(Path(config.source), repo) if config.source else _HuggingFace(repo)
        with hub_asked(local=bool(config.source)):
            names = [name for name in hub.names() if not patterns or any(fnmatch.fnmatch(name, p) for p in patterns)]
        if not names:
            raise UserError(f"{card.name}: {repo} has no files{f' like {patterns}' if patterns else ''}")
        missing = [name for name in names if not (target / name).is_file()]
        for name in track(missing, f"fetching {card.name}", "files"):
            hub.fetch(name, target)
        data = open_set(card, config.root)
        say(f"{card.name}: {len(data):,} samples at {target} ({len(missing)} of {len(names)} files fetched)")


def repository(card: BenchmarkCard) -> tuple[str, list[str]]:
    """Return the repository of data sets that a card's layout is published in, and the patterns of its files ([]:
    all)."""
    if card.hub:
        return str(card.hub["repo"]), [str(pattern) for pattern in card.hub.get("files", [])]
    if card.loader == "webdataset" and card.path.startswith("wds_"):
        return f"{OWNER}/{card.path}", ["classnames.txt", "dataset_type.txt", "zeroshot*.txt", f"{card.split}/*"]
    raise UserError(
        f"{card.name} is not published on the hub as its layout {card.loader!r} has it; see {card.homepage}"
    )


class Hub:
    """The source of the files."""

    def names(self) -> list[str]:
        """Return all files of the repository."""
        raise NotImplementedError

    def fetch(self, name: str, target: Path) -> None:
        """Put a file below ``target``."""
        raise NotImplementedError


class _HuggingFace(Hub):
    def __init__(self, repo: str) -> None:
        self.repo = repo

    def names(self) -> list[str]:
        return list(self._asked(lambda hub: hub.HfApi().list_repo_files(self.repo, repo_type="dataset")))

    def fetch(self, name: str, target: Path) -> None:
        self._asked(lambda hub: hub.hf_hub_download(self.repo, name, repo_type="dataset", local_dir=target))

    def _asked(self, question: Callable[[Any], Any]) -> Any:
        try:
            import huggingface_hub
        except ImportError as error:
            raise UserError("fetching needs `pip install huggingface_hub`") from error
        try:
            return question(huggingface_hub)
        except (OSError, huggingface_hub.errors.HfHubHTTPError, ValueError) as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UserError(f"cannot fetch {self.repo} from the hub: {reason}") from error


class _Folder(Hub):
    def __init__(self, source: Path, repo: str) -> None:
        self.folder = source / repo
        if not self.folder.is_dir():
            raise UserError(f"no repository {repo} below {source}")

    def names(self) -> list[str]:
        return sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())

    def fetch(self, name: str, target: Path) -> None:
        from filip.files import replacing

        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with replacing(target / name) as part:
            part.write_bytes((self.folder / name).read_bytes())


if __name__ == "__main__":
    run_command(main, Fetch)
