"""Answer the Snakemake rules about a study: files, command lines, resources of its data, trainings and evaluations.

The rules hold no logic; they ask this module, which knows nothing of Snakemake and is tested without it.
"""

from __future__ import annotations

import json
import shlex
import zlib
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property, partial
from glob import glob
from pathlib import Path
from typing import Any

from filip.cli.option import check_given
from filip.common.errors import UserError
from filip.common.files import digest
from filip.data.cards import SourceCard, load_source, overridden
from filip.data.ingest import state_of_images
from filip.eval.cards import load_card
from filip.eval.families import AUTO, CLIP_PROMPTS, PROMPTS
from filip.study import Study, resolve
from filip.study.config_checks import ALL, check_accuracy_of, check_evaluation_options
from workflow.launch import Launch, wait_for_earlier_jobs

ROOT = Path(__file__).resolve().parent.parent
PORTS = 1000  # ports from launch.master_port on
MEMORY_OF_A_RANK = 12_000  # MB of its host; at 340 million pairs 8 ranks of base or large, 6 workers each, hold 65 GB
NEVER = 10**9  # steps between evaluations: one comes at the end
SIGNAL = "--signal=USR1@600"  # ten minutes before the time limit a training saves, and its job goes back into the queue
# Each stage writes a funnel fragment: of a list of URLs, and of a source that has its images.
DATA_STAGES = ("prepare", "text_rules", "download", "translate")
IMAGE_STAGES = ("text_rules", "ingest", "translate")
# Keys of a source card that describe it for people, or are read by others than its stages.
NOT_READ = {"title", "license", "homepage", "obtain", "expected_count", "attribution", "planted", "path"}


def _override(value: Any) -> str:
    """Return a value as an argument of a command has it: JSON, with bare keys."""
    if not isinstance(value, dict):
        return json.dumps(value)
    return "{" + ",".join(f"{key}:{_override(item)}" for key, item in value.items()) + "}"


def edited(path: str) -> str:
    """Return a file that a person may edit: below the working directory, or else as the checkout has it."""
    return path if Path(path).exists() else str(ROOT / path)


class WorkflowStudy(Study):
    """A study with the paths of its files and the resources of its jobs. Paths are relative to the repository."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        data, download = config.get("data", {}), config.get("download", {})
        self.data_threads: int = data.get("threads", 2)
        self.data_memory: str = data.get("memory", "1GB")
        self.data_parts: int = data.get("parts", 1)
        self.score: dict[str, Any] | None = data.get("score")
        self.source_cards: dict[str, SourceCard] = {
            s: overridden(load_source(s), "download", download) for s in self.sources
        }
        self.per_card: bool = self.evaluation.get("per_card", False)
        self._images_states: dict[str, str] = {}
        self._places: dict[str, Path | None] = {}  # of data_of: a plan asks for every card with every model
        # Here and not in Study: these import PyTorch, which the commands of the report do without.
        self._check_options()
        check_evaluation_options(self.config)
        check_accuracy_of(self.efficiency, lambda name: (self.resolved(name), self.training(name)["sources"]))
        self._check_batches()

    # ---- data ----------------------------------------------------------------------------------------

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

    def download_settings(self) -> list[str]:
        """Return the argument with the study's own settings of the download, for the commands that read cards."""
        given = self.config.get("download")
        return [f"download={_override(given)}"] if given else []

    def score_arguments(self) -> list[str]:
        """Return the study's own options of ``filip data score``."""
        return [f"{option}={_override(value)}" for option, value in (self.score or {}).items()]

    def part(self, wildcards: Any) -> str:
        """Return the part of its stage that a job does; "null" for the job that does or merges it all."""
        return f"{wildcards.part}/{wildcards.parts}" if wildcards.get("part") else "null"

    def parts(self, source: str, stage: str, part: str | None = None) -> list[str]:
        """Return the jobs that share a stage of a source, by `data.parts`; none if one job does it all.

        part: of the job that asks: it waits for no other.
        """
        served = stage == "download" and self.source_cards[source].served_by  # by one server, on one port
        count = 1 if served or part else self.data_parts
        folder = f"{self.data_dir}/{source}/parts/{stage}"
        return [f"{folder}/{part}-of-{count}" for part in range(count)] if count > 1 else []

    def manifests(self, sources: list[str]) -> list[str]:
        return [f"{self.data_dir}/{source}/manifest.json" for source in sources]

    def captions(self, source: str) -> str:
        """Return the folder of the side-cars that a source is trained on."""
        return f"{self.data_dir}/{source}/{'captions' if self.score is None else 'scored'}"

    def source_fragments(self, source: str) -> list[str]:
        """Return the funnel of one source, in the order of its stages."""
        stages = [*(IMAGE_STAGES if self.has_images(source) else DATA_STAGES)]
        stages += [] if self.score is None else ["score"]
        return [f"{self.data_dir}/{source}/funnel/{stage}.json" for stage in stages]

    def stored(self, source: str) -> str:
        """Return the fragment of the stage that stores a source's images: it has the number of shards."""
        return f"{self.data_dir}/{source}/funnel/{'ingest' if self.has_images(source) else 'download'}.json"

    def funnel_fragments(self) -> list[str]:
        return [path for source in self.sources for path in self.source_fragments(source)]

    def benchmark_files(self) -> list[str]:
        """Return the files that must exist before an evaluation.

        The demo's benchmarks are made with its corpus, and ``eval.sources`` are downloaded; all others are the
        user's, below ``eval.root``, and the command names the missing ones.
        """
        downloaded = [self.stored(source) for source in self.evaluation.get("sources", [])]
        return [*([f"{self.corpus}/corpus.json"] if self.corpus_builder else []), *downloaded]

    # ---- training ------------------------------------------------------------------------------------

    def train_arguments(self, run: str) -> list[str]:
        """Return Hydra overrides of filip.train of the training itself (not of its files)."""
        training = self.training(run)
        sources = ",".join(
            "{{shards: {}, captions: {}, manifest: {}}}".format(
                f"{self.data_dir}/{source}/shards", self.captions(source), *self.manifests([source])
            )
            for source in training["sources"]
        )
        return [
            f"experiment={training['experiment']}",
            f"run={run}",
            f"data.sources=[{sources}]",
            f"world_size={self.launch(run).world_size}",
            *training["overrides"],
            *self.evaluation_while_training(run),
            *([f"init_from={self.weights(training['from'])}"] if training["from"] else []),
        ]

    def evaluation_while_training(self, run: str) -> list[str]:
        """Return the overrides by which a trial measures its recall at its end; none for another training."""
        if run not in self.trials:
            return []
        card = self.config["search"]["card"]
        return [f"eval.every_steps={NEVER}", f"eval.data=[eval/{card}.yaml]", f"eval.root={self.evaluation['root']}"]

    def chosen(self, run: str) -> list[str]:
        """Return the file with the best values of a run's search, which end the command of its training; [] if none."""
        searched = self.searched(run)
        return [f"{self.results}/search/{searched[0]}.txt"] if searched else []

    def search_arguments(self, run: str) -> str:
        """Return the arguments of ``filip.study.search`` for a run, without ``out=``, for a shell."""
        settings = searched[1] if (searched := self.searched(run)) else []
        results = [f"{self.results}/models/{trial}.json" for trial in self.trials_of(run)]
        card = self.config["search"]["card"]
        return shlex.join([f"card={card}", f"settings=[{','.join(settings)}]", f"trials=[{','.join(results)}]"])

    def _check_options(self) -> None:
        """Raise UserError for a value that goes into an option of a command and that the option does not take."""
        from filip.data.score import ScoreConfig
        from filip.explore.export import ExplorerExport
        from filip_demo.corpus import Corpus

        for key, options in {"demo": Corpus, "explorer": ExplorerExport}.items():
            if key in self.config:
                check_given(options, self.config[key], f"study config, key {key}.")
        check_given(ScoreConfig, self.score or {}, "study config, key data.score.")

    def _check_batches(self) -> None:
        """Raise UserError for the first training with a batch that its ranks cannot share.

        It is checked first, since months of data stages may precede the training.
        """
        from filip.train.engine import resolve_batching

        for name in [*self.trained, *self.efficiency]:
            launch = self.launch(name)
            try:
                resolve_batching(self.resolved(name), launch.world_size)
            except UserError as error:
                raise UserError(
                    f"study config, '{name}' on {launch.nodes} x {launch.ranks_per_node} ranks: {error}; a run, a "
                    "fine-tuning or efficiency_train may have its own launch, e.g. launch: {nodes: 2}"
                ) from error

    def train_inputs(self, run: str) -> dict[str, Any]:
        """Return the files that a training needs: the manifests of its sources and the weights it starts from."""
        training = self.training(run)
        inputs: dict[str, Any] = {"manifests": self.manifests(training["sources"])}
        if training["from"]:
            inputs["init"] = self.weights(training["from"])
        inputs["chosen"] = self.chosen(run)
        if self.evaluation_while_training(run):
            inputs["corpus"] = self.benchmark_files()
        return inputs

    def run_dir(self, run: str) -> str:
        """Return the run's folder, with a name that has a hash of the learning settings.

        Changing one of them thus starts a new run next to the old one, while a repeated or interrupted one finds its
        checkpoints again. Raises UserError if the overrides do not fit the training config, before any job starts.
        """
        from filip.train.provenance import settings_hash

        return f"{self.results}/runs/{run}-{settings_hash(resolve(*self.train_arguments(run)))}"

    def launch(self, run: str) -> Launch:
        """Return how a training is started: the study's ``launch``, and its own entry's changes."""
        # the training's own thread, and one per worker of its loader
        launch = Launch(**{"cpus_per_rank": 1 + self.resolved(run).data.workers, **self.launch_settings(run)})
        if launch.local_gpus:
            return launch  # the first of its GPUs makes the port unique
        return replace(launch, master_port=launch.master_port + self.port_offsets[run])

    @cached_property
    def port_offsets(self) -> dict[str, int]:
        """Return a number below PORTS for each training, since Snakemake may run two of them at once.

        It follows from the name: a port is part of the command, and a training with a changed command is trained
        again. A number by place would change with every run that is added. If two are equal, the later training takes
        the next.
        """
        offsets: dict[str, int] = {}
        for name in [*self.trained, *self.efficiency]:
            offset = zlib.crc32(name.encode()) % PORTS
            while offset in offsets.values():
                offset = (offset + 1) % PORTS
            offsets[name] = offset
        return offsets

    def failures(self) -> list[str]:
        """Return a sentence for each training that failed at its last start: the place and its first error."""
        from filip.train.supervise import last_failure

        folders = {run: Path(self.run_dir(run)) for run in self.trained if not Path(self.weights(run)).exists()}
        if self.efficiency:
            folders["efficiency"] = Path(self.results, "efficiency")
        by_run = {name: last_failure(folder) for name, folder in folders.items()}
        return [f"training {name} failed: {sentence}" for name, sentence in by_run.items() if sentence]

    # The rows of the efficiency ablation are measured by one command, with the launch of the first one.

    @property
    def efficiency_launch(self) -> Launch:
        return self.launch(next(iter(self.efficiency)))

    def train_resources(self, submits: Callable[[], bool], run: str | None = None) -> dict[str, Callable[[Any], Any]]:
        """Return the Snakemake resources of a training job, each a function of its wildcards.

        The wildcards hold the name of the training, unless it is given as ``run``.

        They are nodes and tasks for a cluster, and the launch's own. If a Snakemake that died has left
        a job of this training, queued or running, a new one waits for it: both would train the same model at once.
        ``submits``: Snakemake is about to submit jobs: otherwise, as in a dry run, no scheduler is asked.
        """
        if self.config["launch"]["launcher"] != "srun":
            gpu = ["gpu"] if self.launch(next(iter(self.runs))).local_gpus else []
            names = ["nodes", *gpu, *self.config["launch"].get("resources", {})]
        else:
            resources = self.config["launch"].get("resources", {})
            memory = [] if {"mem", "mem_mb_per_cpu"} & set(resources) else ["mem_mb"]
            slurm = ["nodes", "mpi", "tasks_per_node", "tasks_per_gpu", *memory]
            names = list(dict.fromkeys([*slurm, *resources, "slurm_extra"]))
        return {name: partial(self._resource, name, submits, run) for name in names}

    def _resource(self, name: str, submits: Callable[[], bool], run: str | None, wildcards: Any) -> Any:
        run = run or str(wildcards[0])
        launch = self.launch(run)
        if launch.launcher == "srun":
            memory = MEMORY_OF_A_RANK * launch.ranks_per_node
            resources = {"mpi": "srun", "tasks_per_node": launch.ranks_per_node, "tasks_per_gpu": 0, "mem_mb": memory}
            waits = wait_for_earlier_jobs(run) if submits() else ""
            extra = [SIGNAL, launch.resources.get("slurm_extra", ""), waits]
            resources |= launch.resources | {"slurm_extra": " ".join(filter(None, extra))}
        else:
            resources = {"gpu": launch.local_gpus, **launch.resources}
        return {"nodes": launch.nodes, **resources}[name]

    @property
    def evaluates_on_gpus(self) -> bool:
        """Return whether each evaluation takes a GPU of this machine, as trainings do, unless a scheduler gives it."""
        options = {"gres", "gpu"} & set(self.evaluation.get("resources", {}))
        return self.launch(next(iter(self.runs))).local_gpus > 0 and not options

    @property
    def own_gpu(self) -> str:
        """Return what precedes a command that uses one GPU, so that no other job on this machine uses it as well."""
        return "python -m workflow.gpus 1 -- " if self.evaluates_on_gpus else ""

    @property
    def evaluation_resources(self) -> dict[str, Any]:
        """Return the Snakemake resources of an evaluation."""
        return {**({"gpu": 1} if self.evaluates_on_gpus else {}), **self.evaluation.get("resources", {})}

    # ---- evaluations ---------------------------------------------------------------------------------

    def weights(self, run: str) -> str:
        return f"{self.results}/models/{run}.safetensors"

    def model_file(self, name: str) -> list[str]:
        """Return the weights that an evaluation waits for; none for a peer."""
        return [] if name in self.peers else [self.weights(name)]

    def model(self, name: str) -> str:
        """Return an evaluation's name for the model: a file of this study, or ``open_clip:ARCHITECTURE[:WEIGHTS]``."""
        return self.peers[name]["model"] if name in self.peers else self.weights(name)

    def card_file(self, name: str) -> str:
        """Return the file of a card."""
        return edited(f"eval/{name}.yaml")

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

    def data_of(self, name: str) -> Path | None:
        """Return where a card's data are that a job per card may find missing; None if it has no such place."""
        if name not in self._places:
            path = load_card(name).path
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
        cards = [self.card_file(name) for name in names]
        given = {"protocols": f"[{','.join(on)}]", "model": self.model(model), "root": self.evaluation["root"]}
        given |= {"data": f"[{','.join(cards)}]", **({"missing": "skip"} if self.per_card else {})}
        given["only"] = "{" + ",".join(f"{protocol}:[{','.join(cards)}]" for protocol, cards in on.items()) + "}"
        if "retrieval" in on and model in self.fine_tunes:
            given["retrieval.fine_tuned_on"] = self.fine_tunes[model]["source"]
        given |= self._evaluation_options(model, list(on))
        return shlex.join(f"{key}={value}" for key, value in given.items())

    def _evaluation_options(self, model: str, protocols: list[str]) -> dict[str, str]:
        """Return ``{key: value}`` for ``filip eval protocols=[…]`` beyond model, root, data and out.

        A later one wins: the study's ``eval.prompts``, without which a peer has the prompts and the ensemble of its
        authors, ``eval.overrides``, the peer's own ``eval``.
        """
        peer = self.peers.get(model)
        options = [f"prompts={self.evaluation.get('prompts', PROMPTS if peer is None else AUTO)}"]
        for overrides in (self.evaluation.get("overrides", {}), (peer or {}).get("eval", {})):
            options += overrides.get(ALL, [])
            options += [f"{protocol}.{text}" for protocol in protocols for text in overrides.get(protocol, [])]
        return dict(text.split("=", 1) for text in options)

    def prompt_file(self, model: str) -> list[str]:
        """Return the files of prompts that an evaluation may read; none if the prompt is on its command line."""
        prompts = self._evaluation_options(model, [])["prompts"]
        if prompts == AUTO:
            return [edited(PROMPTS), edited(CLIP_PROMPTS)]
        return [edited(prompts)] if "{c}" not in prompts else []

    def quoted_labels(self, runs: list[str]) -> str:
        """Return the argument ``labels=[…]``, for a shell, of a command that draws runs side by side."""
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
            "labels": self.quoted_labels(wanted["models"]),
            "card": self.card_file(wanted["card"]),
            "count": wanted.get("count", 500),
        }

    @property
    def gathered(self) -> str:
        """Return filip.study.efficiency's argument for the number of texts that a rank's pairs are scored against."""
        return str(self.config.get("efficiency_train", {}).get("gathered", "null"))

    # ---- report --------------------------------------------------------------------------------------

    @property
    def config_file(self) -> str:
        """Return the config as it was run (all --configfile and --config merged), kept with the results."""
        return f"{self.results}/study.json"

    def config_text(self) -> str:
        return json.dumps(self.config, indent=1, sort_keys=False)
