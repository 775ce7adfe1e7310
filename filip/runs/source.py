"""Read the model at a path: a file of weights, a run folder, or a checkpoint of any ZeRO stage."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from filip import resources
from filip.common.errors import UserError
from filip.models import DualEncoder, build_model, config_from_dict, load_model, read_extra
from filip.models.weights import TOKENIZER
from filip.runs.saved_files import DDP_STATES, LoopState, find_damage, json_object, read_state, source_of
from filip.text.json_tokenizer import JsonTokenizer

FACTS = "facts"  # in the ``extra`` of a file of weights: the facts that have to be passed on with them
PLACES = ("run_dir", "out", "result", "init_from")  # settings of a training that mean nothing elsewhere


@dataclass(frozen=True)
class ModelSource:
    """A model, and the facts about its training.

    extra: of its file. result: the training's result file, or as much of it as a run that has not finished has (its
    ``config``); empty if nothing of it was found. tables: the study's tables in Markdown, by name.
    card: Markdown of NAME.md next to NAME.safetensors, as the models of the package have it. attributions: the texts,
    by file name, that name the works, authors and licences of the training data, and of the data of models that it
    started from. started_from: the latter, the last one first. licence: theirs, or ``card``'s; "" if unknown.
    """

    model: DualEncoder
    origin: str  # described in words, for messages
    extra: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
    card: str = ""
    attributions: dict[str, str] = field(default_factory=dict)
    started_from: list[str] = field(default_factory=list)
    licence: str = ""

    @property
    def to_save(self) -> dict[str, Any]:
        """Return the ``extra`` of a file of these weights, with the facts that a reader elsewhere needs."""
        names = ("tables", "card", "attributions", "started_from", "licence")
        facts = {"result": portable(self.result), **{name: getattr(self, name) for name in names}}
        return {**self.extra, FACTS: {name: fact for name, fact in facts.items() if fact}}


def facts_of(out: str, result: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of a training's weights at ``out``."""
    attributions, started_from, licence = _descent(out, result)
    facts = {"attributions": attributions, "started_from": started_from, "licence": licence}
    return {"result": portable(result), **facts}


def portable(result: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a training's result that a model card reads, with names and licences in place of paths."""
    names = ("run", "steps", "pairs", "epochs", "commit", "final", "config", "manifest_hashes")
    kept = {name: result[name] for name in names if name in result}
    if "config" in kept:
        config = {name: value for name, value in kept["config"].items() if name not in PLACES}
        data = config.get("data", {})
        sources = [_source_name(source) for source in data.get("sources", [])]
        kept["config"] = {**config, "data": {**data, "sources": sources}}
    if hashes := kept.get("manifest_hashes"):
        kept["manifest_hashes"] = {f"{Path(file).parent.name}/manifest": value for file, value in hashes.items()}
    return kept


def _source_name(source: dict[str, Any]) -> dict[str, Any]:
    folder = Path(source["shards"])
    name = (folder.parent.name if folder.name in ("shards", "images") else "") or folder.name
    manifest = json_object(Path(source.get("manifest") or ""))
    about = {key: manifest.get(key, source.get(key)) for key in ("title", "license")}
    return {"shards": name, "weight": source.get("weight", 1.0), **about}


def read_source(path: str) -> ModelSource:
    """Read the model at ``path``: a ``.safetensors`` file, a run folder or one of its checkpoints.

    A run folder means the weights of the finished run, or else for its newest intact checkpoint.
    Raises UserError if there is none.
    """
    place = source_of(path)
    return _of_file(place) if place.is_file() else _of_checkpoint(place)


def _of_file(path: Path) -> ModelSource:
    model, extra = load_model(path), read_extra(path)
    facts = extra.pop(FACTS, {})
    record = json_object(path.with_suffix(".json"))
    if not record.get("config") and facts:
        facts["card"] = _card(path) or facts.get("card", "")
        return ModelSource(model, str(path), extra, **facts)
    record = record if record.get("config") else {}
    return ModelSource(
        model, str(path), extra, record, _tables(path) if record else {}, _card(path), *_descent(str(path), record)
    )


def _card(weights: Path) -> str:
    card = weights.with_suffix(".md")
    return card.read_text(encoding="utf-8") if card.is_file() else ""


def _descent(origin: str, result: dict[str, Any]) -> tuple[dict[str, str], list[str], str]:
    """Return the attributions, the names of the models that a model started from, and the licence that follows."""
    attributions: dict[str, str] = {}
    started_from: list[str] = []
    licence = ""
    while True:
        weights = Path(resources.weights(origin))
        of_study = weights.resolve().parent.parent.glob("*/attribution.json") if result else ()
        candidates = [weights.with_name(f"{weights.stem}_attribution.json"), *of_study]
        for file in [file for file in candidates if file.is_file()][:1]:
            text = file.read_text(encoding="utf-8")
            if text not in attributions.values():
                attributions[f"{weights.stem}_{file.name}" if file.name in attributions else file.name] = text
        stated = re.search(r"^license: (.+)$", _card(weights), re.MULTILINE)
        licence = licence or (stated[1] if stated else "") or _licence_of_data(result, attributions)
        start = result.get("config", {}).get("init_from") or ""
        if not start or start in started_from:
            return attributions, started_from, licence
        started_from.append(start)
        origin, result = start, json_object(Path(start).with_suffix(".json"))
        facts: dict[str, Any] = {}
        with contextlib.suppress(UserError):  # another file, or none
            facts = dict(read_extra(Path(start)).get(FACTS, {})) if Path(start).is_file() else {}
        if not result and facts:
            attributions |= facts.get("attributions", {})
            return attributions, [*started_from, *facts.get("started_from", [])], licence or facts.get("licence", "")


def _licence_of_data(result: dict[str, Any], attributions: dict[str, str]) -> str:
    """Return the licence of a training's data: the only one, or one that asks for itself ("share alike"), or other."""
    sources = result.get("config", {}).get("data", {}).get("sources", [])
    about = [json_object(Path(source.get("manifest") or "")) for source in sources]
    about += [work for text in attributions.values() for work in json.loads(text).values()]
    names = {str(work.get("license") or "").lower() for work in about}
    names = {name for name in names if re.fullmatch(r"[\w.-]+", name)}
    alike = [name for name in names if name.startswith("cc-by-sa")]
    return min(alike or ([*names] if len(names) < 2 else ["other"]), default="")


def _tables(weights: Path) -> dict[str, str]:
    """Return the tables RESULTS/tables/*.md of a study with the weights RESULTS/models/RUN.safetensors."""
    folder = weights.resolve().parent.parent / "tables"
    return {table.stem: table.read_text(encoding="utf-8") for table in sorted(folder.glob("*.md"))}


def _of_checkpoint(checkpoint: Path) -> ModelSource:
    if damage := find_damage(checkpoint):
        raise UserError(f"{checkpoint} is damaged: {damage}; give another checkpoint of its run")
    state = read_state(checkpoint)
    weights = merged(checkpoint_weights(checkpoint, state))
    model = build_model(config_from_dict(state.model))
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != shapes:
        wrong = sorted(set(expected.items()) ^ set(shapes.items()))[0][0]
        raise UserError(f"{checkpoint} does not hold the model that its {wrong!r} describes; it is damaged")
    model.load_state_dict(weights)
    if model.config.text.tokenizer is not None:
        model.json_tokenizer = JsonTokenizer.from_file(checkpoint.parents[1] / TOKENIZER)
    config = json_object(checkpoint.parents[1] / "config.json")
    result = {"run": config.get("run"), "config": config, "steps": state.step} if config else {}
    extra = {"checkpoint": str(checkpoint), "steps": state.step}
    descent = _descent(str(checkpoint.parents[1]), result)
    return ModelSource(model.eval(), f"step {state.step} in {checkpoint}", extra, result, {}, "", *descent)


def load_states(file: Path, mmap: bool = False) -> Any:
    """Load a file of torch.save onto the CPU: tensors and plain state, no object whose loading runs code.

    DeepSpeed's own files may hold its loss scaler and its enumerations, too. Raises UserError for anything else.
    """
    allowed: list[Any] = []
    if file.name.endswith("_optim_states.pt"):
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        allowed = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(file, map_location="cpu", mmap=mmap, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        other = re.search(r"GLOBAL (\S+)", str(error))
        raise UserError(
            f"{file} holds {other[1] if other else 'something'} beside tensors and plain state, so it is not loaded: "
            "loading it could run code. A version of FILIP before December 2026 saved it, or somebody has changed it; "
            "export its model with that version, or take another checkpoint"
        ) from error


def refuse_code(checkpoint: Path) -> None:
    """Raise UserError if DeepSpeed, which unpickles what it finds, would run code of a file of ``checkpoint``."""
    for file in sorted(checkpoint.glob("*.pt")):
        load_states(file, mmap=True)


_ADAPTER = ".lora_{}.default.weight"  # as peft names them
ADAPTER_SCALE = 2  # what adapters count: alpha / rank of LoRA. Another scale is another learning rate of theirs


def checkpoint_weights(checkpoint: Path, state: LoopState) -> dict[str, Tensor]:
    """Return the float32 state dict in a checkpoint."""
    whole: dict[str, Tensor] = {}
    if state.zero_stage < 3:  # includes frozen weights, of which ZeRO-1 keeps no other copy
        file = DDP_STATES if state.engine == "ddp" else "mp_rank_00_model_states.pt"
        whole = {name: value.float() for name, value in load_states(checkpoint / file)["module"].items()}
    if state.zero_stage == 0:
        return whole
    refuse_code(checkpoint)
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()):  # silence its verbose output
        weights = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    return whole | {name: value.detach().float().contiguous() for name, value in weights.items()}


def merged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of the equivalent model without adapters; ``state`` itself if it has none."""
    plain = {}
    for name, value in state.items():
        layer, base, kind = name.rpartition(".base_layer.")
        if not base:
            if ".lora_" not in name:
                plain[name] = value
            continue
        if kind == "weight":
            down, up = (state[layer + _ADAPTER.format(side)].float() for side in "AB")
            value = value.float() + ADAPTER_SCALE * (up @ down)
        plain[f"{layer}.{kind}"] = value
    return plain
