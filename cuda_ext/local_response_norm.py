"""Local response normalisation: schema, shape function and gradient of the operator (paper 3.3)."""

from typing import Any

import torch

from cuda_ext import reference
from cuda_ext.library import compiled_state

# Types that the compiled code takes; the others go through the reference, in float32.
COMPILED_DTYPES = (torch.float32, torch.float64)


def local_response_norm(
    x: torch.Tensor, *, n: int, k: float, alpha: float, beta: float, towers: int = 1
) -> torch.Tensor:
    """Divides each activation by a power of the activity of its neighbour channels (paper 3.3).

        y[c] = x[c] / (k + alpha * sum over c - n // 2 <= j <= c + n // 2 of x[j] ** 2) ** beta

    The window is cut off at the first and the last channel, and never crosses into another tower.
    Unlike `torch.nn.functional.local_response_norm`, alpha multiplies the plain sum, as in the
    paper: torch's divides it by n. Sums are in float32, or in float64 for float64.

    Args:
        x: (N, C, ...), floating point, any strides; tower t has the t-th of `towers` equal parts of
            the channels.
        n: width of the window, odd; it may be larger than the number of channels.
        k, alpha, beta: of the formula; k > 0 and alpha >= 0, so that the base is positive.
        towers: number of groups of channels that do not see each other.

    Returns:
        A tensor of the shape, type and memory format of `x`.

    Raises:
        ValueError: an argument is outside of these rules.
    """
    if x.dim() < 2:
        raise ValueError(f"local_response_norm: expected x of (N, C, ...), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"local_response_norm: expected a floating-point x, got {x.dtype}")
    if n < 1 or n % 2 == 0:
        raise ValueError(f"local_response_norm: expected an odd n >= 1, got {n}")
    if not k > 0:
        raise ValueError(f"local_response_norm: expected k > 0, got {k}")
    if not alpha >= 0:
        raise ValueError(f"local_response_norm: expected alpha >= 0, got {alpha}")
    if towers < 1 or x.shape[1] % towers:
        raise ValueError(
            f"local_response_norm: expected channels divisible by towers, got {x.shape[1]} "
            f"channels and {towers} towers"
        )
    return _forward(x, n, float(k), float(alpha), float(beta), towers)


def _dense(x: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """The tensor without gaps, and whether its channels lie last in memory."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x, not x.is_contiguous()
    return x.contiguous(), False


def _is_compiled(x: torch.Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in COMPILED_DTYPES and compiled_state().is_live


@torch.library.custom_op("replica::local_response_norm", mutates_args=())
def _forward(
    x: torch.Tensor, n: int, k: float, alpha: float, beta: float, towers: int
) -> torch.Tensor:
    x, channels_last = _dense(x)
    out = torch.empty_like(x)
    if _is_compiled(x):
        torch.ops.replica_cpu.local_response_norm_(x, out, n, k, alpha, beta, towers, channels_last)
        return out
    return out.copy_(
        reference.local_response_norm(x, n=n, k=k, alpha=alpha, beta=beta, towers=towers)
    )


@torch.library.custom_op("replica::local_response_norm_backward", mutates_args=())
def _backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    n: int,
    k: float,
    alpha: float,
    beta: float,
    towers: int,
) -> torch.Tensor:
    x, channels_last = _dense(x)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    gradient = gradient.contiguous(memory_format=memory_format)
    out = torch.empty_like(x)
    if _is_compiled(x):
        torch.ops.replica_cpu.local_response_norm_backward_(
            gradient, x, out, n, k, alpha, beta, towers, channels_last
        )
        return out
    return out.copy_(
        reference.local_response_norm_backward(
            gradient, x, n=n, k=k, alpha=alpha, beta=beta, towers=towers
        )
    )


@_forward.register_fake
def _(x: torch.Tensor, n: int, k: float, alpha: float, beta: float, towers: int) -> torch.Tensor:
    return torch.empty_like(_dense(x)[0])


@_backward.register_fake
def _(
    gradient: torch.Tensor,
    x: torch.Tensor,
    n: int,
    k: float,
    alpha: float,
    beta: float,
    towers: int,
) -> torch.Tensor:
    return torch.empty_like(_dense(x)[0])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    # Only x: recomputing the sums costs less than reading them back from memory.
    ctx.save_for_backward(inputs[0])
    ctx.arguments = inputs[1:]


def _autograd(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    (x,) = ctx.saved_tensors
    return _backward(gradient, x, *ctx.arguments), None, None, None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)
