"""The training configuration: every field with its default, its unit and the reason for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from filip.cli.option import check_values, option
from filip.common.errors import UserError
from filip.common.plugins import load_plugins
from filip.loading.config import DataConfig
from filip.models import ModelConfig
from filip.text.json_tokenizer import JsonTokenizer
from filip.train.losses import TERMS, check_terms, resolve_weights
from filip.train.losses.term import FORMS, Term, WeightSchedule, parse_weight
from filip.train.optimizers import OPTIMIZERS, OptimizerConfig, OptimizerKind
from filip.train.warm_start import WarmStartConfig, check_init_from
from late_interaction.backends import backend_names
from late_interaction.token_selection import SCORES

# Not where the registries are: a package that imports Term from there would be asked for its term before it has one.
TERMS.update(load_plugins("filip.losses", Term, TERMS))
OPTIMIZERS.update(load_plugins("filip.optimizers", OptimizerKind, OPTIMIZERS))

PRECISIONS = ("fp32", "bf16", "fp16")
TRANSPORT_DTYPES = ("auto", *PRECISIONS)
_WHOLE_IMAGES = {"auto_augment": 0.0, "crop_scale_min": 1.0, "flip_probability": 0.0}  # settings of data
DEFAULT_GLOBAL_BATCH = 8192  # the paper's ablation
AUTO = "auto"  # global_batch: filip.train.training_data fits it to the number of pairs


@dataclass
class CheckpointConfig:
    """Checkpoints in run_dir/checkpoints: DeepSpeed's, plus loop, loader and random state."""

    every_steps: int = option(0, "save every N steps; 0 = see every_minutes only", at_least=0)
    every_minutes: float = option(10.0, "save when the last one is older; 0 = never by time", at_least=0)
    keep: int = option(2, "how many of the newest checkpoints stay; older ones are deleted", at_least=1)
    keep_every_steps: int = option(0, "checkpoints at multiples of this are never deleted; 0 = none", at_least=0)


@dataclass
class EvalConfig:
    """The settings of evaluations while training, with the cards and commands of filip.eval."""

    every_steps: int = option(0, "the first rank evaluates every N steps and at the end; 0 = never", at_least=0)
    root: str = option("results/benchmarks", "folder below which the test sets lie")
    data: list[str] = option([], "cards of classification, retrieval or selection, e.g. [cifar10, flickr30k]")


@dataclass
class TrainConfig:
    """The settings of a training of FILIP or the CLIP baseline with DeepSpeed."""

    run: str = option("run", "name in tables and TensorBoard")
    run_dir: str = option(MISSING, "folder of this run: config, log.jsonl, TensorBoard, checkpoints", writes="folder")
    out: str = option(
        MISSING, "trained model, a .safetensors; last of all its result, a .json next to it", writes="file"
    )
    resume: str = option("auto", "auto = the newest checkpoint of run_dir; a checkpoint folder; never")
    seed: int = option(0, "every random choice derives from it", at_least=0)

    model: ModelConfig = option(ModelConfig(), "see filip/conf/model; model=base|large|demo|small|tiny")
    data: DataConfig = option(DataConfig(), "sources and augmentation")
    init_from: str | None = option(
        None,
        "start from emoji, from this model.safetensors (fine-tuning), or from open_clip:ARCH:TAG, "
        "open_clip:ARCH:FILE:ACTIVATION or timm:NAME (warm start, docs/models.md); its architecture counts",
    )
    warm_start: WarmStartConfig = option(WarmStartConfig(), "how what init_from brings is trained")
    image_size: int | None = option(None, "other image side in px: position embeddings are interpolated", at_least=1)

    global_batch: Any = option(
        None,
        f"pairs per contrastive batch over all ranks; null = {DEFAULT_GLOBAL_BATCH}, unless batch_per_rank; auto fits "
        "it, the steps and the warm-up to the number of pairs",
        at_least=1,
    )
    batch_per_rank: int | None = option(None, "pairs per rank, instead of global_batch", at_least=1)
    gradient_accumulation: int = option(1, "contrastive batches per step, each with its own negatives", at_least=1)
    gradient_cache: int | None = option(None, "pairs per forward pass: the batch's exact loss, less memory", at_least=1)
    epochs: float | None = option(30.0, "passes over the data; null = until max_steps", above=0)
    max_steps: int | None = option(None, "at most this many optimiser steps; the schedule ends there", at_least=1)

    optimizer: OptimizerConfig = option(OptimizerConfig(), "the optimiser and its schedule")
    precision: str = option(
        "auto",
        "fp32; bf16 = autocast; fp16 = DeepSpeed's block with dynamic loss scale; auto = bf16 where the hardware "
        "multiplies it, else fp16 on CUDA and fp32 on CPUs",
        choices=("auto", *PRECISIONS),
    )
    engine: str = option(
        "deepspeed",
        "deepspeed; ddp = one rank alone or torch's DDP: bf16 or fp32, and a checkpoint is one file for any number of "
        "ranks",
        choices=("deepspeed", "ddp"),
    )
    zero_stage: int = option(1, "what DeepSpeed partitions over the ranks; ddp: nothing", choices=(1, 2, 3))
    deepspeed: str | None = option(None, "a name in ds_configs or a JSON file; null = zero<stage>_<precision>")
    compile: bool = option(False, "torch.compile for both towers: faster steps after a first one of a minute or more")
    world_size: int | None = option(
        None, "ranks that the launcher should start; another number is refused, null accepts any", at_least=1
    )

    token_keep_ratio: float = option(
        1.0, "share of its tokens that a sample sends to the loss (paper's late*: 0.25)", above=0, at_most=1
    )
    token_keep_schedule: str | None = option(
        None,
        "schedule that ends at token_keep_ratio: 'linear from A to B in steps F to L', cosine or switch, as for "
        "weights of the loss, where B is token_keep_ratio; 'switch from 1 to B at step L' keeps all until step L",
    )
    token_score: str = option(
        "maximum",
        "what the kept tokens are chosen by: maximum = the largest similarity to any token of the local batch (the "
        "paper); contrast = that minus the mean similarity, which [BOS] and commas do not win; random = drawn anew in "
        "each step",
        choices=SCORES,
    )
    token_keep_minimum: int = option(
        1, "tokens that every image and caption keeps; 1 = the paper, short captions need more", at_least=1
    )
    token_maximum: str = option(
        "hard",
        "hard = the largest similarity (the paper); smooth = log-mean-exp of temperature token_temperature, slower and "
        "for training only: evaluation takes the largest",
        choices=("hard", "smooth"),
    )
    token_temperature: Any = option(
        0.05,
        "temperature of token_maximum=smooth: a number, or a schedule, as for the weights of the loss; towards 0 it is "
        "the maximum, and where it is 0 the loss takes the maximum itself",
    )
    exchange: str = option("gather", "how this rank gets the tokens of the others", choices=("gather", "ring"))
    backend: str = option("auto", "see docs/interaction.md", choices=backend_names)
    recompute: bool = option(
        False, "with exchange=ring: keep nothing of it for the gradients and score again, one rank's texts at a time"
    )
    transport_dtype: str = option(
        "auto", "dtype of tokens sent to other ranks: auto = precision", choices=TRANSPORT_DTYPES
    )
    loss: dict[str, Any] = option(
        dict.fromkeys(TERMS),
        f"weight of each term: {FORMS}; null = 1 for the one that model.interaction names, 0 for the others (the "
        "paper). SPARC (2024) needed pooled > 0 in addition to token_wise for stability at scale. A term with settings "
        "takes {weight: 1, SETTING: VALUE}",
    )
    soft_targets: bool = option(True, "pairs of one group are positives of each other, 1 / #positives each")
    label_smoothing: float = option(
        0.0, "share of each target that all pairs of the batch get alike (Wukong's code: 0.1)", at_least=0, at_most=1
    )

    timeout_minutes: float = option(
        5.0,
        "a step's collective that takes longer ends the run with an error: a rank is dead or unreachable. The first "
        "steps, in which kernels are compiled, may take six times as long",
        above=0,
    )
    log_every: int = option(10, "steps per line, TensorBoard point and log.jsonl entry", at_least=1)
    profile_steps: str | None = option(
        None, "FIRST-LAST, e.g. 100-105: a trace of these steps and, on CUDA, of their memory, in run_dir/profile"
    )
    checkpoint: CheckpointConfig = option(CheckpointConfig(), "cadence and retention")
    eval: EvalConfig = option(EvalConfig(), "evaluation while training")

    @property
    def sharding(self) -> int:
        """Return the ZeRO stage; 0 where every rank has everything."""
        return self.zero_stage if self.engine == "deepspeed" else 0

    @property
    def result(self) -> str:
        """Return the path of the result file, which is written last of all."""
        return str(Path(self.out).with_suffix(".json"))

    def check(self, weights_exist: bool = True) -> TrainConfig:
        """Return self, or raise UserError for the first value that cannot work.

        weights_exist: look for the file of ``init_from``, too.
        """
        check_values(self)
        parse_steps(self.profile_steps)
        _check_keeping(self)
        _check_annealing(self)
        if self.engine == "ddp" and self.precision == "fp16":
            raise UserError(
                "precision=fp16 with engine=ddp: only DeepSpeed scales the loss for fp16; give engine=deepspeed, or "
                "precision=bf16"
            )
        if self.engine == "ddp" and (self.deepspeed is not None or self.zero_stage > 1):
            unread = f"zero_stage={self.zero_stage}" if self.deepspeed is None else f"deepspeed={self.deepspeed}"
            raise UserError(f"{unread} with engine=ddp, which does not read it; give engine=deepspeed, or drop it")
        if self.recompute and self.exchange != "ring":
            raise UserError(
                f"recompute=true with exchange={self.exchange}, which scores all texts at once again and so saves no "
                "memory; give exchange=ring as well"
            )
        if self.compile and self.sharding == 3:
            raise UserError(
                "compile=true with zero_stage=3: ZeRO-3 takes a block's weights away between its layers, which no "
                "compiled block survives; use zero_stage 1 or 2, engine=ddp, or compile=false"
            )
        if not (self.global_batch in (None, AUTO) or type(self.global_batch) is int):
            raise UserError(f"global_batch={self.global_batch}: give a whole number or auto")
        if self.global_batch is not None and self.batch_per_rank is not None:
            raise UserError(
                f"global_batch={self.global_batch} and batch_per_rank={self.batch_per_rank} are both given, and only "
                "one can decide; drop one (=null if an experiment sets it)"
            )
        if self.epochs is None and self.max_steps is None:
            raise UserError("neither epochs nor max_steps is given, so the run would never end")
        if self.init_from is not None:
            if weights_exist:
                check_init_from(self.init_from)
        elif self.warm_start != WarmStartConfig():
            raise UserError("warm_start is for a training that starts from a model: give init_from=…, or leave it out")
        changed = [f"data.{name}={value}" for name, value in _WHOLE_IMAGES.items() if getattr(self.data, name) != value]
        if self.data.feature_cache is not None and changed:
            raise UserError(
                f"data.feature_cache={self.data.feature_cache} keeps the feature maps of whole images, which "
                f"augmentation would change at every visit: give {' '.join(changed)} as well, or leave "
                "data.feature_cache out"
            )
        if weights_exist and self.init_from is None and self.model.text.tokenizer is not None:
            self.model.text.vocab_size = JsonTokenizer.from_file(self.model.text.tokenizer).size
        self.model.check()
        check_terms(self)
        if self.init_from is None:  # else the interaction comes from the model to start from, read later
            resolve_weights(self.loss, self.model.interaction)
        return self


def parse_steps(value: str | None) -> range:
    """Return the steps of ``profile_steps=FIRST-LAST``, numbered from 1; none for null. Raise UserError for others."""
    if value is None:
        return range(0)
    first, _, last = value.partition("-")
    steps = range(int(first), int(last or first) + 1) if (first + last).isdigit() else range(0)
    if not steps or steps[0] < 1:
        raise UserError(f"profile_steps={value!r} is no FIRST-LAST of steps from 1, such as 100-105")
    return steps


def _check_keeping(config: TrainConfig) -> None:
    """Raise UserError if the value is not a schedule of kept tokens, or keeps an impossible share."""
    schedule = parse_weight("token_keep_schedule", config.token_keep_schedule)
    if not isinstance(schedule, WeightSchedule):
        return
    for value in (schedule.start, schedule.end):
        if not 0 < value <= 1:
            raise UserError(
                f"token_keep_schedule={config.token_keep_schedule!r} keeps {value:g}; shares must be above 0 and at "
                "most 1"
            )
    if schedule.end != config.token_keep_ratio:
        raise UserError(
            f"token_keep_schedule={config.token_keep_schedule!r} ends at {schedule.end:g}, and token_keep_ratio="
            f"{config.token_keep_ratio:g}; let it end there, or give token_keep_schedule=null to keep that share "
            "from the first step"
        )


def _check_annealing(config: TrainConfig) -> None:
    """Raise UserError if the temperature is neither positive nor a schedule, or a schedule is not used."""
    temperature = parse_weight("token_temperature", config.token_temperature)
    if not temperature:
        raise UserError(
            f"token_temperature={config.token_temperature} must be above 0; token_maximum=hard is the maximum"
        )
    if not isinstance(temperature, float) and config.token_maximum != "smooth":
        raise UserError(
            f"token_temperature={config.token_temperature!r} is for token_maximum=smooth, and "
            f"token_maximum={config.token_maximum} follows no schedule; give token_maximum=smooth as well"
        )
