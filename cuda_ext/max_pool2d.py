"""Overlapping max pooling with a rule for ties: schema, shape function and gradient (paper 3.4).

The kernels are in `csrc`; where there is none for a device, `reference` serves.
"""

from numbers import Integral
from typing import Any

import torch

from cuda_ext import library, reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TIES = ("first", "all")


def max_pool2d(x: torch.Tensor, *, window: int, stride: int, ties: str = "first") -> torch.Tensor:
    """The maximum of each window of a map (paper 3.4).

    Windows lie wholly on the map, the first in its corner. Unlike in
    `torch.nn.functional.max_pool2d`, several equal maxima may each get the whole gradient of their
    window, as in the source of 2012. A NaN is a maximum; it is equal to nothing, so where `ties` is
    "all" the gradient of its window goes nowhere.

    Args:
        x: (N, C, H, W), float32, float64, bfloat16 or float16, any strides.
        window: rows and columns of a window, 1 to the smaller of H and W.
        stride: rows and columns between windows, at least 1.
        ties: "first": the gradient goes to the first of equal maxima, row by row, as in PyTorch;
            "all": to each of them.

    Returns:
        (N, C, (H - window) // stride + 1, (W - window) // stride + 1), of the type of `x`, without
        gaps: channels last where x is, else NCHW.

    Raises:
        ValueError: an argument is outside of these rules.
    """
    parameters = checked_windows("max_pool2d", x, window=window, stride=stride, ties=ties)
    result: torch.Tensor = torch.ops.replica.max_pool2d(x, *parameters)
    return result


def checked_windows(
    name: str, x: torch.Tensor, *, window: int, stride: int, ties: str
) -> tuple[int, int, bool]:
    """Window, stride, and whether all ties get the gradient; of any operator that pools.

    Raises:
        ValueError: an argument is outside of the rules of `max_pool2d`, or REPLICA_EXT is.
    """
    if library.SWITCH_PROBLEM:
        raise ValueError(library.SWITCH_PROBLEM)
    if x.dim() != 4:
        raise library.expected(name, "x of (N, C, H, W)", tuple(x.shape))
    if x.dtype not in DTYPES:
        raise library.expected(name, "float32, float64, bfloat16 or float16", x.dtype)
    rows, columns = x.shape[2:]
    if not isinstance(window, Integral) or not 1 <= window <= min(rows, columns):
        rule = f"a window of 1 to the rows and columns of x, {rows} and {columns}"
        raise library.expected(name, rule, window)
    if not isinstance(stride, Integral) or stride < 1:
        raise library.expected(name, "a stride >= 1", stride)
    if ties not in TIES:
        raise library.expected(name, " or ".join(TIES), ties)
    return int(window), int(stride), ties == "all"


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """The format that is kept; the twin of `format_of` in csrc."""
    is_last = x.stride(1) == 1 and x.shape[1] > 1
    return torch.channels_last if is_last else torch.contiguous_format


def pooled_like(
    x: torch.Tensor, window: int, stride: int, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """An empty tensor for the windows of x, in the format of x."""
    rows, columns = ((size - window) // stride + 1 for size in x.shape[2:])
    return torch.empty(
        (*x.shape[:2], rows, columns),
        dtype=dtype or x.dtype,
        device=x.device,
        memory_format=memory_format(x),
    )


def dense_like(x: torch.Tensor) -> torch.Tensor:
    """An empty tensor of the shape and format of x."""
    return torch.empty_like(x.contiguous(memory_format=memory_format(x)))


_FORWARD, _BACKWARD = "replica::max_pool2d", "replica::max_pool2d_backward"
_PARAMETERS = "int window, int stride, bool all_ties"
for _name, _tensors in ((_FORWARD, "Tensor x"), (_BACKWARD, "Tensor gradient, Tensor x")):
    torch.library.define(
        _name, f"({_tensors}, {_PARAMETERS}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,)
    )


@torch.library.impl(_FORWARD, "default")
def _plain(x: torch.Tensor, window: int, stride: int, all_ties: bool) -> torch.Tensor:
    result = reference.max_pool2d(x, window=window, stride=stride)
    return pooled_like(x, window, stride).copy_(result)


@torch.library.impl(_BACKWARD, "default")
def _plain_backward(
    gradient: torch.Tensor, x: torch.Tensor, window: int, stride: int, all_ties: bool
) -> torch.Tensor:
    result = reference.max_pool2d_backward(
        gradient, x, window=window, stride=stride, all_ties=all_ties
    )
    return dense_like(x).copy_(result)


@torch.library.register_fake(_FORWARD)
def _shape(x: torch.Tensor, window: int, stride: int, all_ties: bool) -> torch.Tensor:
    return pooled_like(x, window, stride)


@torch.library.register_fake(_BACKWARD)
def _shape_backward(gradient: torch.Tensor, x: torch.Tensor, *parameters: Any) -> torch.Tensor:
    return dense_like(x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    # x alone: finding the maxima again costs less than an index for each, of 8 bytes, in memory.
    *tensors, window, stride, all_ties = inputs
    ctx.save_for_backward(tensors[-1])
    ctx.parameters = window, stride, all_ties


def _gradient(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    (x,) = ctx.saved_tensors
    result = torch.ops.replica.max_pool2d_backward(gradient, x, *ctx.parameters)
    return result, None, None, None


def _second_gradient(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    # Rare, so the plain version's own derivative serves; x only chooses, and has none.
    (x,) = ctx.saved_tensors
    window, stride, all_ties = ctx.parameters
    rows, columns = ((size - window) // stride + 1 for size in x.shape[2:])
    with torch.enable_grad():
        incoming = x.new_zeros((*x.shape[:2], rows, columns)).requires_grad_()
        result = reference.max_pool2d_backward(
            incoming, x.detach(), window=window, stride=stride, all_ties=all_ties
        )
        (of_incoming,) = torch.autograd.grad(result, incoming, gradient)
    return of_incoming, None, None, None, None


torch.library.register_autograd(_FORWARD, _gradient, setup_context=_save)
torch.library.register_autograd(_BACKWARD, _second_gradient, setup_context=_save)
