"""One step of gradient descent with momentum in one pass: schema and checks (paper 5).

The loop is in `csrc`; where it is not built, and on a GPU, `reference` serves.
"""

import math
from typing import Any

import torch

from cuda_ext import library, reference

SCHEMA = (
    "(Tensor(a!) weight, Tensor(b!) velocity, Tensor gradient, float learning_rate, "
    "float momentum, float weight_decay) -> ()"
)
DTYPES = (torch.float32, torch.float64)


def momentum_sgd_(
    weight: torch.Tensor,
    velocity: torch.Tensor,
    gradient: torch.Tensor,
    *,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """Updates one parameter in place, reading and writing each value once (paper 5).

        velocity <- momentum * velocity - weight_decay * learning_rate * weight
                    - learning_rate * gradient
        weight <- weight + velocity

    The learning rate is inside the velocity, unlike in `torch.optim.SGD`. The result does not
    depend on the number of threads.

    Args:
        weight, velocity: float32 or float64, any shape, without gaps in memory; changed.
        gradient: of the same shape, type and device, any strides.
        learning_rate, momentum, weight_decay: of the formula, finite.

    Raises:
        ValueError: an argument is outside of these rules.
    """
    if library.SWITCH_PROBLEM:
        raise ValueError(library.SWITCH_PROBLEM)
    kind = (weight.shape, weight.dtype, weight.device)
    for name, tensor in (("velocity", velocity), ("gradient", gradient)):
        if (tensor.shape, tensor.dtype, tensor.device) != kind:
            raise _expected(f"a {name} of {_kind_of(weight)}", _kind_of(tensor))
    if weight.dtype not in DTYPES:
        raise _expected("float32 or float64", weight.dtype)
    numbers = {"learning_rate": learning_rate, "momentum": momentum, "weight_decay": weight_decay}
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise _expected(f"a finite {name}", number)
    last = sum(
        (size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True)
    )
    if weight.numel() and last + 1 != weight.numel():
        raise _expected("a weight without gaps in memory", f"strides {weight.stride()}")
    if velocity.stride() != weight.stride():
        raise _expected(f"a velocity of strides {weight.stride()}", velocity.stride())
    if gradient.stride() != weight.stride():
        gradient = torch.empty_like(weight).copy_(gradient)
    torch.ops.replica.momentum_sgd_(
        weight, velocity, gradient, learning_rate, momentum, weight_decay
    )


def _kind_of(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)}, {tensor.dtype}, {tensor.device}"


def _expected(rule: str, got: object) -> ValueError:
    return ValueError(f"momentum_sgd_: expected {rule}, got {got}")


_NAME = "replica::momentum_sgd_"
torch.library.define(_NAME, SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))


@torch.library.impl(_NAME, "default")
def _plain(*arguments: Any) -> None:
    names = ("learning_rate", "momentum", "weight_decay")
    reference.momentum_sgd_(*arguments[:3], **dict(zip(names, arguments[3:], strict=True)))


@torch.library.register_fake(_NAME)
def _no_result(*arguments: Any) -> None:
    pass
