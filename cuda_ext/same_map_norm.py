"""The 2012 source's normalization between neighbors in one map: schema, shapes, gradients.

The kernels are in `csrc`; where there is none for a device, `reference` serves.
"""

from typing import Any

import torch

from cuda_ext import library, reference
from cuda_ext.local_response_norm import checked_letters
from cuda_ext.max_pool2d import dense_like


def same_map_norm(x: torch.Tensor, *, n: int, k: float, alpha: float, beta: float) -> torch.Tensor:
    """Divides each activation by a power of the activity around it in its own map.

        y = x / (k + alpha * sum over the n x n window around the place of x ** 2) ** beta

    Windows are cut off at the border. The paper does not mention it; the source of 2012 has it
    after the second layer's local response normalization, with n = 5, k = 1, alpha = 0.001 / 25 and
    beta = 0.75. Sums are in float32, or in float64 for float64. The result does not depend on the
    number of threads; on one processor or device it is the same bit for bit.

    Args:
        x: (N, C, H, W), float32, float64, bfloat16 or float16, any strides.
        n: rows and columns of a window, odd; it may be larger than the map.
        k, alpha, beta: of the formula, finite; k > 0, alpha >= 0 and beta >= 0.

    Returns:
        A tensor of the shape and type of `x`, without gaps: channels last where x is, else NCHW.

    Raises:
        ValueError: an argument is outside of these rules.
    """
    if x.dim() != 4:
        raise library.expected("same_map_norm", "x of (N, C, H, W)", tuple(x.shape))
    *letters, _ = checked_letters("same_map_norm", x, n=n, k=k, alpha=alpha, beta=beta, towers=1)
    result: torch.Tensor = torch.ops.replica.same_map_norm(x, *letters)
    return result


_FORWARD, _BACKWARD = "replica::same_map_norm", "replica::same_map_norm_backward"
_NAMES = ("n", "k", "alpha", "beta")
for _name, _tensors in ((_FORWARD, "Tensor x"), (_BACKWARD, "Tensor gradient, Tensor x")):
    torch.library.define(
        _name,
        f"({_tensors}, int n, float k, float alpha, float beta) -> Tensor",
        tags=(torch.Tag.pt2_compliant_tag,),
    )


@torch.library.impl(_FORWARD, "default")
def _plain(x: torch.Tensor, *letters: Any) -> torch.Tensor:
    result = reference.same_map_norm(x, **dict(zip(_NAMES, letters, strict=True)))
    return dense_like(x).copy_(result)


@torch.library.impl(_BACKWARD, "default")
def _plain_backward(gradient: torch.Tensor, x: torch.Tensor, *letters: Any) -> torch.Tensor:
    named = dict(zip(_NAMES, letters, strict=True))
    return dense_like(x).copy_(reference.same_map_norm_backward(gradient, x, **named))


@torch.library.register_fake(_FORWARD)
def _shape(x: torch.Tensor, *letters: Any) -> torch.Tensor:
    return dense_like(x)


@torch.library.register_fake(_BACKWARD)
def _shape_backward(gradient: torch.Tensor, x: torch.Tensor, *letters: Any) -> torch.Tensor:
    return dense_like(x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[:-4])
    ctx.letters = inputs[-4:]


def _gradient(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    (x,) = ctx.saved_tensors
    result = torch.ops.replica.same_map_norm_backward(gradient, x, *ctx.letters)
    return result, *[None] * len(ctx.letters)


def _second_gradient(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
    # Rare, so the plain version's own derivative serves.
    named = dict(zip(_NAMES, ctx.letters, strict=True))
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        result = reference.same_map_norm_backward(*inputs, **named)
        gradients = torch.autograd.grad(result, inputs, gradient)
    return *gradients, *[None] * len(ctx.letters)


torch.library.register_autograd(_FORWARD, _gradient, setup_context=_save)
torch.library.register_autograd(_BACKWARD, _second_gradient, setup_context=_save)
