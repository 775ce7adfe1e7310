"""Take optimiser steps with one process or torch's DDP, or with DeepSpeed: one interface, two engines.

A pass accumulates gradients, :meth:`Engine.step` moves the weights. Neither engine takes a step whose gradients are not
finite.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from filip import resources
from filip.common import device
from filip.common.errors import UserError
from filip.common.files import json_record
from filip.images.eval_transform import normalize_planes
from filip.loading.augment_on_device import Crops, finish
from filip.models import DualEncoder, Encoded
from filip.runs.saved_files import DDP_STATES
from filip.runs.source import load_states, refuse_code
from filip.train.config import AUTO, DEFAULT_GLOBAL_BATCH, TrainConfig
from filip.train.losses import TERMS, Loss
from filip.train.optimizers import OPTIMIZERS, make_optimizer, set_lr
from filip.train.ranks import Ranks

RANDOM = "random.pt"  # in a checkpoint of DeepSpeed: the random states of all ranks
MOST_FITTED = 1024  # pairs of a batch that global_batch=auto chooses


def settings_path(config: TrainConfig) -> Path:
    """Return the path of the JSON file that ``deepspeed``, or else ``zero_stage`` and ``precision``, name."""
    return resources.find("deepspeed", config.deepspeed or f"zero{config.zero_stage}_{config.precision}")


def read_settings(config: TrainConfig) -> dict[str, Any]:
    """Read a training's file of DeepSpeed settings unchanged. Raises UserError if it is no such file."""
    return json_record(settings_path(config), "a file of DeepSpeed settings")


def checked_settings(config: TrainConfig) -> dict[str, Any]:
    """Return the DeepSpeed settings of a training. Refuse what DeepSpeed 0.19 accepts but then does wrongly."""
    path, settings = settings_path(config), read_settings(config)
    if "gradient_clipping" not in settings:
        raise UserError(f"{path}: gradient_clipping is missing, and DeepSpeed's default clips at 1.0; write 0.0")
    for key in ("optimizer", "scheduler"):
        if key in settings:
            raise UserError(f"{path}: {key} is decided by the training config ({key} there); remove it here")
    fp16 = bool(settings.get("fp16", {}).get("enabled"))
    autocast = settings.get("torch_autocast", {})
    bf16 = bool(autocast.get("enabled")) or bool(settings.get("bf16", {}).get("enabled"))
    if autocast.get("enabled") and autocast.get("dtype") in ("float16", "fp16"):
        raise UserError(f"{path}: float16 autocast never lowers its loss scale under ZeRO; use the fp16 block")
    kind = "fp16" if fp16 else "bf16" if bf16 else "fp32"
    if kind != config.precision:
        raise UserError(f"{path} trains in {kind}, but precision={config.precision}; change one of them")
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    if stage != config.zero_stage:
        raise UserError(f"{path} has ZeRO stage {stage}, but zero_stage={config.zero_stage}; change one of them")
    OPTIMIZERS[config.optimizer.name].check_settings(settings)
    return settings


def deepspeed_accelerator() -> Any:
    """Return DeepSpeed's accelerator, without its log messages.

    On a CPU it trains in fp16 as well: DeepSpeed asks for instructions of AVX-512, and ``Fp16Products`` needs none.
    """
    import deepspeed
    import deepspeed.utils
    from deepspeed.accelerator import get_accelerator, set_accelerator

    # Its shared-memory op speeds up inference only, and is 33 seconds of C++; a build that was killed hangs later runs.
    # Nothing else is looked up there, and DeepSpeed would find out first what all ops need, with a compiler as well.
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("WARNING")
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu" and not accelerator.is_fp16_supported():
        base: Any = type(accelerator)
        set_accelerator(type(base.__name__, (base,), {"is_fp16_supported": lambda self: True})())
    return get_accelerator()


def settle_precision(config: TrainConfig, ranks: Ranks, saved: str | None = None) -> str:
    """Replace ``precision=auto`` in ``config`` by what this training uses, the same on all ranks.

    saved: the precision of the checkpoint that the run continues from, which it keeps. Returns a sentence for the log,
    or "". Raises UserError if this machine cannot train so.
    """
    if absent := device.why_no_kernels(ranks.device):
        raise UserError(absent)
    places = ranks.gather(device.best_precision(ranks.device))
    sentence = ""
    if config.precision == "auto":
        best = places[0] if len(set(places)) == 1 else "fp32"
        raised = use_precision(config, saved or best)
        why = "as the checkpoint" if saved else f"by what the {ranks.device.type} of every rank multiplies"
        sentence = f"precision {config.precision}, {why}{raised}"
    if config.precision == "fp16" and not deepspeed_accelerator().is_fp16_supported():
        raise UserError(f"precision=fp16: this {ranks.device.type} has no fp16 instructions; use precision=auto")
    if config.engine == "deepspeed":
        checked_settings(config)  # before hours of feature maps
    if config.precision == "bf16" and device.best_precision(ranks.device) != "bf16":
        if ranks.device.type == "cuda":
            raise UserError(
                f"precision=bf16: {device.name(ranks.device)} has no bf16, and PyTorch would only emulate it; use "
                "precision=fp16, or precision=auto"
            )
        sentence = (
            f"warning: precision=bf16, and this {ranks.device.type} only emulates it: convolutions take "
            "many times as long as in fp32; use precision=auto"
        )
    return sentence


def use_precision(config: TrainConfig, precision: str) -> str:
    """Replace ``auto`` by a precision and set its needs; return a note on other changes, or ""."""
    config.precision = precision
    if precision == "fp16" and config.engine == "ddp":
        config.engine = "deepspeed"
        return "; engine deepspeed, which alone scales the loss for it"
    return ""


@dataclass(frozen=True)
class Batching:
    """The numbers of pairs that meet in a batch, on a rank and in a forward pass."""

    global_batch: int  # pairs of one contrastive batch, all ranks
    per_rank: int  # its pairs on this rank
    accumulation: int  # contrastive batches per optimiser step
    chunk: int  # pairs per forward pass; below per_rank with gradient caching

    @property
    def chunks(self) -> int:
        return self.per_rank // self.chunk

    @property
    def pairs_per_step(self) -> int:
        return self.global_batch * self.accumulation


def resolve_batching(config: TrainConfig, world_size: int) -> Batching:
    """Return the batch sizes for ``world_size`` ranks. Raise UserError if the ranks cannot share the batch evenly."""
    if config.batch_per_rank is not None:
        per_rank = config.batch_per_rank
    elif config.global_batch == AUTO:  # the pairs are not known yet: the most that it can become
        per_rank = max(1, MOST_FITTED // world_size)
        chunk = math.gcd(config.gradient_cache or per_rank, per_rank)
        return Batching(per_rank * world_size, per_rank, config.gradient_accumulation, chunk)
    else:
        global_batch = config.global_batch or DEFAULT_GLOBAL_BATCH
        per_rank, rest = divmod(global_batch, world_size)
        if rest or not per_rank:
            raise UserError(
                f"global_batch={global_batch} cannot be shared evenly by {world_size} ranks; "
                f"choose a multiple of {world_size}, or another number of ranks"
            )
    chunk = config.gradient_cache or per_rank
    if per_rank % chunk:
        raise UserError(
            f"gradient_cache={chunk} must divide the {per_rank} pairs of a rank (global_batch / ranks); "
            "choose a divisor"
        )
    return Batching(per_rank * world_size, per_rank, config.gradient_accumulation, chunk)


class Engine(ABC):
    """A model, its optimiser, and the way in which ranks share the work of a step (``engine=ddp|deepspeed``)."""

    zero_stage = 0
    is_fp16 = False
    gradient_clipping = 0.0

    def __init__(self, model: DualEncoder, config: TrainConfig, batching: Batching, loss: Loss) -> None:
        """Make the optimiser. loss: decides whether the model gives tokens and vectors."""
        if config.compile:
            model.compile_blocks()
        self.model, self.batching = model, batching
        self.optimizer = make_optimizer(model, config.optimizer)
        self.kind = OPTIMIZERS[config.optimizer.name]
        self.groups = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        other = "vectors" if model.config.interaction == "token_wise" else "tokens"  # than the model gives by itself
        self.tokens_and_vectors = any(other in TERMS[name].features for name in loss.weights)
        self.lr = 0.0  # that of the last step, before the groups' factors

    @abstractmethod
    def forward(self, *inputs: Tensor, **options: Any) -> Encoded:
        """Run the model in the training's precision."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one pass to those of the step; after its last pass they are those of all ranks."""

    @abstractmethod
    def step(self) -> Tensor | float:
        """Move the weights by the step's gradients, unless one is not finite; return 1 if it was left out, else 0."""

    @abstractmethod
    def save(self, folder: Path, random: list[Any]) -> None:
        """Write weights, states and each rank's ``random`` states into a folder that exists. All ranks call."""

    @abstractmethod
    def load(self, folder: Path) -> list[Any]:
        """Restore what :meth:`save` wrote; return the random states of all ranks."""

    def whole_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each parameter's name and float32 value. All ranks call."""
        yield from self.model.named_parameters()

    @abstractmethod
    def _gradient_norm(self) -> float | None:
        """Return the L2 norm of the last step's gradient where the optimiser does not know it."""

    @property
    @abstractmethod
    def skipped_steps(self) -> int:
        """Return how many steps of this start were left out. Waits for the device."""

    def encode(self, batch: dict[str, Tensor]) -> Encoded:
        """Run the forward pass for this rank's pixels, ids and lengths."""
        ids, lengths, further = batch["ids"], batch["lengths"], batch.get("further_lengths")
        if further is not None:  # captions of a term of the loss, after those of the images
            present = further > 0
            ids = torch.cat([ids, batch["further_ids"][present.to(ids.device)]])
            lengths = torch.cat([lengths, further[present]])
        encoded = self.forward(batch["pixels"], ids, lengths, tokens_and_vectors=self.tokens_and_vectors)
        if further is not None:
            encoded = encoded.apart(further)
        return encoded

    def bind(self, owner: Any) -> None:
        """Tell the optimiser what its tensors hold in ``owner``, a DeepSpeed engine or this; after every load, too.

        Also restores the groups' own settings: a checkpoint holds those of the start that saved it.
        """
        for group, settings in zip(self.optimizer.param_groups, self.groups, strict=True):
            group.update(settings)
        self.kind.attach(owner, self.optimizer)

    def set_lr(self, lr: float) -> None:
        self.lr = lr
        set_lr(self.optimizer.param_groups, lr)

    def loss_scale(self) -> float:
        """Return the dynamic loss scale; 1 unless fp16."""
        return 1.0

    def lowest_loss_scale(self) -> float:
        """Return the value below which the loss scaler cannot go; a static scale cannot change at all."""
        return 1.0

    def norms(self) -> dict[str, dict[str, float]]:
        """Return the optimiser's norms per parameter of the last step; empty if it has none. Waits for the device."""
        return self.kind.norms(self.optimizer)

    def grad_norm(self) -> float | None:
        """Return the L2 norm of the whole gradient of the last step (unscaled), if it is known."""
        norms = self.norms()
        return math.sqrt(sum(n["gradient"] ** 2 for n in norms.values())) if norms else self._gradient_norm()

    def is_finite(self) -> bool:
        """Return True if the weights are finite. A finite gradient, too, moves them too far at too high a rate."""
        if norms := self.norms():
            return all(math.isfinite(n["weight"] + n["update"]) for n in norms.values())
        return bool(self.zero_stage) or all(bool(p.isfinite().all()) for p in self.model.parameters())


class DataParallel(Engine):
    """Every rank has the whole model and optimiser: one rank alone, or torch's DDP. Weights stay float32."""

    def __init__(
        self, model: DualEncoder, config: TrainConfig, batching: Batching, loss: Loss, place: torch.device
    ) -> None:
        super().__init__(model, config, batching, loss)
        model.to(place)
        self.module = model  # LAMB finds its parameters' names here
        self.ddp = None
        if torch.distributed.get_world_size() > 1:
            self.ddp = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
        self.bf16 = torch.autocast(place.type, torch.bfloat16, enabled=config.precision == "bf16")
        self.passes = batching.accumulation * batching.chunks  # of a step
        self.done = 0  # passes of this step
        self.norm = torch.zeros((), device=place)  # of the last gradient
        self.skipped = torch.zeros((), device=place)
        self.bind(self)

    def forward(self, *inputs: Tensor, **options: Any) -> Encoded:
        is_last = self.done + 1 == self.passes
        with self.bf16, nullcontext() if self.ddp is None or is_last else self.ddp.no_sync():
            encoded: Encoded = (self.ddp or self.module)(*inputs, **options)
        return encoded

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        self.done += 1

    def step(self) -> Tensor | float:
        # One number that is not finite, on any rank, makes the norm of all ranks' gradients so. It stays on the device:
        # the optimiser's kernels look at it there (as with GradScaler of torch.amp), and the host goes on.
        self.norm = get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        found_inf = (~self.norm.isfinite()).float()
        self.skipped += found_inf
        if self.kind.skips_on_device:
            self.optimizer.found_inf = found_inf  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not found_inf:  # waits for the device
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.done = 0
        return found_inf

    def save(self, folder: Path, random: list[Any]) -> None:
        if torch.distributed.get_rank() == 0:
            states = {"module": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "random": random}
            torch.save(states, folder / DDP_STATES)

    def load(self, folder: Path) -> list[Any]:
        saved = load_states(folder / DDP_STATES)
        self.model.load_state_dict(saved["module"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.bind(self)
        random: list[Any] = saved["random"]
        return random

    @property
    def skipped_steps(self) -> int:
        return int(self.skipped)

    def _gradient_norm(self) -> float | None:
        return float(self.norm)


class DeepSpeedEngine(Engine):
    """A DeepSpeed engine with the optimiser inside it: ZeRO, fp16 with a loss scale, what its file asks for."""

    def __init__(self, model: DualEncoder, config: TrainConfig, batching: Batching, loss: Loss) -> None:
        super().__init__(model, config, batching, loss)
        deepspeed_accelerator()
        import deepspeed.comm

        deepspeed.init_distributed(verbose=False)  # takes over torch's groups
        # those that it makes itself would wait for torch's 30 minutes
        limited = partial(torch.distributed.new_group, timeout=timedelta(minutes=6 * config.timeout_minutes))
        deepspeed.comm.comm.cdb.new_group = limited
        micro_steps = batching.accumulation * batching.chunks
        sizes = {
            "train_micro_batch_size_per_gpu": batching.chunk,
            "gradient_accumulation_steps": micro_steps,
            "train_batch_size": batching.chunk * micro_steps * torch.distributed.get_world_size(),
        }
        self.deepspeed: Any
        self.deepspeed, *_ = deepspeed.initialize(
            model=model, optimizer=self.optimizer, config=checked_settings(config) | sizes, dist_init_required=False
        )
        scaler: Any = getattr(self.deepspeed.optimizer, "loss_scaler", None)
        if hasattr(scaler, "raise_error_at_min_scale"):  # the watchdog stops such a run, with a message
            scaler.raise_error_at_min_scale = False
        self.zero_stage = int(self.deepspeed.zero_optimization_stage())
        self.is_fp16 = bool(self.deepspeed.fp16_enabled())
        self.gradient_clipping = float(self.deepspeed.gradient_clipping())
        on_cpu = next(model.parameters()).device.type == "cpu"
        self.products: Any = device.Fp16Products() if self.is_fp16 and on_cpu else nullcontext()
        self.bind(self.deepspeed)

    def forward(self, *inputs: Tensor, **options: Any) -> Encoded:
        with self.products:
            encoded: Encoded = self.deepspeed(*inputs, **options)
        return encoded

    def backward(self, loss: Tensor) -> None:
        with self.products:
            self.deepspeed.backward(loss, scale_wrt_gas=False)
        if not self.deepspeed.is_gradient_accumulation_boundary():
            self.deepspeed.step()  # counts the pass; DeepSpeed moves no weight before the last one

    def step(self) -> Tensor | float:
        before = self.skipped_steps
        self.deepspeed.step()  # asks the device itself whether the norm of all ranks' gradients is finite, and waits
        return float(self.skipped_steps > before)

    def save(self, folder: Path, random: list[Any]) -> None:
        self.deepspeed.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
        if torch.distributed.get_rank() == 0:
            torch.save(random, folder / RANDOM)

    def load(self, folder: Path) -> list[Any]:
        refuse_code(folder)
        loaded, _ = self.deepspeed.load_checkpoint(str(folder.parent), tag=folder.name)
        if loaded is None:
            raise UserError(f"DeepSpeed found nothing to load in {folder}; delete it and resume from an older one")
        self.bind(self.deepspeed)
        random: list[Any] = load_states(folder / RANDOM)
        return random

    def whole_weights(self) -> Iterator[tuple[str, Tensor]]:
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                yield name, safe_get_full_fp32_param(parameter)
                continue
            frozen = GatheredParameters([parameter]) if self.zero_stage == 3 else nullcontext()
            with frozen:  # the optimiser has no copy of it
                yield name, parameter

    def loss_scale(self) -> float:
        return float(getattr(self.deepspeed.optimizer, "loss_scale", 1.0)) if self.is_fp16 else 1.0

    def lowest_loss_scale(self) -> float:
        scaler = getattr(self.deepspeed.optimizer, "loss_scaler", None)
        return float(getattr(scaler, "min_scale", self.loss_scale()))

    @property
    def skipped_steps(self) -> int:
        return int(self.deepspeed.skipped_steps)

    def _gradient_norm(self) -> float | None:
        norm = self.deepspeed.get_global_grad_norm()
        return None if norm is None else float(norm)


def make_engine(model: DualEncoder, config: TrainConfig, batching: Batching, place: torch.device, loss: Loss) -> Engine:
    """Make the engine that ``config`` names, and the optimiser in it, on the device ``place``."""
    if config.engine == "ddp":
        return DataParallel(model, config, batching, loss, place)
    return DeepSpeedEngine(model, config, batching, loss)


def gather_to_main(engine: Engine, ranks: Ranks) -> dict[str, Tensor]:
    """Return the float32 state dict of the model on the first rank, gathered from all ranks, which all call."""
    state: dict[str, Tensor] = {}
    for name, weight in engine.whole_weights():
        if ranks.is_main:
            state[name] = weight.detach().to("cpu", torch.float32, copy=True)
    if ranks.is_main:
        state |= {name: buffer.detach().cpu() for name, buffer in engine.model.named_buffers()}
    return state


def to_device(batch: dict[str, Any], device: torch.device, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Put the tensors of a loader's batch on ``device``; pixels finished and normalised, in ``dtype`` or else float32.

    ``lengths`` and ``further_lengths`` stay on the host: they are needed everywhere as numbers, and reading them from a
    GPU would wait for it.
    """
    moved = {
        name: value if name.endswith("lengths") else value.to(device, non_blocking=True)
        for name, value in batch.items()
        if isinstance(value, Tensor)
    }
    if isinstance(batch["pixels"], Crops):
        moved["pixels"] = finish(batch["pixels"], device)
    if moved["pixels"].dtype == torch.uint8:  # as the loader gives them
        moved["pixels"] = normalize_planes(moved["pixels"])
    moved["pixels"] = moved["pixels"].to(dtype or torch.float32)
    return moved
