"""One step of gradient descent with momentum, all tensors at once: schema and checks (paper 5).

The loops are in `csrc`; where none is built for a device, `reference` serves.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from cuda_ext import library, reference

SCHEMA = (
    "(Tensor(a!)[] weights, Tensor(b!)[] velocities, Tensor[] gradients, Tensor learning_rates, "
    "float momentum, Tensor weight_decays) -> ()"
)
DTYPES = (torch.float32, torch.float64)
Numbers = Sequence[float] | torch.Tensor


def momentum_sgd_(
    weights: Sequence[torch.Tensor],
    velocities: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    *,
    learning_rates: Numbers,
    momentum: float,
    weight_decays: Numbers,
) -> None:
    """Updates parameters in place, reading and writing each value once (paper 5).

        velocity <- momentum * velocity - weight_decay * learning_rate * weight
                    - learning_rate * gradient
        weight <- weight + velocity

    The learning rate is inside the velocity, unlike in `torch.optim.SGD`. A parameter whose rate
    is zero is frozen, as in the source: it and its velocity stay. The result does not depend on
    the number of threads. On a GPU, all parameters are one launch.

    Args:
        weights, velocities: float32 or float64, all of one type and device, of any shape, without
            gaps in memory; changed.
        gradients: each of the shape, type and device of its weight, any strides.
        learning_rates, weight_decays: one finite number per parameter: a sequence, or a float64
            tensor on the device of the weights, which a captured graph reads anew each time.
        momentum: of the formula, finite.

    Raises:
        ValueError: an argument is outside of these rules.
    """
    if library.SWITCH_PROBLEM:
        raise ValueError(library.SWITCH_PROBLEM)
    number = len(weights)
    if len(velocities) != number or len(gradients) != number:
        raise _expected(
            f"{number} velocities and gradients, one of each weight",
            f"{len(velocities)} and {len(gradients)}",
        )
    if not math.isfinite(momentum):
        raise _expected("a finite momentum", momentum)
    if not weights:
        return
    dense = [
        _checked(*tensors, like=weights[0])
        for tensors in zip(weights, velocities, gradients, strict=True)
    ]
    torch.ops.replica.momentum_sgd_(
        list(weights),
        list(velocities),
        dense,
        _numbers("learning_rate", learning_rates, weights),
        momentum,
        _numbers("weight_decay", weight_decays, weights),
    )


def _checked(
    weight: torch.Tensor, velocity: torch.Tensor, gradient: torch.Tensor, *, like: torch.Tensor
) -> torch.Tensor:
    """The gradient with the strides of the weight."""
    if weight.dtype not in DTYPES:
        raise _expected("float32 or float64", weight.dtype)
    if (weight.dtype, weight.device) != (like.dtype, like.device):
        raise _expected(f"weights of {like.dtype}, {like.device}", _kind_of(weight))
    kind = (weight.shape, weight.dtype, weight.device)
    for name, tensor in (("velocity", velocity), ("gradient", gradient)):
        if (tensor.shape, tensor.dtype, tensor.device) != kind:
            raise _expected(f"a {name} of {_kind_of(weight)}", _kind_of(tensor))
    last = sum(
        (size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True)
    )
    if weight.numel() and last + 1 != weight.numel():
        raise _expected("a weight without gaps in memory", f"strides {weight.stride()}")
    if velocity.stride() != weight.stride():
        raise _expected(f"a velocity of strides {weight.stride()}", velocity.stride())
    if gradient.stride() != weight.stride():
        return torch.empty_like(weight).copy_(gradient)
    return gradient


def _numbers(name: str, numbers: Numbers, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """The rates or decays as the registered operator takes them."""
    device = weights[0].device
    if isinstance(numbers, torch.Tensor):
        kind = (numbers.shape, numbers.dtype, numbers.device)
        if kind != ((len(weights),), torch.float64, device):
            rule = f"{name}s of ({len(weights)},), torch.float64, {device}"
            raise _expected(rule, _kind_of(numbers))
        return numbers
    if len(numbers) != len(weights):
        raise _expected(f"{len(weights)} {name}s, one of each weight", len(numbers))
    for value in numbers:
        if not math.isfinite(value):
            raise _expected(f"a finite {name}", value)
    return torch.tensor(numbers, dtype=torch.float64, device=device)


def _kind_of(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)}, {tensor.dtype}, {tensor.device}"


def _expected(rule: str, got: object) -> ValueError:
    return ValueError(f"momentum_sgd_: expected {rule}, got {got}")


_NAME = "replica::momentum_sgd_"
torch.library.define(_NAME, SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))
torch.library.impl(_NAME, "default")(reference.momentum_sgd_)


@torch.library.register_fake(_NAME)
def _no_result(*arguments: Any) -> None:
    pass
