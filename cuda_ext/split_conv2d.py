"""The convolution of a network in towers: what it takes, and its checks (paper 3.5)."""

from typing import Any, Literal

import torch

from cuda_ext import library
from cuda_ext.convolution_ways import ALL_PRODUCTS, Products
from cuda_ext.split_conv2d_products import output_shape

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ACTIVATIONS = ("none", "relu")
Activation = Literal["none", "relu"]


def split_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    towers: int = 1,
    activation: Activation = "none",
    products: Products = "measured",
) -> torch.Tensor:
    """Convolves each tower with its own kernels, both towers in one call (paper 3.5, Figure 2).

        y[k, r, q] = activation(bias[k] + sum over c, i, j of
            weight[k, c, i, j] * x[c of the tower of k, stride * r + i - before, ...])

    Kernels are not mirrored, as in `torch.nn.functional.conv2d`. Sums are in float32 at least.
    Under autocast the tensors are cast as for that function.

    Args:
        x: (N, C, H, W), float32, float64, bfloat16 or float16, any strides; tower t has the t-th of
            `towers` equal parts of the channels.
        weight: (K, C / towers, rows, columns), of the type of x; the t-th of `towers` equal parts
            of the kernels reads tower t. With `towers=1` every kernel reads everything.
        bias: (K,), or None.
        stride: between neighboring places, in both directions.
        padding: rows of zeros before the first and after the last, and columns; none is larger than
            the kernels.
        towers: number of groups of channels that do not see each other.
        activation: "relu", or "none".
        products: who multiplies. "library": PyTorch's convolution. "own": on the CPU blocks of
            pixels where the stride is larger than 1 and `towers` is 1, on CUDA the kernels of this
            package for float32; elsewhere the library. "own forward" and "own weight gradient": on
            the CPU one pass so, the other the library's. "measured": what was measured to win on
            this kind of processor (`way_of`), on CUDA the library.

    Returns:
        (N, K, H', W') of the type of x: channels last where x or weight is, else NCHW.

    Raises:
        ValueError: an argument is outside of these rules.
    """
    name = "split_conv2d"
    x, weight, bias = _cast(x, weight, bias)
    before, after = _check(name, x, weight, bias, stride, padding, towers, activation, products)
    result: torch.Tensor = torch.ops.replica.split_conv2d(
        x, weight, bias, stride, before, after, towers, activation == "relu", products
    )
    return result


def split_conv2d_add_(
    y: torch.Tensor,
    x_other: torch.Tensor,
    weight_other: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    towers: int = 1,
    activation: Activation = "none",
    products: Products = "measured",
) -> torch.Tensor:
    """Adds the other half of a layer's products to y, in place; then bias and activation.

        y <- activation(y + products of x_other and weight_other + bias)

    For a layer that reads both towers, each on a device of its own (paper 3.5): `split_conv2d`
    multiplies the own half while the other one travels, and this ends the layer, the sum, the bias
    and the activation in one pass. Without a gradient: `split_conv2d_backward` has it for a half.

    Args:
        y: (N, K, H', W'), dense, NCHW or channels last: what `split_conv2d` gave for the own half.
        x_other, weight_other: as `x` and `weight` of `split_conv2d`.
        bias, stride, padding, towers, activation, products: as there.

    Returns:
        `y`.

    Raises:
        ValueError: an argument is outside of these rules, or a gradient would be needed.
    """
    name = "split_conv2d_add_"
    before, after = _check(
        name, x_other, weight_other, bias, stride, padding, towers, activation, products
    )
    tensors = (y, x_other, weight_other, *([] if bias is None else [bias]))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise _expected(name, "tensors without a gradient", "one that requires it")
    shape = output_shape(x_other, weight_other, stride, before, after)
    if y.shape != shape or y.dtype != x_other.dtype or y.device != x_other.device:
        raise _expected(
            name,
            f"y of {_kind(x_other.dtype, shape, x_other.device)}, as the other half gives",
            _kind(y.dtype, y.shape, y.device),
        )
    if not (y.is_contiguous() or y.is_contiguous(memory_format=torch.channels_last)):
        raise _expected(name, "a dense y", f"one of strides {y.stride()}")
    torch.ops.replica.split_conv2d_add_(
        y,
        x_other,
        weight_other,
        bias,
        stride,
        before,
        after,
        towers,
        activation == "relu",
        products,
    )
    return y


def split_conv2d_backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    towers: int = 1,
    products: Products = "measured",
    needed: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """The gradients of `split_conv2d` without an activation.

    Args:
        gradient: (N, K, H', W'), of y; of the type of x, any strides.
        x, weight, stride, padding, towers, products: as in `split_conv2d`.
        needed: which of the three.

    Returns:
        Those of x, weight and bias, each of the shape and type of what it is of, and that of the
        weight in its memory format; None for what is not needed.

    Raises:
        ValueError: an argument is outside of these rules.
    """
    name = "split_conv2d_backward"
    before, after = _check(name, x, weight, None, stride, padding, towers, "none", products)
    shape = output_shape(x, weight, stride, before, after)
    if gradient.shape != shape or gradient.dtype != x.dtype or gradient.device != x.device:
        raise _expected(
            name,
            f"a gradient of {_kind(x.dtype, shape, x.device)}",
            _kind(gradient.dtype, gradient.shape, gradient.device),
        )
    computed = torch.ops.replica.split_conv2d_backward(
        gradient, x, weight, stride, before, after, towers, products, list(needed)
    )
    of_x, of_weight, of_bias = (
        one if is_needed else None for one, is_needed in zip(computed, needed, strict=True)
    )
    return of_x, of_weight, of_bias


def _cast(*tensors: torch.Tensor | None) -> tuple[Any, ...]:
    """As autocast does for the library's convolution, which leaves float64 as it is."""
    (first, *_) = tensors
    kind = first.device.type if first is not None else "cpu"
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def _check(
    name: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: int,
    padding: tuple[int, int],
    towers: int,
    activation: str,
    products: str,
) -> tuple[int, int]:
    """The padding; raises a ValueError where an argument is outside of the rules."""
    if library.SWITCH_PROBLEM:
        raise ValueError(library.SWITCH_PROBLEM)
    if x.dim() != 4:
        raise _expected(name, "x of (N, C, H, W)", tuple(x.shape))
    if x.dtype not in DTYPES:
        raise _expected(name, "float32, float64, bfloat16 or float16", x.dtype)
    if weight.dim() != 4 or 0 in weight.shape:
        raise _expected(name, "a weight of (K, C, rows, columns)", tuple(weight.shape))
    others = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    for other, tensor in others.items():
        if tensor.device != x.device:
            raise _expected(name, f"x and {other} on one device", f"{x.device}, {tensor.device}")
        if tensor.dtype != x.dtype:
            raise _expected(name, f"x and {other} of one type", f"{x.dtype}, {tensor.dtype}")
    num_kernels, channels, *sides = weight.shape
    if towers < 1 or num_kernels % towers:
        raise _expected(
            name, "kernels divisible by towers", f"{num_kernels} kernels and {towers} towers"
        )
    if x.shape[1] != towers * channels:
        raise _expected(
            name,
            f"x of {towers} x {channels} channels, as the weight reads",
            f"{x.shape[1]} channels",
        )
    if bias is not None and bias.shape != (num_kernels,):
        raise _expected(name, f"a bias of ({num_kernels},)", tuple(bias.shape))
    if stride < 1:
        raise _expected(name, "a stride of at least 1", stride)
    if len(padding) != 2 or not all(0 <= rows <= min(sides) for rows in padding):
        raise _expected(
            name, f"padding (before, after) of 0 to {min(sides)}, the kernels' side", padding
        )
    before, after = padding
    if any(size + before + after < side for size, side in zip(x.shape[2:], sides, strict=True)):
        raise _expected(
            name,
            f"at least {sides[0]} x {sides[1]} places, as the kernels have",
            f"{x.shape[2]} x {x.shape[3]} with padding of {tuple(padding)}",
        )
    if activation not in ACTIVATIONS:
        raise _expected(name, f"an activation of {' or '.join(ACTIVATIONS)}", repr(activation))
    if products not in ALL_PRODUCTS:
        raise _expected(name, f"products of {', '.join(ALL_PRODUCTS)}", repr(products))
    return before, after


def _kind(*of_a_tensor: Any) -> str:
    dtype, shape, device = of_a_tensor
    return f"{dtype}, {tuple(shape)}, {device}"


def _expected(name: str, rule: str, got: object) -> ValueError:
    return ValueError(f"{name}: expected {rule}, got {got}")
