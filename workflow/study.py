"""What the Snakemake rules need to know of a study: its paths, its commands, its hashes.

A study is one YAML in ``workflow/config``. The rules hold no logic of their own; they ask this module, which
knows nothing of Snakemake and is tested without it.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).resolve().parent.parent
TABLES = ("zero_shot", "retrieval", "component_ablation", "alignment", "linear_probe")
SHARDS_PER_TRANSLATION = 8  # shards that one translating job is given
SCHEMA = Path(__file__).parent / "schemas" / "study.schema.yaml"


class StudyError(Exception):
    """A study's config is wrong; the message is one plain sentence that names the key."""


def check_config(config: dict[str, Any]) -> dict[str, Any]:
    """Check ``config`` against the schema and its own cross-references, and return it.

    Raises StudyError naming the first offending key, its value and what was expected.
    """
    if "study" not in config:
        raise StudyError(
            "no study given: add --configfile workflow/config/demo.yaml (or another study's YAML)"
        )
    schema = yaml.safe_load(SCHEMA.read_text())
    problems = sorted(jsonschema.Draft202012Validator(schema).iter_errors(config), key=lambda e: len(e.path))
    if problems:
        worst = jsonschema.exceptions.best_match(iter(problems))
        assert worst is not None
        key = ".".join(str(part) for part in worst.absolute_path) or "the top level"
        raise StudyError(
            f"study config, key {key}: {worst.message} (schema: workflow/schemas/study.schema.yaml)"
        )
    _check_references(config)
    return config


def with_seeds(config: dict[str, Any]) -> dict[str, Any]:
    """``seeds: 3`` spelled out: each run once more with seed 1 and 2, averaged into its row of every table."""
    count = config.get("seeds", 1)
    repeated = {name: [f"{name}_s{seed}" for seed in range(1, count)] for name in config["runs"] if count > 1}
    runs = dict(config["runs"])
    for name, members in repeated.items():
        for seed, member in enumerate(members, start=1):
            own = config["runs"][name]
            label = f"{own['label']}, seed {seed}"
            runs[member] = {**own, "label": label, "overrides": [*own.get("overrides", []), f"seed={seed}"]}
    return {**config, "runs": runs, "replicas": {**config.get("replicas", {}), **repeated}}


def _check_references(config: dict[str, Any]) -> None:
    trained = {**config["runs"], **config.get("fine_tune", {})}
    for name, tune in config.get("fine_tune", {}).items():
        if name in config["runs"]:
            raise StudyError(
                f"study config, key fine_tune.{name}: a pre-training run has that name; choose another"
            )
        if tune["from"] not in config["runs"]:
            raise StudyError(
                f"study config, key fine_tune.{name}.from: no run is called '{tune['from']}'; "
                f"there are {', '.join(config['runs'])}"
            )
    for name in config.get("peers", {}):
        if name in trained:
            raise StudyError(f"study config, key peers.{name}: a run has that name; choose another")
    named = {f"tables.{table}": rows for table, rows in config["tables"].items()}
    named |= {f"replicas.{run}": [run, *members] for run, members in config.get("replicas", {}).items()}
    for key, rows in named.items():
        for row in rows:
            if row not in trained:
                known = ", ".join(trained)
                raise StudyError(f"study config, key {key}: no run is called '{row}'; there are {known}")
    for name, row in config.get("efficiency", {}).items():
        if row.get("accuracy_of") and row["accuracy_of"] not in trained:
            raise StudyError(
                f"study config, key efficiency.{name}.accuracy_of: no run is called '{row['accuracy_of']}'"
            )


@dataclass(frozen=True)
class Launch:
    """How one training command is started: by what, on how many ranks, with which resources."""

    launcher: str
    nodes: int
    ranks_per_node: int
    accelerator: str | None
    hostfile: str | None
    master_port: int

    def command(self) -> str:
        """The launcher's part of the command line, up to and without the arguments of filip.train."""
        if self.launcher == "srun":  # one task per GPU, so that signals reach every rank
            return "srun python -m filip.train"
        accelerator = f"DS_ACCELERATOR={self.accelerator} " if self.accelerator else ""
        if self.launcher == "torchrun":
            return f"{accelerator}torchrun --standalone --nproc_per_node {self.ranks_per_node} -m filip.train"
        hosts = f"--hostfile {shlex.quote(self.hostfile)} --num_nodes {self.nodes} " if self.hostfile else ""
        ranks = f"--num_gpus {self.ranks_per_node} --master_port {self.master_port} --no_local_rank"
        return f"{accelerator}deepspeed {hosts}{ranks} --module filip.train"


class Study:
    """A checked study config and the questions that rules ask of it. Paths are relative to the repository."""

    DATA_STAGES = ("prepare", "text_rules", "download", "translate")  # each writes a funnel fragment

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = with_seeds(check_config(config))
        self.name: str = config["study"]
        self.results = f"results/{self.name}"
        self.data_dir: str = config.get("data_dir", f"{self.results}/data")
        self.runs: dict[str, dict[str, Any]] = self.config["runs"]
        self.fine_tunes: dict[str, dict[str, Any]] = config.get("fine_tune", {})
        self.efficiency_rows: dict[str, dict[str, Any]] = config.get("efficiency", {})
        self.distributor: str | None = config.get("distributor")  # None: as the source's card says
        self.peers: dict[str, dict[str, Any]] = config.get("peers", {})
        self.evaluation: dict[str, Any] = config["eval"]

    # ---- sources -------------------------------------------------------------------------------------

    @property
    def sources(self) -> list[str]:
        """All sources, those of fine-tuning included, each once, in order of first use."""
        tuned = [tune["source"] for tune in self.fine_tunes.values()]
        return list(dict.fromkeys([*self.config["sources"], *tuned]))

    @property
    def is_demo(self) -> bool:
        """True if the study trains on the embedded corpus, which has to be built and served first."""
        return "demo" in self.sources

    def while_served(self, source: str) -> str:
        """What stands before the download command of a source that this machine has to serve; empty for others."""
        if source != "demo":
            return ""
        port = self.config.get("demo", {}).get("port", 8765)
        return f"python -m filip.data.demo.serving root={self.results}/corpus port={port} -- "

    def card(self, source: str) -> str:
        return f"data/{source}.yaml"

    def translation_parts(self, source: str, downloaded: str | Path) -> list[str]:
        """The jobs that share a source's back-translation, by the number of shards that its download reports.

        None where one job is enough: the last one then does it all.
        """
        shards = json.loads(Path(downloaded).read_text())["notes"]["shards"]
        parts = -(-shards // SHARDS_PER_TRANSLATION)
        folder = f"{self.data_dir}/{source}/translated"
        return [f"{folder}/{part}-of-{parts}.done" for part in range(parts)] if parts > 1 else []

    def manifests(self, sources: list[str]) -> list[str]:
        return [f"{self.data_dir}/{source}/manifest.json" for source in sources]

    def funnel_fragments(self) -> list[str]:
        stages = ("text_rules", "download", "translate")
        return [
            f"{self.data_dir}/{source}/funnel/{stage}.json" for source in self.sources for stage in stages
        ]

    # ---- training ------------------------------------------------------------------------------------

    def training(self, run: str) -> dict[str, Any]:
        """The merged settings of a run, fine-tuning or efficiency row."""
        base = self.config["train"]
        if run in self.runs:
            own, sources = self.runs[run], self.runs[run].get("sources", self.config["sources"])
        elif run in self.fine_tunes:
            own, sources = self.fine_tunes[run], [self.fine_tunes[run]["source"]]
        else:
            own, sources = self.efficiency_rows[run], self.config["sources"]
            base = {**base, **self.config.get("efficiency_train", {})}
        inherited = base.get("overrides", [])
        if run in self.fine_tunes:
            # A fine-tuning starts from its run's architecture, then adds its own settings.
            inherited = [*inherited, *self.runs[own["from"]].get("overrides", [])]
        return {
            "experiment": own.get("experiment", base["experiment"]),
            "sources": sources,
            "overrides": [*inherited, *own.get("overrides", [])],
            "from": own.get("from"),
        }

    def train_arguments(self, run: str) -> list[str]:
        """Hydra overrides of filip.train that say what is trained (not where the files lie)."""
        training = self.training(run)
        sources = ",".join(
            f"{{shards:{self.data_dir}/{source}/shards,captions:{self.data_dir}/{source}/captions,"
            f"manifest:{self.data_dir}/{source}/manifest.json}}"
            for source in training["sources"]
        )
        return [
            f"experiment={training['experiment']}",
            f"run={run}",
            f"data.sources=[{sources}]",
            *training["overrides"],
            *([f"init_from={self.weights(training['from'])}"] if training["from"] else []),
        ]

    def weights(self, run: str) -> str:
        return f"{self.results}/models/{run}.safetensors"

    def run_dir(self, run: str) -> str:
        """The run's folder. Its name carries a hash of the resolved config, so that a changed setting starts
        a new run beside the old one, while a repeated or interrupted one finds its checkpoints again."""
        return f"{self.results}/runs/{run}-{config_hash(self.train_arguments(run))}"

    def train_inputs(self, run: str) -> dict[str, Any]:
        """Files a training needs: the manifests of its sources and the weights it starts from."""
        training = self.training(run)
        inputs: dict[str, Any] = {"manifests": self.manifests(training["sources"])}
        if training["from"]:
            inputs["init"] = self.weights(training["from"])
        return inputs

    def quoted_arguments(self, run: str) -> str:
        """`train_arguments` for a shell command line."""
        return shlex.join(self.train_arguments(run))

    def launch(self) -> Launch:
        settings = self.config["launch"]
        return Launch(
            launcher=settings["launcher"],
            nodes=settings.get("nodes", 1),
            ranks_per_node=settings["ranks_per_node"],
            accelerator=settings.get("accelerator"),
            hostfile=settings.get("hostfile"),
            master_port=settings.get("master_port", 29500),
        )

    def train_resources(self) -> dict[str, Any]:
        """Snakemake resources of a training job: nodes and tasks for a cluster, and what the config adds."""
        launch = self.launch()
        cluster = (
            {"mpi": "srun", "tasks_per_node": launch.ranks_per_node} if launch.launcher == "srun" else {}
        )
        return {"nodes": launch.nodes, **cluster, **self.config["launch"].get("resources", {})}

    def train_threads(self, cores: int | None) -> int:
        """Cores that a training job takes on the machine that starts it: all ``cores`` of it, if it trains on them."""
        launch = self.launch()
        return (
            max(launch.ranks_per_node, cores or 1) if launch.accelerator == "cpu" else launch.ranks_per_node
        )

    # ---- evaluation ----------------------------------------------------------------------------------

    @property
    def evaluated(self) -> list[str]:
        """Every run that a table names, and its replicas, in order of first use."""
        named = [run for rows in self.config["tables"].values() for run in rows]
        return list(dict.fromkeys(self._with_replicas(named)))

    def _with_replicas(self, runs: list[str]) -> list[str]:
        return [member for run in runs for member in (run, *self.config["replicas"].get(run, []))]

    def rows(self, table: str) -> list[str]:
        """The runs that stand in a table."""
        return self.config["tables"].get(table, [])

    def evaluated_by(self, protocol: str) -> list[str]:
        """The models that zero_shot, retrieval, alignment or linear_probe evaluates: runs, their replicas, and peers
        where the table of that protocol is wanted. The component ablation needs the first two protocols."""
        compared = protocol in ("zero_shot", "retrieval")
        ablation = self.rows("component_ablation") if compared else []
        peers = self.peers if compared and self.rows(protocol) else {}
        return list(dict.fromkeys([*self._with_replicas([*self.rows(protocol), *ablation]), *peers]))

    def model_file(self, name: str) -> list[str]:
        """The weights that an evaluation waits for; none for a peer, whose model open_clip loads."""
        return [] if name in self.peers else [self.weights(name)]

    def model(self, name: str) -> str:
        """What an evaluation calls the model: a file of this study, or ``open_clip:ARCHITECTURE[:WEIGHTS]``."""
        return self.peers[name]["model"] if name in self.peers else self.weights(name)

    @property
    def config_file(self) -> str:
        """The effective config (all --configfile and --config merged), kept beside the results."""
        return f"{self.results}/study.json"

    def config_text(self) -> str:
        return json.dumps(self.config, indent=1, sort_keys=False)

    @property
    def table_names(self) -> list[str]:
        named = [name for name in TABLES if self.rows(name)]
        return named + (["efficiency_ablation"] if self.efficiency_rows else [])

    @property
    def figure_names(self) -> list[str]:
        ablation = ["component_ablation"] if self.rows("component_ablation") else []
        efficiency = ["efficiency"] if self.efficiency_rows else []
        return ["loss_curves", "funnel", "augmentation", "recall", "confusion", *ablation, *efficiency]

    def benchmark_files(self) -> list[str]:
        """What must exist before an evaluation. The demo's benchmarks are made with its corpus; all others
        are the user's, below ``eval.root``, and the command says plainly what is missing there."""
        return [f"{self.results}/corpus/corpus.json"] if self.is_demo else []

    def cards(self, kind: str) -> list[str]:
        return [f"eval/{name}.yaml" for name in self.evaluation.get(kind, [])]


def config_hash(arguments: list[str]) -> str:
    """Eight hex digits over the resolved training config that ``arguments`` compose.

    Raises StudyError if the overrides do not fit the training config, before any job starts.
    """
    from filip.command import compose_config
    from filip.errors import UserError
    from filip.train.config import TrainConfig

    try:
        # Where the files of the run lie is not part of what is trained.
        resolved = compose_config(TrainConfig, [*arguments, "run_dir=.", "out=.", "result=."], "train")
    except UserError as error:
        raise StudyError(f"study config, training overrides: {error}") from error
    return hashlib.sha256(json.dumps(asdict(resolved), sort_keys=True, default=str).encode()).hexdigest()[:8]
