"""Train with large batches on few devices: the gradients of a big batch, with the activations of a small one.

A contrastive loss does not split into micro-batches: every pair is a negative of every other. But it
depends on the encoders only through their outputs, which are small. So

  1. encode every micro-batch without a graph and keep the outputs;
  2. take the loss once over all of them, and its gradient with respect to each;
  3. encode every micro-batch again, now with a graph and with the random state of the first time (so that
     dropout draws the same masks), and back-propagate the scalar <outputs, their gradient>.

By the chain rule the sum of step 3 is exactly the gradient of the big batch (Gao et al. 2021, GradCache).
The price is one more forward pass of the encoders.

Plain PyTorch::

    def encode(batch):
        image, text = model.encode_image(batch["pixels"]), model.encode_text(batch["ids"], batch["lengths"])
        return image, text.tokens, text.lengths, model.scale().reshape(1)

    def loss(image, tokens, lengths, scale):
        similarity = distributed_late_interaction(image, tokens, lengths)
        return contrastive_loss(similarity, scale.mean(), offset=offset)

    output = cached_backward(micro_batches, encode, loss, backward=torch.Tensor.backward)
    optimizer.step()

Under DeepSpeed, ``encode`` calls the engine (so that ZeRO-3 gathers its parameters), the config says
``gradient_accumulation_steps`` = number of micro-batches, and the engine must not divide by it::

    def backward(scalar):
        engine.backward(scalar, scale_wrt_gas=False)
        engine.step()   # counts micro-batches; the optimiser moves on the last

With fp16 loss scaling pass ``loss_scale=engine.optimizer.loss_scale``: step 2 then runs at the same scale
as the big batch would, and its gradients do not underflow.

Whatever belongs to the model rather than to the batch but enters the loss, such as the logit scale, is
returned by ``encode`` too, with shape [1]; ``loss`` receives M equal values, whose mean is the value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

Batch = TypeVar("Batch")


class HasLoss(Protocol):
    """A loss function's result: ContrastiveOutput, or any other tuple with a scalar named ``loss``."""

    @property
    def loss(self) -> Tensor: ...


Output = TypeVar("Output", bound=HasLoss)


def cached_backward(
    micro_batches: Sequence[Batch],
    encode: Callable[[Batch], tuple[Tensor, ...]],
    loss: Callable[..., Output],
    backward: Callable[[Tensor], Any],
    *,
    loss_scale: float = 1.0,
) -> Output:
    """Accumulate the gradients of ``loss`` over all micro-batches as if they were one batch.

    Arguments
        micro_batches  M >= 1 micro-batches; each is given to ``encode`` twice
        encode         outputs of one micro-batch, a tuple of tensors that grow along dimension 0 (tokens
                       [b, n1, d], packed tokens [T, d], lengths [b], vectors [b, d], a scale [1]);
                       integer tensors take no gradient
        loss           called once with the outputs, each concatenated over the micro-batches in order
        backward       called M times with a scalar; must accumulate gradients, not average them
        loss_scale     the gradient of the outputs is computed at this scale, then divided by it in float32

    Returns what ``loss`` returned; tensors of a named tuple are detached. The random state (CPU and current CUDA
    device) afterwards is that after the first encoding. Raises ValueError without a micro-batch, or when
    ``encode`` gives other shapes the second time.
    """
    if not micro_batches:
        raise ValueError("cached_backward needs at least one micro-batch")
    outputs: list[tuple[Tensor, ...]] = []
    states = []
    with torch.no_grad():
        for batch in micro_batches:
            states.append(_random_state())
            outputs.append(tuple(tensor.detach() for tensor in encode(batch)))
    after = _random_state()
    # Inside an outer autocast, weights that were cast without a graph would be used again, and get no gradient.
    torch.clear_autocast_cache()
    result, gradients = _gradients(outputs, loss, loss_scale)
    for batch, state, cached, per_output in zip(micro_batches, states, outputs, gradients, strict=True):
        _restore(state)
        again = encode(batch)
        if [t.shape for t in again] != [t.shape for t in cached]:
            raise ValueError(
                f"encode returned shapes {[list(t.shape) for t in again]} the second time and "
                f"{[list(t.shape) for t in cached]} the first; it must be a function of its micro-batch"
            )
        parts = [(t.to(g.dtype) * g).sum() for t, g in zip(again, per_output, strict=True) if g is not None]
        backward(torch.stack(parts).sum())
    _restore(after)
    return result


def _gradients(
    outputs: list[tuple[Tensor, ...]], loss: Callable[..., Output], loss_scale: float
) -> tuple[Output, list[tuple[Tensor | None, ...]]]:
    """Return the loss over all outputs, and per micro-batch the gradient of each output (None for integers)."""
    whole = [torch.cat(tensors) for tensors in zip(*outputs, strict=True)]
    leaves = [tensor.requires_grad_(tensor.is_floating_point()) for tensor in whole]
    with torch.enable_grad():
        result = loss(*leaves)
        needing = [leaf for leaf in leaves if leaf.requires_grad]
        # zeros for an output that this step's loss does not read
        gradients = torch.autograd.grad(result.loss * loss_scale, needing, materialize_grads=True)
    remaining = iter(gradients)
    split: list[Sequence[Tensor | None]] = []
    for position, leaf in enumerate(leaves):
        counts = [len(tensors[position]) for tensors in outputs]
        if not leaf.requires_grad:
            split.append([None] * len(outputs))
            continue
        gradient = next(remaining)
        wide = torch.promote_types(gradient.dtype, torch.float32)
        split.append((gradient.to(wide) / loss_scale).split(counts))
    return _detached(result), list(zip(*split, strict=True))


def _detached(result: Output) -> Output:
    make = getattr(type(result), "_make", None)
    if make is None:
        return result
    return cast(Output, make(v.detach() if isinstance(v, Tensor) else v for v in cast(tuple[Any, ...], result)))


def _random_state() -> tuple[Tensor, Tensor | None]:
    generator = _accelerator()
    return torch.get_rng_state(), generator.get_rng_state() if generator else None


def _restore(state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        _accelerator().set_rng_state(state[1])


def _accelerator() -> Any:
    """Return torch's module for the accelerator of this machine, such as torch.cuda; None if nothing runs on one."""
    device = torch.accelerator.current_accelerator()
    module = device and torch.get_device_module(device)
    started = getattr(module, "is_initialized", lambda: True)  # torch.mps has no such function
    return module if module and started() else None
