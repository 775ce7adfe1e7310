"""Answer the Snakemake rules about a study: paths, command lines, resources.

The rules hold no logic; they ask this module, which knows nothing of Snakemake and is tested without it.
"""

from __future__ import annotations

import json
import shlex
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from filip.cli.option import check_given
from filip.common.errors import UserError
from filip.study import resolve
from filip.study.benchmarks import check_evaluation_options
from filip.study.checks import check_accuracy_of
from workflow.evaluation import StudyEvaluations
from workflow.launch import Launch, wait_for_earlier_jobs

ROOT = Path(__file__).resolve().parent.parent
PORTS = 1000  # ports from launch.master_port on
MEMORY_OF_A_RANK = 12_000  # MB of its host; at 340 million pairs 8 ranks of base or large, 6 workers each, hold 65 GB
NEVER = 10**9  # steps between evaluations: one comes at the end
SIGNAL = "--signal=USR1@600"  # ten minutes before the time limit a training saves, and its job goes back into the queue


class WorkflowStudy(StudyEvaluations):
    """A study with the paths of its files and the resources of its jobs. Paths are relative to the repository."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        data = config.get("data", {})
        self.data_threads: int = data.get("threads", 2)
        self.data_memory: str = data.get("memory", "1GB")
        # Here and not in Study: these import PyTorch, which the commands of the report do without.
        self._check_options()
        check_evaluation_options(self.config)
        check_accuracy_of(self.efficiency, lambda name: (self.resolved(name), self.training(name)["sources"]))
        self._check_batches()

    # ---- training ------------------------------------------------------------------------------------

    def train_arguments(self, run: str) -> list[str]:
        """Return Hydra overrides of filip.train of the training itself (not of its files)."""
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
            *self.evaluation_while_training(run),
            *([f"init_from={self.weights(training['from'])}"] if training["from"] else []),
        ]

    def evaluation_while_training(self, run: str) -> list[str]:
        """Return the overrides by which a training measures recall: a trial at its end, a run while it learns."""
        if run in self.trials:
            card, every = self.config["search"]["card"], NEVER
        elif run in self.runs and self.curve:
            card, every = self.curve["card"], self.curve["every_steps"]
        else:
            return []
        return [f"eval.every_steps={every}", f"eval.data=[eval/{card}.yaml]", f"eval.root={self.evaluation['root']}"]

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
        from filip.explore.export import ExplorerExport
        from filip_demo.corpus import Corpus

        for key, options in {"demo": Corpus, "explorer": ExplorerExport}.items():
            if key in self.config:
                check_given(options, self.config[key], f"study config, key {key}.")

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

    def quoted_arguments(self, run: str) -> str:
        """Return `train_arguments` for a shell command line."""
        return shlex.join(self.train_arguments(run))

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
        checkpoints again.

        Raises UserError if the overrides do not fit the training config, before any job starts.
        """

        from filip.train.provenance import settings_hash

        return f"{self.results}/runs/{run}-{settings_hash(resolve(*self.train_arguments(run)))}"

    def launch(self, run: str) -> Launch:
        """Return how a training is started: the study's ``launch``, and its own entry's changes."""
        settings = self.launch_settings(run)
        launch = Launch(
            launcher=settings["launcher"],
            nodes=settings.get("nodes", 1),
            ranks_per_node=settings["ranks_per_node"],
            accelerator=settings.get("accelerator"),
            hostfile=settings.get("hostfile"),
            master_port=settings.get("master_port", 29500),
            # the training's own thread, and one per worker of its loader
            cpus_per_rank=settings.get("cpus_per_rank") or 1 + self.resolved(run).data.workers,
            side_by_side=settings.get("side_by_side", 1),
            resources=settings.get("resources", {}),
        )
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
        from filip.train.job import last_failure

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

    # ---- report --------------------------------------------------------------------------------------

    @property
    def config_file(self) -> str:
        """Return the config as it was run (all --configfile and --config merged), kept with the results."""
        return f"{self.results}/study.json"

    def config_text(self) -> str:
        return json.dumps(self.config, indent=1, sort_keys=False)
