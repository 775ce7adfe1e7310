"""Answer the evaluation rules about a study: its jobs, their files and command lines."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from filip.eval.families import AUTO, CLIP_PROMPTS, PROMPTS
from filip.study.benchmarks import card_of, evaluation_options
from workflow.sources import StudySources


def edited(path: str) -> str:
    """Return a file that a person may edit: below the working directory, or else as the checkout has it."""
    return path if Path(path).exists() else str(Path(__file__).resolve().parents[1] / path)


class StudyEvaluations(StudySources):
    """A study with the jobs of its evaluations: one per model, or with ``eval.per_card`` one per model and card.

    Paths are relative to the repository.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.per_card: bool = self.evaluation.get("per_card", False)
        self._places: dict[str, Path | None] = {}  # of data_of: a plan asks for every card with every model

    def weights(self, run: str) -> str:
        return f"{self.results}/models/{run}.safetensors"

    def model_file(self, name: str) -> list[str]:
        """Return the weights that an evaluation waits for; none for a peer."""
        return [] if name in self.peers else [self.weights(name)]

    def model(self, name: str) -> str:
        """Return an evaluation's name for the model: a file of this study, or ``open_clip:ARCHITECTURE[:WEIGHTS]``."""
        return self.peers[name]["model"] if name in self.peers else self.weights(name)

    def cards(self, protocol: str) -> list[str]:
        return [self.card_file(name) for name in self.benchmarks(protocol)]

    def card_file(self, name: str) -> str:
        """Return the file of a card, or the folder or table that the study evaluates on."""
        return str(self.evaluation["places"].get(name) or edited(f"eval/{name}.yaml"))

    # ---- jobs ----------------------------------------------------------------------------------------

    @property
    def job(self) -> str:
        """Return the name of a job, with wildcards: of its mark below ``eval/``, its log and its times."""
        return "{run}/{card}" if self.per_card else "{run}"

    def evaluations(self) -> list[str]:
        """Return the names of all jobs."""
        if not self.per_card:
            return self.models
        return [f"{run}/{card}" for run in self.models for card in self.cards_of(run)]

    def cards_of(self, model: str) -> list[str]:
        """Return the names of the cards on which a model is evaluated, each once."""
        return list(dict.fromkeys(name for names in self.evaluated_on(model).values() for name in names))

    def job_inputs(self, wildcards: Any) -> dict[str, Any]:
        """Return the inputs of an evaluation job: weights, cards, prompts, and the data made here or already there.

        A job that found its data missing runs again once they are there: they have become an input.
        """
        model, names = wildcards.run, [wildcards.card] if self.per_card else self.cards_of(wildcards.run)
        return {
            "weights": self.model_file(model) or self.manifests(self.peers[model].get("sources", [])),
            "cards": [self.card_file(name) for name in names],
            "prompts": self.prompt_file(model),
            "corpus": self.benchmark_files(),
            "data": [str(place) for name in names if (place := self.data_of(name)) and place.exists()],
        }

    def job_arguments(self, wildcards: Any) -> str:
        """Return the arguments of a job's command, without ``out=``, for a shell."""
        return self.evaluation_arguments(wildcards.run, wildcards.card if self.per_card else None)

    def data_of(self, name: str) -> Path | None:
        """Return where a card's data are that a job per card may find missing; None if it has no such place."""
        if name not in self._places:
            path = card_of(self.evaluation, name, self.evaluation.get("loaders", {}).get(name)).path
            self._places[name] = Path(self.evaluation["root"], path) if self.per_card and path else None
        return self._places[name]

    def missing_data(self) -> list[str]:
        """Return the benchmarks of a study with a job per card that have no data; their cells will be empty."""
        places = {name: self.data_of(name) for name in self.all_benchmarks}
        return [name for name, place in places.items() if place is not None and not place.exists()]

    # ---- command lines -------------------------------------------------------------------------------

    def evaluation_arguments(self, model: str, card: str | None = None) -> str:
        """Return the study's arguments of ``filip eval`` for a model, for a shell: protocols, cards and options.

        card: the only one; None: all on which the model is evaluated.
        """
        on = {
            protocol: [name for name in names if card in (None, name)]
            for protocol, names in self.evaluated_on(model).items()
        }
        on = {protocol: names for protocol, names in on.items() if names}
        names = list(dict.fromkeys(name for cards in on.values() for name in cards))
        loaders = self.evaluation.get("loaders", {})
        cards = [self.card_file(name) + (f"@{loaders[name]}" if name in loaders else "") for name in names]
        given = {"protocols": f"[{','.join(on)}]", "model": self.model(model), "root": self.evaluation["root"]}
        given |= {"data": f"[{','.join(cards)}]", **({"missing": "skip"} if self.per_card else {})}
        given["only"] = "{" + ",".join(f"{protocol}:[{','.join(cards)}]" for protocol, cards in on.items()) + "}"
        if "retrieval" in on and model in self.fine_tunes:
            given["retrieval.fine_tuned_on"] = self.fine_tunes[model]["source"]
        given |= evaluation_options(self.config, model, list(on))
        return shlex.join(f"{key}={value}" for key, value in given.items())

    def prompt_file(self, model: str) -> list[str]:
        """Return the files of prompts that an evaluation may read; none if the prompt is on its command line."""
        prompts = evaluation_options(self.config, model, [])["prompts"]
        if prompts == AUTO:
            return [edited(PROMPTS), edited(CLIP_PROMPTS)]
        return [edited(prompts)] if "{c}" not in prompts else []

    def quoted_labels(self, table: str) -> str:
        """Return the argument ``labels=[…]``, for a shell, of a command that draws a table's rows side by side."""
        return self._quoted_labels(self.rows(table))

    def _quoted_labels(self, runs: list[str]) -> str:
        names = ",".join(json.dumps(self.label(run), ensure_ascii=False) for run in runs)
        return shlex.quote(f"labels=[{names}]")

    @property
    def draws_scenes(self) -> bool:
        """Return whether models are drawn side by side on scenes: several, on the first card if its data are there."""
        first = [name for name in self.benchmarks("scene_pointing")[:1] if name not in self.missing_data()]
        return len(self.rows("scene_pointing")) > 1 and bool(first)

    def shown(self, key: str) -> dict[str, Any] | None:
        """Return what the picture ``alignment`` or the page ``explorer`` shows: models, labels (for a shell), card, …

        None: the study has none, or no data for it.
        """
        wanted = self.config.get(key)
        if wanted is None or ((place := self.data_of(wanted["card"])) and not place.exists()):
            return None
        return {
            "models": [self.model(run) for run in wanted["models"]],
            "weights": [file for run in wanted["models"] for file in self.model_file(run)],
            "labels": self._quoted_labels(wanted["models"]),
            "card": self.card_file(wanted["card"]),
            "count": wanted.get("count", 500),
        }

    @property
    def gathered(self) -> str:
        """Return filip.study.efficiency's argument for the number of texts that a rank's pairs are scored against."""
        return str(self.config.get("efficiency_train", {}).get("gathered", "null"))

    # ---- report --------------------------------------------------------------------------------------

    def report_cards(self) -> list[str]:
        """Return the cards of all benchmarks: tables take titles and metrics from them."""
        return [self.card_file(name) for name in self.all_benchmarks]
