"""LAMB as in the paper's implementation, correct for whole parameters and for ZeRO's flat slices alike.

DeepSpeed hands an optimiser not parameters but flat slices of them all, cut anywhere. A trust ratio taken over
such a slice is wrong (measured: steps off by 37 % at ZeRO-1/2, a thousandfold at ZeRO-3). Here an optimiser tensor
carries a *layout*: which stretch of it belongs to which parameter. Norms are summed per stretch, completed over the
ranks by one all-reduce, and applied per stretch. :func:`bind_lamb` finds the stretches in DeepSpeed's private
attributes (hence deepspeed<0.20, and the parity tests of every stage).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from filip.common.errors import UserError

_CHUNK = 1 << 16


@dataclass(frozen=True)
class SliceLayout:
    """Return which parameters are where in an optimiser tensor of ``sum(sizes)`` elements.

    ``sizes[k]`` consecutive elements belong to parameter ``owners[k]``, an index into ``names``, or to none (-1:
    padding). ``names`` is the same on all ranks of ``group``; a rank may hold no piece of a parameter.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    owners: tuple[int, ...]
    group: Any = None  # process group over which pieces of a parameter are spread
    partitioned: bool = True  # False: every rank holds whole parameters, nothing to add up

    def pieces(self, flat: Tensor) -> list[Tensor]:
        """Return the stretches of ``flat`` that belong to a parameter, in the order of :attr:`owned`."""
        stretches = flat.split(list(self.sizes))
        return [stretch for stretch, owner in zip(stretches, self.owners, strict=True) if owner >= 0]

    @property
    def owned(self) -> list[int]:
        return [owner for owner in self.owners if owner >= 0]


MAX_TRUST_NORM = 10.0  # as the implementation that the paper names clamps a parameter's norm


class Lamb(Optimizer):
    """Layer-wise adaptive moments (You et al., 2020), in the variant of the paper:

        m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g²          no bias correction
        u = m / (sqrt(v) + eps) + decay * w                     eps outside the root, decay inside the norm
        w = w - lr * min(|w|, MAX_TRUST_NORM) / |u| * u         ratio 1 if either norm is 0

    Norms are over a whole parameter. Tensors without a layout are whole parameters.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-4,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.layouts: dict[Tensor, SliceLayout] = {}
        self.report: dict[str, Tensor] = {}

    def bind(self, layouts: dict[Tensor, SliceLayout]) -> None:
        """Set the content of each optimiser tensor. ZeRO replaces the tensors, so bind again after every load."""
        for tensor, layout in layouts.items():
            if sum(layout.sizes) != tensor.numel():
                raise RuntimeError(f"layout of {sum(layout.sizes)} elements for a tensor of {tensor.numel()}")
        self.layouts = dict(layouts)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step of every group. DeepSpeed calls it group by group, on all ranks in the same order."""
        if closure is not None:
            raise ValueError("Lamb takes no closure")
        for group in self.param_groups:
            for tensor in group["params"]:
                layout = self.layouts.get(tensor)
                if layout is None:
                    if self.layouts:
                        raise RuntimeError("an optimiser tensor has no layout: bind() was not called after a load")
                    layout = SliceLayout(("",), (tensor.numel(),), (0,), partitioned=False)
                if tensor.grad is not None:
                    self._step_tensor(group, tensor, layout)

    def _step_tensor(self, group: dict[str, Any], weight: Tensor, layout: SliceLayout) -> None:
        assert weight.grad is not None
        flat, grad = weight.detach().view(-1), weight.grad.detach().view(-1)
        for stretch, owner in zip(grad.split(list(layout.sizes)), layout.owners, strict=True):
            if owner < 0:  # padding, where ZeRO-3 leaves uninitialised memory
                stretch.zero_()
        state = self.state[weight]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(flat).view_as(weight)
            state["exp_avg_sq"] = torch.zeros_like(flat).view_as(weight)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        exp_avg, exp_avg_sq = state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1)
        raw, skip = grad, getattr(self, "found_inf", None)
        if skip is None:
            exp_avg.lerp_(grad, 1 - beta1)
            exp_avg_sq.mul_(beta2)
        else:  # nothing of a step that is left out may enter the moments; the host does not know whether it is
            grad = grad.where(skip == 0, 0)
            exp_avg.lerp_(grad, torch.where(skip == 0, 1 - beta1, 0.0))
            exp_avg_sq.mul_(torch.where(skip == 0, beta2, 1.0))
        exp_avg_sq.addcmul_(grad, grad, value=1 - beta2)
        update = exp_avg / exp_avg_sq.sqrt().add_(group["eps"])
        if group["weight_decay"]:
            update.add_(flat, alpha=group["weight_decay"])
        norms = parameter_norms([flat, update, raw], layout)
        weight_norm, update_norm = norms[0].clamp(max=MAX_TRUST_NORM), norms[1]
        defined = (weight_norm > 0) & (update_norm > 0)
        ratio = torch.where(defined, weight_norm / update_norm, torch.ones_like(update_norm))
        factors = -group["lr"] * (ratio if skip is None else ratio * (1 - skip))
        if layout.owned:
            scaled = layout.pieces(update)
            torch._foreach_mul_(scaled, list(factors[layout.owned].unbind()))
            torch._foreach_add_(layout.pieces(flat), scaled)
        # for telemetry, on the device: reading them would wait for it
        table = torch.cat([norms, ratio[None]])
        self.report.update({name: table[:, i] for i, name in enumerate(layout.names)})

    def norms(self) -> dict[str, dict[str, float]]:
        """Return {parameter: {weight, update, gradient, trust_ratio}} of the last step: norms over all ranks."""
        kinds = ("weight", "update", "gradient", "trust_ratio")
        if not self.report:
            return {}
        table = torch.stack(list(self.report.values())).tolist()  # one wait for the device
        return {name: dict(zip(kinds, row, strict=True)) for name, row in zip(self.report, table, strict=True) if name}


def parameter_norms(tensors: list[Tensor], layout: SliceLayout) -> Tensor:
    """Return L2 norms [len(tensors), len(layout.names)] of whole parameters, completed over the layout's ranks."""
    pieces = [piece for tensor in tensors for piece in layout.pieces(tensor)]
    squares = tensors[0].new_zeros(len(tensors), len(layout.names))
    if pieces:
        parts = _norms(pieces).view(len(tensors), -1).square()
        squares.index_add_(1, torch.tensor(layout.owned, device=squares.device), parts)
    if layout.partitioned:
        dist.all_reduce(squares, group=layout.group)
    return squares.sqrt()


def _norms(pieces: list[Tensor]) -> Tensor:
    """Return the L2 norms of ``pieces``, [len(pieces)] float32."""
    if pieces[0].device.type != "cpu":
        return torch.stack(torch._foreach_norm(pieces)).float()
    # torch's own norm is off by 1e-5 for an embedding table here, and slow in float64; dot products are neither.
    squares = [torch.stack([torch.dot(part, part) for part in p.split(_CHUNK)]).double().sum() for p in pieces]
    return torch.stack(squares).sqrt().float()


# --- where DeepSpeed keeps each parameter


def bind_lamb(engine: Any, lamb: Lamb) -> None:
    """Tell ``lamb`` what the tensors hold that ``engine`` gave it; call it after ``initialize`` and every load.

    Raises UserError where whole-parameter norms cannot be computed.
    """
    wrapper, names = engine.optimizer, {id(parameter): name for name, parameter in engine.module.named_parameters()}
    if wrapper is lamb:
        whole = [tensor for group in lamb.param_groups for tensor in group["params"]]
        lamb.bind({t: SliceLayout((names[id(t)],), (t.numel(),), (0,), partitioned=False) for t in whole})
        return
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
    dist.all_reduce(totals, group=layout.group)
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
    rank = dist.get_rank(wrapper.dp_process_group)
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
