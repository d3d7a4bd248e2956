"""Local response normalization: schemas, shape functions and gradients of the operator (paper 3.3).

The kernels are in `csrc`; where there is none for a device, `reference` serves.
"""

import math
from collections.abc import Callable
from functools import partial
from numbers import Integral
from typing import Any

import torch

from cuda_ext import library, reference

_NAME = "local_response_norm"
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def local_response_norm(
    x: torch.Tensor, *, n: int, k: float, alpha: float, beta: float, towers: int = 1
) -> torch.Tensor:
    """Divides each activation by a power of the activity of its neighboring channels (paper 3.3).

        y[c] = x[c] / (k + alpha * sum over c - n // 2 <= j <= c + n // 2 of x[j] ** 2) ** beta

    The window is cut off at the first and the last channel, and never crosses into another tower.
    Unlike `torch.nn.functional.local_response_norm`, alpha multiplies the plain sum, as in the
    paper: torch's divides it by n. Sums are in float32, or in float64 for float64. The result does
    not depend on the number of threads; on one processor or device it is the same bit for bit.

    Args:
        x: (N, C, ...), float32, float64, bfloat16 or float16, any strides; tower t has the t-th of
            `towers` equal parts of the channels.
        n: width of the window, odd; it may be larger than the number of channels.
        k, alpha, beta: of the formula, finite; k > 0, alpha >= 0 and beta >= 0, so that the base
            is positive.
        towers: number of groups of channels that do not see each other.

    Returns:
        A tensor of the shape and type of `x`, without gaps: channels last where x is (one value of
        a pixel's channels beside the next in memory, 4 or 5 dimensions), else NCHW.

    Raises:
        ValueError: an argument is outside of these rules.
    """
    parameters = checked_letters(_NAME, x, n=n, k=k, alpha=alpha, beta=beta, towers=towers)
    result: torch.Tensor = torch.ops.replica.local_response_norm(x, *parameters)
    return result


def local_response_norm_out(
    x: torch.Tensor,
    *,
    n: int,
    k: float,
    alpha: float,
    beta: float,
    towers: int = 1,
    out: torch.Tensor,
) -> torch.Tensor:
    """`local_response_norm` into a given tensor, in place and without a gradient.

    Args:
        x, n, k, alpha, beta, towers: as in `local_response_norm`.
        out: of the shape, type, device and memory format that `local_response_norm` would return;
            it shares no memory with `x`.

    Returns:
        `out`.

    Raises:
        ValueError: an argument is outside of these rules, or a gradient would be needed.
    """
    parameters = checked_letters(_NAME, x, n=n, k=k, alpha=alpha, beta=beta, towers=towers)
    if torch.is_grad_enabled() and (x.requires_grad or out.requires_grad):
        raise ValueError(
            "local_response_norm: expected tensors without a gradient beside out, got one that "
            "requires it: leave out away, or use torch.no_grad()"
        )
    _check_out(_dense(x), out)
    torch.ops.replica.local_response_norm_out(x, *parameters, out=out)
    return out


def checked_letters(
    name: str, x: torch.Tensor, *, n: int, k: float, alpha: float, beta: float, towers: int
) -> tuple[int, float, float, float, int]:
    """The parameters as registered operators take them; NumPy's numbers are welcome.

    Raises:
        ValueError: an argument is outside of the rules of `local_response_norm`, or REPLICA_EXT is.
    """
    _expected = partial(library.expected, name)
    if library.SWITCH_PROBLEM:
        raise ValueError(library.SWITCH_PROBLEM)
    if x.dim() < 2:
        raise _expected("x of (N, C, ...)", tuple(x.shape))
    if x.dtype not in DTYPES:
        raise _expected("float32, float64, bfloat16 or float16", x.dtype)
    if not isinstance(n, Integral) or n < 1 or n % 2 == 0:
        raise _expected("an odd n >= 1", n)
    if not 0 < k < math.inf:
        raise _expected("a finite k > 0", k)
    if not 0 <= alpha < math.inf:
        raise _expected("a finite alpha >= 0", alpha)
    if not 0 <= beta < math.inf:
        raise _expected("a finite beta >= 0", beta)
    if not isinstance(towers, Integral) or towers < 1 or x.shape[1] % towers:
        raise _expected(
            "channels divisible by towers", f"{x.shape[1]} channels and {towers} towers"
        )
    return int(n), float(k), float(alpha), float(beta), int(towers)


def _check_out(dense: torch.Tensor, out: torch.Tensor) -> None:
    if out.device != dense.device:
        raise library.expected(_NAME, "x and out on one device", f"{dense.device} and {out.device}")
    if out.dtype != dense.dtype or out.shape != dense.shape:
        raise library.expected(
            _NAME, f"out of {dense.dtype}, {tuple(dense.shape)}", f"{out.dtype}, {tuple(out.shape)}"
        )
    if dense.numel() and any(
        size > 1 and a != b
        for size, a, b in zip(dense.shape, dense.stride(), out.stride(), strict=True)
    ):
        raise library.expected(_NAME, f"out of strides {dense.stride()}", out.stride())


def _memory_format(x: torch.Tensor) -> torch.memory_format:
    """The format that is kept; the twin of `format_of` in csrc."""
    if x.dim() in (4, 5) and x.stride(1) == 1 and x.shape[1] > 1:
        return torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return torch.contiguous_format


def _dense(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=_memory_format(x))


def _plain(compute: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
    """Calls a function of `reference` with the arguments of a registered operator."""
    *tensors, n, k, alpha, beta, towers = arguments
    return compute(*tensors, n=n, k=k, alpha=alpha, beta=beta, towers=towers)


def _register(name: str, tensors: str, compute: Callable[..., torch.Tensor]) -> None:
    """Registers an operator and its twin that writes into `out`.

    `compute` serves where no compiled kernel is registered for the device of x, the last of the
    `tensors`.
    """

    def new_result(*arguments: Any) -> torch.Tensor:
        *_, x, _, _, _, _, _ = arguments
        return torch.empty_like(_dense(x))

    def no_result(*arguments: Any, out: torch.Tensor) -> None:
        pass

    def compute_into(*arguments: Any, out: torch.Tensor) -> None:
        out.copy_(_plain(compute, *arguments))

    def compute_new(*arguments: Any) -> torch.Tensor:
        return new_result(*arguments).copy_(_plain(compute, *arguments))

    inputs = f"{tensors}, int n, float k, float alpha, float beta, int towers"
    for operator, schema, plain, shape in (
        (name, f"({inputs}) -> Tensor", compute_new, new_result),
        (f"{name}_out", f"({inputs}, *, Tensor(a!) out) -> ()", compute_into, no_result),
    ):
        torch.library.define(operator, schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(operator, "default", plain)
        torch.library.register_fake(operator, shape)


_FORWARD, _BACKWARD = "replica::local_response_norm", "replica::local_response_norm_backward"
_register(_FORWARD, "Tensor x", reference.local_response_norm)
_register(_BACKWARD, "Tensor gradient, Tensor x", reference.local_response_norm_backward)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    # Of the forward only x: recomputing the sums costs less than reading them back from memory.
    ctx.save_for_backward(*inputs[:-5])
    ctx.parameters = inputs[-5:]


def _gradient(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    (x,) = ctx.saved_tensors
    result = torch.ops.replica.local_response_norm_backward(gradient, x, *ctx.parameters)
    return result, *[None] * len(ctx.parameters)


def _second_gradient(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    # Rare, so the plain version's own derivative serves.
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        result = _plain(reference.local_response_norm_backward, *inputs, *ctx.parameters)
        gradients = torch.autograd.grad(result, inputs, gradient)
    return *gradients, *[None] * len(ctx.parameters)


torch.library.register_autograd(_FORWARD, _gradient, setup_context=_save)
torch.library.register_autograd(_BACKWARD, _second_gradient, setup_context=_save)
