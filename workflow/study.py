"""Answer the Snakemake rules about a study: paths, command lines, resources.

The rules hold no logic of their own; they ask this module, which knows nothing of Snakemake and is tested without it.
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

from filip.data.cards import SourceCard, load_source
from filip.data.ingest import state_of_images
from filip.data.loading.config import Source
from filip.data.plan import translation_jobs
from filip.errors import UserError
from filip.files import digest
from filip.study import resolve
from filip.study.checks import check_accuracy_of
from filip.study.evaluation import check_evaluation_options
from workflow.evaluation import StudyEvaluations
from workflow.launch import Launch
from workflow.selection import Selection
from workflow.slurm import wait_for_earlier_jobs

ROOT = Path(__file__).resolve().parent.parent
PORTS = 1000  # ports from launch.master_port on
FILIP340M = 340_000_000  # pairs
SIGNAL = "--signal=USR1@600"  # ten minutes before the time limit a training saves, and its job goes back into the queue


# Keys of a source card that describe it for people, or are read by others than its stages.
NOT_READ = {"title", "license", "homepage", "obtain", "expected_count", "attribution", "planted", "path"}


class WorkflowStudy(StudyEvaluations):
    """A study with the paths of its files and the resources of its jobs. Paths are relative to the repository."""

    # Each stage writes a funnel fragment.
    DATA_STAGES = ("prepare", "text_rules", "download", "translate")
    IMAGE_STAGES = (
        "text_rules",
        "ingest",
        "translate",
    )  # for a source that has its images, without a list of URLs

    def __init__(self, config: dict[str, Any], checked: bool = False) -> None:
        """Read a study. checked: another process has checked the trainings, which takes seconds to import PyTorch."""
        super().__init__(config)
        data = config.get("data", {})
        self.data_threads: int = data.get("threads", 2)
        self.data_memory: str = data.get("memory", "1GB")
        self.tars: str | None = config.get("tars")  # None: in data_dir
        self.download_jobs: int = config.get("download_parts", 1)
        self.source_cards: dict[str, SourceCard] = {source: load_source(source) for source in self.sources}
        selected = config.get("select")
        self.selection = Selection(self, selected) if selected else None
        self._images_states: dict[str, str] = {}
        if not checked:
            # Here and not in Study: these import PyTorch, which the commands of the report do without.
            check_evaluation_options(config)
            check_accuracy_of(
                self.efficiency, lambda name: (self.resolved(name), self.training(name)["sources"])
            )
            self._check_batches()

    # ---- sources -------------------------------------------------------------------------------------

    @property
    def corpus(self) -> str:
        """Return the folder of the corpus that is built here, with the list, the images and the benchmarks."""
        return f"{self.results}/corpus"

    @property
    def corpus_builder(self) -> str | None:
        """Return the module that builds the study's corpus; None if all sources are obtained from elsewhere."""
        return next((card.built_by for card in self.source_cards.values() if card.built_by), None)

    def has_images(self, source: str) -> bool:
        """Return whether a source has its images (its card's `images`), so that there is nothing to download."""
        return self.source_cards[source].images is not None

    def pattern(self, *, with_images: bool) -> str:
        """Return a regular expression of the sources that have their images, or of those that are lists of URLs."""
        names = [source for source in self.sources if self.has_images(source) == with_images]
        return "|".join(names) or "no source"

    def images(self, source: str) -> str:
        """Return where the images of a source lie: as its card says, or in the corpus that is built here."""
        card = self.source_cards[source]
        return f"{self.corpus}/captions.csv" if card.built_by else card.images or ""

    def images_input(self, source: str) -> list[str]:
        """Return the images as a job's input, so that it runs again when they change.

        If they are absent, the command says so.
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
        """Return the list of a source that is built here; empty for others, whose cards say where the list is."""
        return [f"{self.corpus}/list.parquet"] if self.source_cards[source].built_by else []

    def list_input(self, source: str) -> list[str]:
        """Return the files of a source's list as inputs, so that a list that has grown is read again.

        Missing files are left to the command, which says how to obtain them.
        """
        card = self.source_cards[source]
        found = [
            path for named in (card.list, card.subset, card.uids) if named for path in sorted(glob(named))
        ]
        return self.built_list(source) or found

    def settings(self, source: str, stage: str) -> str:
        """Return a hash of what a stage reads of a source's card.

        When it changes, the stage and what follows run again.
        """
        card = asdict(self.source_cards[source])
        rules = {"text_rules", "image_rules", "download", "back_translation"}
        reading = set(card) - rules - NOT_READ
        used = {
            "prepare": reading,
            "text_rules": {"text_rules"},
            "download": {"image_rules", "download", "image_root"},
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

    def card(self, source: str) -> str:
        return f"data/{source}.yaml"

    def translation_parts(self, source: str, stored: str | Path) -> list[str]:
        """Return the jobs that share a source's back-translation, by the number of shards that `stored` reports.

        Empty if one job is enough: rule `translate` then does all of it.
        """
        shards = json.loads(Path(stored).read_text())["notes"]["shards"]
        parts = translation_jobs(shards)
        folder = f"{self.data_dir}/{source}/translated"
        return [f"{folder}/{part}-of-{parts}.done" for part in range(parts)] if parts > 1 else []

    def manifests(self, sources: list[str]) -> list[str]:
        return [self._captions(source)[1] for source in sources]

    def _captions(self, source: str) -> tuple[str, str]:
        """Return the folder of the side-cars that a source is trained on, and the manifest that describes them."""
        if self.selection:
            return self.selection.captions(source), self.selection.manifest(source)
        return f"{self.data_dir}/{source}/captions", f"{self.data_dir}/{source}/manifest.json"

    def source_fragments(self, source: str) -> list[str]:
        """Return the funnel of one source, in the order of its stages."""
        stages = self.IMAGE_STAGES if self.has_images(source) else self.DATA_STAGES
        return [f"{self.data_dir}/{source}/funnel/{stage}.json" for stage in stages]

    def stored(self, source: str) -> str:
        """Return the fragment of the stage that stores a source's images: it says how many shards there are."""
        return self.source_fragments(source)[-2]

    def funnel_of(self, source: str) -> list[str]:
        """Return the whole funnel of one source, its selection included."""
        return [
            *self.source_fragments(source),
            *([self.selection.fragment(source)] if self.selection else []),
        ]

    def tars_of(self, source: str) -> str:
        """Return the option that sends a source's tars to a bucket, "" if they stay local."""
        return f"tars={self.tars.rstrip('/')}/{source}" if self.tars else ""

    def funnel_fragments(self) -> list[str]:
        return [path for source in self.sources for path in self.funnel_of(source)]

    def funnel_page_arguments(self) -> list[str]:
        """Return the options of filip.report.funnel: all sources, and how the first training augments."""
        trained = self.resolved(next(iter(self.runs)))
        shards = ",".join(f"{self.data_dir}/{source}/shards" for source in self.sources)
        captions = ",".join(self._captions(source)[0] for source in self.sources)
        return [
            f"shards=[{shards}]",
            f"captions=[{captions}]",
            f"image_size={trained.model.image.image_size}",
            f"crop_scale_min={trained.data.crop_scale_min}",
            f"flip_probability={trained.data.flip_probability}",
        ]

    # ---- training ------------------------------------------------------------------------------------

    def train_arguments(self, run: str) -> list[str]:
        """Return Hydra overrides of filip.train that say what is trained (not where the files lie)."""
        training = self.training(run)
        sources = ",".join(
            # spaces: DeepSpeed quotes no other arguments for the shells of further hosts, and bash expands braces
            "{{shards: {}, captions: {}, manifest: {}}}".format(
                f"{self.data_dir}/{source}/shards", *self._captions(source)
            )
            for source in training["sources"]
        )
        return [
            f"experiment={training['experiment']}",
            f"run={run}",
            f"data.sources=[{sources}]",
            f"world_size={self.launch(run).world_size}",
            *training["overrides"],
            *([f"init_from={self.weights(training['from'])}"] if training["from"] else []),
        ]

    def _check_batches(self) -> None:
        """Raise UserError for the first training whose batch its ranks cannot share.

        This comes before the months that precede the training.
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

    def quoted_arguments(self, run: str) -> str:
        """Return `train_arguments` for a shell command line."""
        return shlex.join(self.train_arguments(run))

    def train_inputs(self, run: str) -> dict[str, Any]:
        """Return the files that a training needs: the manifests of its sources and the weights it starts from."""
        training = self.training(run)
        inputs: dict[str, Any] = {"manifests": self.manifests(training["sources"])}
        if training["from"]:
            inputs["init"] = self.weights(training["from"])
        return inputs

    def run_dir(self, run: str) -> str:
        """Return the run's folder, whose name carries a hash of the learning settings.

        Changing one of them thus starts a new run next to the old one, while a repeated or interrupted one finds its
        checkpoints again.

        Raises UserError if the overrides do not fit the training config, before any job starts.
        """
        from filip.train.fingerprint import settings_hash

        return f"{self.results}/runs/{run}-{settings_hash(resolve(*self.train_arguments(run)))}"

    def launch(self, run: str) -> Launch:
        """Return how a training is started: the study's ``launch``, and what its own entry says differently."""
        settings = self.launch_settings(run)
        launch = Launch(
            launcher=settings["launcher"],
            nodes=settings.get("nodes", 1),
            ranks_per_node=settings["ranks_per_node"],
            accelerator=settings.get("accelerator"),
            hostfile=settings.get("hostfile"),
            master_port=settings.get("master_port", 29500),
            # the training's own thread, and one per worker of its loader
            cpus_per_rank=settings.get("cpus_per_rank", 1 + self.resolved(run).data.workers),
            side_by_side=settings.get("side_by_side", 1),
            resources=settings.get("resources", {}),
        )
        if launch.local_gpus:
            return launch  # the first of its GPUs makes the port unique
        return replace(launch, master_port=launch.master_port + self.port_offsets[run])

    @cached_property
    def port_offsets(self) -> dict[str, int]:
        """Return a number below PORTS for each training, since Snakemake may run two of them at once.

        It follows from the name: a port is part of the command, and a training whose command has changed is trained
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

    def launch_command(self, run: str) -> str:
        return self.launch(run).command()

    def failures(self) -> list[str]:
        """Return a sentence for each training whose newest start failed: where, and the first error of its output."""
        from filip.train.job import last_failure

        folders = {
            run: Path(self.run_dir(run)) for run in self.trained if not Path(self.weights(run)).exists()
        }
        if self.efficiency:
            folders["efficiency"] = Path(self.results, "efficiency")
        found = {name: last_failure(folder) for name, folder in folders.items()}
        return [f"training {name} failed: {sentence}" for name, sentence in found.items() if sentence]

    # The rows of the efficiency ablation are measured by one command, started as the first of them says.

    @property
    def efficiency_launch(self) -> Launch:
        return self.launch(next(iter(self.efficiency)))

    def efficiency_command(self) -> str:
        return self.efficiency_launch.command("filip.study.efficiency")

    def efficiency_resources(self, submits: Callable[[], bool]) -> dict[str, Callable[[Any], Any]]:
        return self.train_resources(submits, next(iter(self.efficiency)))

    def train_resources(
        self, submits: Callable[[], bool], run: str | None = None
    ) -> dict[str, Callable[[Any], Any]]:
        """Return the Snakemake resources of a training job, each a function of its wildcards.

        The wildcards hold the name of the training, unless it is given as ``run``.

        They are nodes and tasks for a cluster, and what the launch adds. A job of a training that this user has already
        queued or running, left by a Snakemake that died, is waited for: both would train the same model side by side.
        ``submits`` says whether Snakemake is about to submit jobs: otherwise, as in a dry run, no scheduler is asked.
        """
        if self.config["launch"]["launcher"] != "srun":
            gpu = ["gpu"] if self.launch(next(iter(self.runs))).local_gpus else []
            names = ["nodes", *gpu, *self.config["launch"].get("resources", {})]
        else:
            own = self.config["launch"].get("resources", {})
            memory = [] if {"mem", "mem_mb_per_cpu"} & set(own) else ["mem_mb"]
            slurm = ["nodes", "mpi", "tasks_per_node", "tasks_per_gpu", *memory]
            names = list(dict.fromkeys([*slurm, *own, "slurm_extra"]))
        return {name: partial(self._resource, name, submits, run) for name in names}

    def _resource(self, name: str, submits: Callable[[], bool], run: str | None, wildcards: Any) -> Any:
        run = run or str(wildcards[0])
        launch = self.launch(run)
        if launch.launcher == "srun":
            own = {"mpi": "srun", "tasks_per_node": launch.ranks_per_node, "tasks_per_gpu": 0}
            waits = wait_for_earlier_jobs(run) if submits() else ""
            extra = [SIGNAL, launch.resources.get("slurm_extra", ""), waits]
            if name == "mem_mb" and name not in launch.resources:
                return self.node_memory(run)
            own |= launch.resources | {"slurm_extra": " ".join(filter(None, extra))}
        else:
            own = {"gpu": launch.local_gpus, **launch.resources}
        return {"nodes": launch.nodes, **own}[name]

    def node_memory(self, run: str) -> int:
        """Return the megabytes of main memory that a training's node needs, as ``filip train plan`` adds it up."""
        from filip.train.host_memory import to_ask_for
        from filip.train.memory import host_memory

        launch, training = self.launch(run), self.training(run)
        config = self.resolved(run)
        model = self.resolved(training["from"]).model if training["from"] else config.model
        sources = [Source(f"{self.data_dir}/{source}") for source in training["sources"]]
        config = replace(config, model=model, data=replace(config.data, sources=sources))
        lists = [self.source_cards[source].expected_count for source in training["sources"]]
        known = [count for count in lists if count is not None]
        # a list without a known length is taken to be as long as the paper's
        pairs = sum(known) if len(known) == len(lists) else max(FILIP340M, sum(known))
        gpu = launch.accelerator != "cpu"
        return to_ask_for(host_memory(config, launch.world_size, launch.ranks_per_node, pairs, gpu))

    def benchmark_files(self) -> list[str]:
        """Return the files that must exist before an evaluation.

        The demo's benchmarks are made with its corpus; all others are the user's, below ``eval.root``, and the command
        names those that are missing.
        """
        return [f"{self.corpus}/corpus.json"] if self.corpus_builder else []

    @property
    def evaluates_on_gpus(self) -> bool:
        """Return whether each evaluation takes a GPU of this machine: trainings do, and no scheduler gives them any."""
        asked = {"gres", "gpu"} & set(self.evaluation.get("resources", {}))
        return self.launch(next(iter(self.runs))).local_gpus > 0 and not asked

    @property
    def own_gpu(self) -> str:
        """Return what precedes a command that uses one GPU, so that no other job on this machine uses it as well."""
        return "python -m workflow.gpus 1 -- " if self.evaluates_on_gpus else ""

    @property
    def evaluation_resources(self) -> dict[str, Any]:
        """Return the Snakemake resources of an evaluation."""
        return {**({"gpu": 1} if self.evaluates_on_gpus else {}), **self.evaluation.get("resources", {})}

    # ---- report --------------------------------------------------------------------------------------

    @property
    def config_file(self) -> str:
        """Return the config as it was run (all --configfile and --config merged), kept with the results."""
        return f"{self.results}/study.json"

    def config_text(self) -> str:
        return json.dumps(self.config, indent=1, sort_keys=False)
