"""Fetch benchmarks from the Hugging Face hub: ``filip eval fetch cards=[cifar10,mscoco] root=DIR``.

A card says under ``hub`` where its data are published (``{repo: clip-benchmark/wds_vtab-cifar10}``, and optionally
``files``, patterns of its files); a webdataset layout without it is CLIP_benchmark's folder of that name. What is
there already is not fetched again. Sets that need a licence agreement ask for ``huggingface-cli login`` first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError, first_line
from filip.common.hub import hub_asked
from filip.common.progress import say
from filip.eval.cards import BenchmarkCard, load_cards
from filip.eval.formats import open_set

OWNER = "clip-benchmark"


@dataclass
class Fetch:
    cards: list[str] = option(MISSING, "benchmark cards, e.g. [cifar10,mscoco]")
    root: str = option(MISSING, "folder below which the data sets are put")


def main(config: Fetch) -> None:
    """Fetch the data of benchmarks from the Hugging Face hub, and open each."""
    cards = load_cards(config.cards)
    # a card without a source stops before any download
    published = {card.name: repository(card) for card in cards}
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError("fetching needs `pip install huggingface_hub`") from error
    for card in cards:
        repo, patterns = published[card.name]
        target = Path(config.root) / card.path
        with hub_asked():
            try:
                huggingface_hub.snapshot_download(
                    repo, repo_type="dataset", local_dir=target, allow_patterns=patterns or None
                )
            except (OSError, huggingface_hub.errors.HfHubHTTPError, ValueError) as error:
                raise UserError(f"cannot fetch {repo} from the hub: {first_line(error)}") from error
        say(f"{card.name}: {len(open_set(card, config.root)):,} samples at {target}")


def repository(card: BenchmarkCard) -> tuple[str, list[str]]:
    """Return the repository that a card's layout is published in, and the patterns of its files ([]: all)."""
    if card.hub:
        return str(card.hub["repo"]), [str(pattern) for pattern in card.hub.get("files", [])]
    if card.loader == "webdataset" and card.path.startswith("wds_"):
        return f"{OWNER}/{card.path}", ["classnames.txt", "dataset_type.txt", "zeroshot*.txt", f"{card.split}/*"]
    raise UserError(
        f"{card.name} is not published on the hub as its layout {card.loader!r} has it; see {card.homepage}"
    )


if __name__ == "__main__":
    run_command(main, Fetch)
