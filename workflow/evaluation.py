"""Answer the evaluation rules about a study: its jobs, their files and command lines."""

from __future__ import annotations

import json
import shlex
from functools import partial
from pathlib import Path
from typing import Any

from filip.eval.cards import load_card
from filip.eval.families import AUTO, CLIP_PROMPTS, PROMPTS
from filip.study import Study
from filip.study.evaluation import evaluation_options

# The arguments that an evaluation and the picture of an alignment have in common.
OF_A_SHEET = ("model", "root", "data", "missing", "prompts", "image_size", "precision", "tokens", "device")


class StudyEvaluations(Study):
    """A study with the jobs of its evaluations: one per protocol and run, or with ``eval.per_card`` one per card too.

    Paths are relative to the repository.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.per_card: bool = self.evaluation.get("per_card", False)
        self._places: dict[str, Path | None] = {}  # of data_of: a plan asks for every card with every model

    def weights(self, run: str) -> str:
        return f"{self.results}/models/{run}.safetensors"

    def model_file(self, name: str) -> list[str]:
        """Return the weights that an evaluation waits for; none for a peer, whose model open_clip loads."""
        return [] if name in self.peers else [self.weights(name)]

    def model(self, name: str) -> str:
        """Return an evaluation's name for the model: a file of this study, or ``open_clip:ARCHITECTURE[:WEIGHTS]``."""
        return self.peers[name]["model"] if name in self.peers else self.weights(name)

    def cards(self, protocol: str) -> list[str]:
        return [f"eval/{name}.yaml" for name in self.benchmarks(protocol)]

    # ---- jobs ----------------------------------------------------------------------------------------

    def job(self, protocol: str) -> str:
        """Return the result of a job below ``eval/``, without its suffix: a pattern of wildcards."""
        return f"{{run}}/{protocol}/{{card}}" if self.per_card else f"{{run}}/{protocol}"

    def job_log(self, protocol: str) -> str:
        """Return the log of a job below ``logs/`` and its times below ``benchmarks/``, as ``job``."""
        return f"{protocol}/{{run}}/{{card}}" if self.per_card else f"{protocol}/{{run}}"

    def parts(self, run: str, protocol: str) -> list[str]:
        """Return the results of a run on the single cards of a protocol, in the order of the study."""
        return [f"{self.results}/eval/{run}/{protocol}/{name}.json" for name in self.benchmarks(protocol)]

    def job_inputs(self, protocol: str, wildcards: Any) -> dict[str, Any]:
        """Return the inputs of an evaluation job: weights, cards, prompts, and the data made here or already there.

        A job that found its data missing runs again once they are there: they have become an input.
        """
        return self._inputs(wildcards.run, protocol, self._names(protocol, wildcards))

    def sheet_inputs(self, wildcards: Any) -> dict[str, Any]:
        """Return the inputs of a run's alignment sheet: those of an evaluation of all cards."""
        return self._inputs(wildcards.run, "alignment", self.benchmarks("alignment"))

    def _inputs(self, model: str, protocol: str, names: list[str]) -> dict[str, Any]:
        return {
            "weights": self.model_file(model),
            "cards": [f"eval/{name}.yaml" for name in names],
            "prompts": self.prompt_file(model, protocol),
            "corpus": self.benchmark_files(),
            "data": [str(place) for name in names if (place := self.data_of(name)) and place.exists()],
        }

    def job_arguments(self, protocol: str, wildcards: Any) -> str:
        """Return the arguments of a job's command, without ``out=``, for a shell."""
        return self.evaluation_arguments(wildcards.run, protocol, self._names(protocol, wildcards))

    def of_job(self, what: str, protocol: str) -> partial[Any]:
        """Return the method ``what`` for a protocol, as a function of a job's wildcards."""
        return partial(getattr(self, what), protocol)

    def _names(self, protocol: str, wildcards: Any) -> list[str]:
        return [wildcards.card] if self.per_card else self.benchmarks(protocol)

    def data_of(self, name: str) -> Path | None:
        """Return where a card's data are that a job per card may find missing; None if it has no such place."""
        if name not in self._places:
            path = load_card(name, self.evaluation.get("loaders", {}).get(name)).path
            self._places[name] = Path(self.evaluation["root"], path) if self.per_card and path else None
        return self._places[name]

    def missing_data(self) -> list[str]:
        """Return the benchmarks of a study with a job per card whose data are not there; their cells will be empty."""
        places = {name: self.data_of(name) for name in self.all_benchmarks}
        return [name for name, place in places.items() if place is not None and not place.exists()]

    def benchmark_files(self) -> list[str]:
        """Return the files that must exist before an evaluation."""
        raise NotImplementedError

    # ---- command lines -------------------------------------------------------------------------------

    def evaluation_arguments(self, model: str, protocol: str, names: list[str] | None = None) -> str:
        """Return the study's arguments of ``filip eval`` for a protocol: model, root, cards and options.

        They are for a shell. names: those of the cards; None: all of the protocol.
        """
        loaders = self.evaluation.get("loaders", {})
        names = self.benchmarks(protocol) if names is None else names
        cards = [f"eval/{name}.yaml" + (f"@{loaders[name]}" if name in loaders else "") for name in names]
        given = {"protocols": f"[{protocol}]", "model": self.model(model), "root": self.evaluation["root"]}
        given["data"] = f"[{','.join(cards)}]"
        if protocol == "retrieval" and model in self.fine_tunes:
            given["retrieval.fine_tuned_on"] = self.fine_tunes[model]["source"]
        if self.per_card:
            given["missing"] = "skip"
        options = evaluation_options(self.config, model, protocol)
        return shlex.join(f"{key}={value}" for key, value in {**given, **options}.items())

    def sheet_arguments(self, wildcards: Any) -> str:
        """Return the arguments for a run's alignment sheet, for a shell: the protocol's model, the same cards."""
        given = shlex.split(self.evaluation_arguments(wildcards.run, "alignment"))
        return shlex.join(argument for argument in given if argument.split("=", 1)[0] in OF_A_SHEET)

    def prompt_file(self, model: str, protocol: str) -> list[str]:
        """Return the files of prompts that an evaluation may read; none if the prompt is on its command line."""
        prompts = evaluation_options(self.config, model, protocol).get("prompts", "")
        if prompts == AUTO:
            return [PROMPTS, CLIP_PROMPTS]
        return [prompts] if prompts and "{c}" not in prompts else []

    def quoted_labels(self, table: str) -> str:
        """Return the argument ``labels=[…]``, for a shell, of a command that draws a table's rows side by side."""
        return self._quoted_labels(self.rows(table))

    def _quoted_labels(self, runs: list[str]) -> str:
        names = ",".join(json.dumps(self.label(run), ensure_ascii=False) for run in runs)
        return shlex.quote(f"labels=[{names}]")

    def draws_side_by_side(self, table: str) -> bool:
        """Return whether the models of a table are drawn side by side.

        They are if there are several, and the first card's data are there.
        """
        first = [name for name in self.benchmarks(table)[:1] if name not in self.missing_data()]
        return len(self.rows(table)) > 1 and bool(first)

    @property
    def explorer(self) -> dict[str, Any] | None:
        """Return what the page ``explore.html`` shows: models, labels (for a shell), card, count. None: no page."""
        wanted = self.config.get("explorer")
        return wanted and {
            "models": [self.model(run) for run in wanted["models"]],
            "weights": [file for run in wanted["models"] for file in self.model_file(run)],
            "labels": self._quoted_labels(wanted["models"]),
            "card": f"eval/{wanted['card']}.yaml",
            "count": wanted.get("count", 500),
        }

    @property
    def gathered(self) -> str:
        """Return the argument of filip.study.efficiency that says how many texts a rank's pairs are scored against."""
        return str(self.config.get("efficiency_train", {}).get("gathered", "null"))

    # ---- report --------------------------------------------------------------------------------------

    @property
    def figures(self) -> list[str]:
        """Return the file names of the figures, as filip.report.figures writes them."""
        ablation = ["component_ablation"] if self.rows("component_ablation") else []
        efficiency = ["efficiency"] if self.rows("efficiency_ablation") else []
        zero_shot = ["zero_shot"] if self.rows("zero_shot") else []
        learning = ["learning"] if self.curve else []
        plots = ["loss_curves", "funnel", "recall", "confusion", *zero_shot, *ablation, *efficiency, *learning]
        return [f"{name}.svg" for name in plots]

    def report_cards(self) -> list[str]:
        """Return the cards of all benchmarks: tables take titles and metrics from them."""
        return [f"eval/{name}.yaml" for name in self.all_benchmarks]
