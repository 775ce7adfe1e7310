"""The jobs of a study that selects its pairs by scores (its key `select`): their files and command lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workflow.sources import StudySources


class Selection:
    """Scored and selected side-cars of a study, in ``results/<study>/``. What is measured lies with the shards."""

    def __init__(self, study: StudySources, config: dict[str, Any]) -> None:
        self.study, self.config = study, config

    def folder(self, source: str) -> str:
        """Return the folder of what is selected of a source; the name may be a wildcard."""
        return f"{self.study.results}/selected/{source}"

    def scored(self, source: str) -> str:
        return f"{self.study.results}/scored/{source}"

    def summary(self, source: str) -> str:
        """Return the file that the job of the scores writes last."""
        return f"{self.study.results}/scored/{source}.json"

    def captions(self, source: str) -> str:
        return f"{self.folder(source)}/captions"

    def fragment(self, source: str) -> str:
        return f"{self.folder(source)}/select.json"

    def manifest(self, source: str) -> str:
        return f"{self.folder(source)}/manifest.json"

    def before(self, source: str) -> list[str]:
        """Return the sources before a source, whose copy is kept where two sources have an image."""
        return self.study.sources[: self.study.sources.index(source)]

    @property
    def test_sets(self) -> list[str]:
        """Return the benchmarks that no pair may show: all of the study, unless it names them."""
        loaders = self.study.evaluation.get("loaders", {})
        names = self.config.get("test_sets", self.study.all_benchmarks)
        return [f"{name}@{loaders[name]}" if name in loaders else name for name in names]

    def score_inputs(self, source: str) -> dict[str, Any]:
        """Return the inputs of the job that scores a source."""
        model = self.config.get("model")
        return {
            "translated": self.study.source_fragments(source)[-1],
            "before": [self.summary(other) for other in self.before(source)],
            "model": [model] if model and Path(model).is_file() else [],
            "corpus": self.study.benchmark_files(),
        }

    def score_arguments(self, source: str) -> list[str]:
        model = self.config.get("model")
        return [
            *([f"model={model}"] if model else []),
            f"max_distance={self.config.get('max_distance', 6)}",
            f"against=[{','.join(self.scored(other) for other in self.before(source))}]",
            f"test_sets=[{','.join(self.test_sets)}]",
            f"root={self.study.evaluation['root']}",
        ]

    def keep(self) -> str:
        """Return the conditions as an argument."""
        return f"keep={json.dumps(self.config['keep'], ensure_ascii=False)}"
