"""ReLU, local response normalization and max pooling in one pass (paper 3.1, 3.3, 3.4).

Schema, shape function and gradient; the kernels are in `csrc`, and where there is none for a
device, `reference` serves.
"""

from typing import Any

import torch

from cuda_ext import library, reference
from cuda_ext.local_response_norm import checked_letters
from cuda_ext.max_pool2d import checked_windows, dense_like, pooled_like

ORDERS = ("relu-norm-pool", "norm-pool-relu")
LARGEST_WINDOW = 4  # a bit of int16 for each place


def relu_lrn_pool(
    x: torch.Tensor,
    *,
    n: int,
    k: float,
    alpha: float,
    beta: float,
    towers: int = 1,
    window: int = 3,
    stride: int = 2,
    order: str = "relu-norm-pool",
    ties: str = "first",
) -> torch.Tensor:
    """Three layers in one pass over memory, forward, and one backward (paper 3.1, 3.3, 3.4).

    The result is that of `relu`, `local_response_norm` and `max_pool2d` one after the other, bit
    for bit: in 16 bits each step is rounded. The gradient differs from theirs by roundings only, in
    float32 and float64 not even so. It needs x and 2 bytes for each window, no normalized maps.

    Args:
        x: (N, C, H, W), float32, float64, bfloat16 or float16, any strides.
        n, k, alpha, beta, towers: as in `local_response_norm`.
        window: rows and columns of a window of the pooling, 1 to 4 and to the smaller of H and W.
        stride, ties: as in `max_pool2d`.
        order: "relu-norm-pool", as in the paper, or "norm-pool-relu", as in the first layer of the
            source of 2012.

    Returns:
        As `max_pool2d` does.

    Raises:
        ValueError: an argument is outside of these rules.
    """
    windows = checked_windows("relu_lrn_pool", x, window=window, stride=stride, ties=ties)
    if window > LARGEST_WINDOW:
        raise library.expected("relu_lrn_pool", f"a window of 1 to {LARGEST_WINDOW}", window)
    if order not in ORDERS:
        raise library.expected("relu_lrn_pool", " or ".join(ORDERS), order)
    letters = checked_letters("relu_lrn_pool", x, n=n, k=k, alpha=alpha, beta=beta, towers=towers)
    *place, all_ties = windows
    keeps = torch.is_grad_enabled() and x.requires_grad
    y: torch.Tensor
    y, _ = torch.ops.replica.relu_lrn_pool(x, *letters, *place, order == ORDERS[0], all_ties, keeps)
    return y


_FORWARD, _BACKWARD = "replica::relu_lrn_pool", "replica::relu_lrn_pool_backward"
_LETTERS = "int n, float k, float alpha, float beta, int towers"
_WINDOWS = "int window, int stride, bool relu_first"
torch.library.define(
    _FORWARD,
    f"(Tensor x, {_LETTERS}, {_WINDOWS}, bool all_ties, bool keeps) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    _BACKWARD,
    f"(Tensor gradient, Tensor x, Tensor winners, {_LETTERS}, {_WINDOWS}) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_NAMES = ("n", "k", "alpha", "beta", "towers", "window", "stride", "relu_first", "all_ties")


@torch.library.impl(_FORWARD, "default")
def _plain(x: torch.Tensor, *numbers: Any) -> tuple[torch.Tensor, torch.Tensor]:
    y, winners = _shape(x, *numbers)
    named: dict[str, Any] = dict(zip(_NAMES, numbers, strict=False))
    result, places = reference.relu_lrn_pool(x, **named)
    y.copy_(result)
    if numbers[-1]:
        winners.copy_(places)
    return y, winners


@torch.library.impl(_BACKWARD, "default")
def _plain_backward(
    gradient: torch.Tensor, x: torch.Tensor, winners: torch.Tensor, *numbers: Any
) -> torch.Tensor:
    named: dict[str, Any] = dict(zip(_NAMES, numbers, strict=False))
    result = reference.relu_lrn_pool_backward(gradient, x, winners, **named)
    return dense_like(x).copy_(result)


@torch.library.register_fake(_FORWARD)
def _shape(x: torch.Tensor, *numbers: Any) -> tuple[torch.Tensor, torch.Tensor]:
    *_, window, stride, _, _, keeps = numbers
    if keeps:
        winners = pooled_like(x, window, stride, torch.int16)
    else:
        winners = x.new_empty((0,), dtype=torch.int16)
    return pooled_like(x, window, stride), winners


@torch.library.register_fake(_BACKWARD)
def _shape_backward(gradient: torch.Tensor, x: torch.Tensor, *others: Any) -> torch.Tensor:
    return dense_like(x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, *numbers, _, keeps = inputs
    ctx.save_for_backward(x, output[1])
    ctx.numbers, ctx.keeps = numbers, keeps


def _gradient(ctx: Any, gradient: torch.Tensor, of_winners: None) -> tuple[Any, ...]:
    if not ctx.keeps:
        raise RuntimeError("relu_lrn_pool: expected keeps=True where a gradient is asked for")
    x, winners = ctx.saved_tensors
    result = torch.ops.replica.relu_lrn_pool_backward(gradient, x, winners, *ctx.numbers)
    return result, *[None] * (len(ctx.numbers) + 2)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.numbers = inputs[3:]


def _second_gradient(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    # Rare, so the plain version's own derivative serves.
    *tensors, winners = ctx.saved_tensors
    named = dict(zip(_NAMES, ctx.numbers, strict=False))
    with torch.enable_grad():
        incoming, x = (tensor.detach().requires_grad_() for tensor in tensors)
        result = reference.relu_lrn_pool_backward(incoming, x, winners, **named)
        gradients = torch.autograd.grad(result, (incoming, x), gradient)
    return *gradients, *[None] * (len(ctx.numbers) + 1)


torch.library.register_autograd(_FORWARD, _gradient, setup_context=_save)
torch.library.register_autograd(_BACKWARD, _second_gradient, setup_context=_save_backward)
