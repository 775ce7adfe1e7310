"""Answer the Snakemake rules about a study's sources: lists, images, settings, funnels."""

from __future__ import annotations

import json
from dataclasses import asdict
from glob import glob
from pathlib import Path
from typing import Any

from filip.common.files import digest
from filip.data.cards import SourceCard, load_source, overridden
from filip.data.ingest import state_of_images
from filip.data.plan import translation_jobs
from filip.study import Study


def _override(value: Any) -> str:
    """Return a value as an argument of a command has it: JSON, with bare keys."""
    if not isinstance(value, dict):
        return json.dumps(value)
    return "{" + ",".join(f"{key}:{_override(item)}" for key, item in value.items()) + "}"


# Keys of a source card that describe it for people, or are read by others than its stages.
NOT_READ = {"title", "license", "homepage", "obtain", "expected_count", "attribution", "planted", "path"}


class StudySources(Study):
    """A study with the paths of its data and its sources' cards."""

    # Each stage writes a funnel fragment.
    DATA_STAGES = ("prepare", "text_rules", "download", "translate")
    # for a source that has its images, without a list of URLs
    IMAGE_STAGES = ("text_rules", "ingest", "translate")

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.download_jobs: int = config.get("download_parts", 1)
        given = config.get("download", {})
        self.source_cards: dict[str, SourceCard] = {
            s: overridden(load_source(s), "download", given) for s in self.sources
        }
        self._images_states: dict[str, str] = {}

    @property
    def corpus_builder(self) -> str | None:
        """Return the module that builds the study's corpus; None if all sources are obtained from elsewhere."""
        return next((card.built_by for card in self.source_cards.values() if card.built_by), None)

    def has_images(self, source: str) -> bool:
        """Return whether a source has its images (its card's `images`), so that there is nothing to download."""
        return self.source_cards[source].images is not None

    def pattern(self, *, with_images: bool) -> str:
        """Return a regular expression of the sources that have their images, or of lists of URLs."""
        names = [source for source in self.sources if self.has_images(source) == with_images]
        return "|".join(names) or "no source"

    def images(self, source: str) -> str:
        """Return where the images of a source are: by its card, or in the corpus that is built here."""
        card = self.source_cards[source]
        return f"{self.corpus}/captions.csv" if card.built_by else card.images or ""

    def images_input(self, source: str) -> list[str]:
        """Return the images as a job's input, so that it runs again when they change.

        If they are absent, the command reports it.
        """
        built = self.built_list(source)
        return built or [path for path in (self.images(source),) if Path(path).exists()]

    def images_state(self, source: str) -> str:
        """Return a hash of the images' files, so that ingest runs again when one is added, mended or replaced."""
        if self.built_list(source):
            return ""
        if source not in self._images_states:  # a large table takes seconds
            shards = f"{self.data_dir}/{source}/shards"
            self._images_states[source] = state_of_images(self.source_cards[source], shards)
        return self._images_states[source]

    def built_list(self, source: str) -> list[str]:
        """Return the list of a source that is built here; empty for others: their cards name the list."""
        return [f"{self.corpus}/list.parquet"] if self.source_cards[source].built_by else []

    def list_input(self, source: str) -> list[str]:
        """Return the files of a source's list as inputs, so that a list that has grown is read again.

        Missing files are left to the command, which describes how to obtain them.
        """
        card = self.source_cards[source]
        paths = [path for named in (card.list, card.subset) if named for path in sorted(glob(named))]
        return self.built_list(source) or paths

    def settings(self, source: str, stage: str) -> str:
        """Return a hash of a stage's part of a source's card.

        When it changes, the stage and what follows run again.
        """
        card = asdict(self.source_cards[source])
        rules = {"text_rules", "image_rules", "download", "back_translation"}
        reading = set(card) - rules - NOT_READ
        used = {
            "prepare": reading,
            "text_rules": {"text_rules"},
            "download": {"image_rules", "download", "image_root", "allow_private_hosts"},
            "ingest": reading | {"text_rules", "image_rules", "download"},
            "translate": {"back_translation", "group_column", "name"},
            "manifest": set(card) - {"path"},
        }
        return digest({key: card[key] for key in sorted(used[stage])})

    def while_served(self, source: str) -> str:
        """Return what precedes the download command of a source that this machine has to serve; empty for others."""
        server = self.source_cards[source].served_by
        port = self.config.get("demo", {}).get("port", 8765)
        return f"python -m {server} root={self.corpus} port={port} -- " if server else ""

    def download_parts(self, source: str) -> list[str]:
        """Return the jobs that share a source's download; empty if one is enough, or this machine serves the images."""
        parts = 1 if self.while_served(source) else self.download_jobs
        folder = f"{self.data_dir}/{source}/downloaded"
        return [f"{folder}/{part}-of-{parts}.done" for part in range(parts)] if parts > 1 else []

    def download_settings(self) -> list[str]:
        """Return the argument with the study's own settings of the download, for the commands that read cards."""
        given = self.config.get("download")
        return [f"download={_override(given)}"] if given else []

    def card(self, source: str) -> str:
        return f"data/{source}.yaml"

    def translation_parts(self, source: str, stored: str | Path) -> list[str]:
        """Return the jobs that share a source's back-translation, by the number of shards that `stored` reports.

        Empty if one job is enough: rule `translate` then does it all.
        """
        shards = json.loads(Path(stored).read_text())["notes"]["shards"]
        parts = translation_jobs(shards)
        folder = f"{self.data_dir}/{source}/translated"
        return [f"{folder}/{part}-of-{parts}.done" for part in range(parts)] if parts > 1 else []

    def manifests(self, sources: list[str]) -> list[str]:
        return [self._captions(source)[1] for source in sources]

    def _captions(self, source: str) -> tuple[str, str]:
        """Return the folder of the side-cars that a source is trained on, and the manifest that describes them."""
        return f"{self.data_dir}/{source}/captions", f"{self.data_dir}/{source}/manifest.json"

    def source_fragments(self, source: str) -> list[str]:
        """Return the funnel of one source, in the order of its stages."""
        stages = self.IMAGE_STAGES if self.has_images(source) else self.DATA_STAGES
        return [f"{self.data_dir}/{source}/funnel/{stage}.json" for stage in stages]

    def stored(self, source: str) -> str:
        """Return the fragment of the stage that stores a source's images: it has the number of shards."""
        return self.source_fragments(source)[-2]

    def funnel_fragments(self) -> list[str]:
        return [path for source in self.sources for path in self.source_fragments(source)]

    def benchmark_files(self) -> list[str]:
        """Return the files that must exist before an evaluation.

        The demo's benchmarks are made with its corpus, and ``eval.sources`` are downloaded; all others are the
        user's, below ``eval.root``, and the command names the missing ones.
        """
        downloaded = [self.stored(source) for source in self.evaluation.get("sources", [])]
        return [*([f"{self.corpus}/corpus.json"] if self.corpus_builder else []), *downloaded]
