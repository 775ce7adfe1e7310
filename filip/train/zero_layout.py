"""Find which stretch of DeepSpeed's flat optimiser tensors belongs to which parameter.

The only place that reads or sets DeepSpeed's private attributes (hence deepspeed<0.20, and the parity tests of every
stage).
"""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from filip.common.errors import UserError
from filip.train.lamb import Lamb, SliceLayout


def without_builds(deepspeed: Any) -> None:
    """Keep DeepSpeed from building its shared-memory op, which speeds up inference only and takes 33 seconds of C++.

    A build that was killed hangs later runs. Nothing else is looked up there, and DeepSpeed would find out first what
    all ops need, with a compiler as well.
    """
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False


def limit_groups(minutes: float) -> None:
    """Give the groups that DeepSpeed makes a time-out: they would wait for torch's 30 minutes."""
    import deepspeed.comm

    deepspeed.comm.comm.cdb.new_group = partial(torch.distributed.new_group, timeout=timedelta(minutes=minutes))


def let_scale_fall(engine: Any) -> None:
    """Let the watchdog stop a run where the loss scale reaches its minimum, with a message."""
    scaler: Any = getattr(engine.optimizer, "loss_scaler", None)
    if hasattr(scaler, "raise_error_at_min_scale"):
        scaler.raise_error_at_min_scale = False


def bind_lamb(engine: Any, lamb: Lamb) -> None:
    """Tell ``lamb`` what the tensors hold that ``engine`` gave it; call it after ``initialize`` and every load.

    Raises UserError where whole-parameter norms cannot be computed.
    """
    wrapper = engine.optimizer
    if wrapper is lamb:
        lamb.bind(_whole(engine.module, lamb))
        return
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    kind = type(wrapper).__name__
    if getattr(wrapper, "optimizer", None) is not lamb:
        raise UserError(f"DeepSpeed wrapped LAMB into {kind} in a way this version does not know; use zero_stage 1-3")
    if hasattr(wrapper, "single_partition_of_fp32_groups"):
        layouts = _stage_1_and_2(wrapper, names)
    elif hasattr(wrapper, "fp32_partitioned_groups_flat"):
        layouts = _stage_3(wrapper, names)
    else:
        raise UserError(
            f"LAMB cannot find whole parameters in DeepSpeed's {kind}; choose zero_stage 1, 2 or 3, "
            "or optimizer.name=adamw"
        )
    _check_complete(layouts, engine.module)
    lamb.bind(layouts)


def _check_complete(layouts: dict[Tensor, SliceLayout], module: nn.Module) -> None:
    """Raise UserError unless the stretches of all ranks add up to each parameter: one all-reduce.

    They would not if another version of DeepSpeed gave an attribute that is read here another meaning.
    """
    sizes = {name: int(getattr(p, "ds_numel", p.numel())) for name, p in module.named_parameters()}
    held = dict.fromkeys((name for layout in layouts.values() for name in layout.names), 0)
    for layout in layouts.values():
        for size, owner in zip(layout.sizes, layout.owners, strict=True):
            if owner >= 0:
                held[layout.names[owner]] += size
    flat, layout = next(iter(layouts.items()))
    totals = torch.tensor(list(held.values()), device=flat.device)
    torch.distributed.all_reduce(totals, group=layout.group)
    for name, total in zip(held, totals.tolist(), strict=True):
        if total != sizes[name]:
            raise UserError(
                f"LAMB found {total} of the {sizes[name]} elements of {name} in the tensors of DeepSpeed "
                f"{version('deepspeed')}, so its trust ratios would be wrong; install the version that pyproject.toml "
                "names, or choose optimizer.name=adamw"
            )


def check_deepspeed_settings(settings: dict[str, Any]) -> None:
    """Refuse the DeepSpeed settings under which LAMB's norms would be wrong, or were never checked."""
    zero = settings.get("zero_optimization", {})
    refused = {
        "round_robin_gradients": "it breaks the mapping from slices to parameters",
        "offload_optimizer": "LAMB was never checked with offloading",
        "offload_param": "LAMB was never checked with offloading",
        "mics_shard_size": "parameters are spread over a part of the ranks only",
        "zenflow": "it steps parts of a parameter at different times",
    }
    for key, reason in refused.items():
        value = zero.get(key)
        inactive = value in (None, False, -1) or (isinstance(value, dict) and value.get("device") == "none")
        if not inactive:
            raise UserError(
                f"zero_optimization.{key}={value} does not go with LAMB: {reason}; "
                "remove it, or choose optimizer.name=adamw"
            )


def _whole(module: nn.Module, lamb: Lamb) -> dict[Tensor, SliceLayout]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        tensor: SliceLayout((names[id(tensor)],), (tensor.numel(),), (0,), partitioned=False)
        for group in lamb.param_groups
        for tensor in group["params"]
    }


def _stage_1_and_2(wrapper: Any, names: dict[int, str]) -> dict[Tensor, SliceLayout]:
    layouts = {}
    for i, flat in enumerate(wrapper.single_partition_of_fp32_groups):
        parameters = wrapper.bit16_groups[i]
        stretches = []
        for owner, parameter in enumerate(parameters):
            if parameter._hp_mapping is not None:
                address = parameter._hp_mapping.get_hp_fragment_address()
                stretches.append((int(address.start), int(address.numel), owner))
        layouts[flat] = _layout(flat, parameters, names, stretches, wrapper.real_dp_process_group[i])
    return layouts


def _stage_3(wrapper: Any, names: dict[int, str]) -> dict[Tensor, SliceLayout]:
    layouts = {}
    rank = torch.distributed.get_rank(wrapper.dp_process_group)
    for i, flat in enumerate(wrapper.fp32_partitioned_groups_flat):
        parameters = wrapper.fp16_groups[i]
        stretches = []
        for owner, parameter in enumerate(parameters):
            group, start, share = wrapper.grad_position[wrapper.get_param_id(parameter)]
            assert group == i
            # Each rank's share is rounded up, so the last ranks hold less of the parameter, or nothing of it.
            valid = min(max(parameter.ds_numel - rank * share, 0), share)
            if valid:
                stretches.append((int(start), int(valid), owner))
        layouts[flat] = _layout(flat, parameters, names, stretches, wrapper.dp_process_group)
    return layouts


def _layout(
    flat: Tensor, parameters: list[Tensor], names: dict[int, str], stretches: list[tuple[int, int, int]], group: Any
) -> SliceLayout:
    """Make a layout from (start, numel, owner); what they leave open is padding."""
    sizes, owners, position = [], [], 0
    for start, numel, owner in sorted(stretches):
        if start < position:
            raise RuntimeError(f"stretches overlap at element {start} of {flat.numel()}")
        if start > position:
            sizes.append(start - position)
            owners.append(-1)
        sizes.append(numel)
        owners.append(owner)
        position = start + numel
    if position < flat.numel():
        sizes.append(flat.numel() - position)
        owners.append(-1)
    return SliceLayout(tuple(names[id(p)] for p in parameters), tuple(sizes), tuple(owners), group)
